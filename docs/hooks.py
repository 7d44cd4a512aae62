"""MkDocs hooks: pages made from files outside docs/, and a check that the API reference is complete.

- CHANGELOG.md, CONTRIBUTING.md, each folder of recipes/ and each file of examples/ become a page, and links to them
  from docs/ lead to these pages.
- The build fails if a public name of `PUBLIC` has no docstring or is missing in the API reference.
"""

from __future__ import annotations

import base64
import json
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash"}

PUBLIC = {
    "gtpo.functional": None,
    "gtpo.credit_assignment": (
        "CreditSettings",
        "CreditInputs",
        "Credit",
        "credit_inputs",
        "compute_credit",
        "turn_credit",
    ),
    "gtpo.notebook": ("evaluate", "train"),
    "gtpo.credit_table": ("credit", "CreditTable"),
    "gtpo.scoring": ("RewardConfig", "Scorer", "Scored", "make_scorer"),
    "gtpo.training.run": ("TrainResult",),
    "gtpo.rollout": None,
    "gtpo.rollout.backends": None,
    "gtpo.training.trainer": ("GTPOTrainer",),
    "gtpo.training.config": ("GTPOConfig",),
    "gtpo.training.data": ("problem_dataset",),
    "gtpo.turn_rewards": ("execution_feedback", "repeated_calls", "information_gain"),
    "gtpo.evaluation": (
        "Comparison",
        "EvalProtocol",
        "EvalResult",
        "Figures",
        "evaluate",
        "load_result",
        "protocol_of",
    ),
    "gtpo.evaluation.compare": ("compare",),
    "gtpo.tasks.problems": ("Problem", "load_problems"),
    "gtpo.tasks.sources": ("problems_from",),
    "gtpo.tasks.benchmarks": ("Benchmark", "get_benchmark"),
    "gtpo.tasks.verifiers": None,
    "gtpo.sandbox": None,
    "gtpo.similarity": None,
    "gtpo.audit": None,
    "gtpo.report": None,
    "gtpo.types": ("StopReason", "ToolCall", "InvalidCall", "Observation", "Turn", "Trajectory"),
    "gtpo.errors": ("GtpoError", "ConfigError", "DataError"),
}
"""What is public, by module; None stands for the module's `__all__`."""

log = logging.getLogger("mkdocs.hooks.gtpo")
_shown: set[str] = set()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from files outside docs/."""
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files outside docs/ lead to the pages made from them."""
    folder = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match[1]))
        made = page_of(target)
        return f"]({posixpath.relpath(made, folder or '.')})" if made else match[0]

    return re.sub(r"\]\(((?!https?:)[^)#\s]+)\)", link, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Note which names the API reference shows."""
    if page.file.src_uri.startswith("api/"):
        _shown.update(re.findall(r'id="(gtpo\.[\w.]+)"', html))


def on_post_build(config: MkDocsConfig) -> None:
    """Name what is public and not documented; in strict mode each warning fails the build."""
    for fault in undocumented():
        log.warning(fault)
    for name in public_names():
        if name not in _shown:
            log.warning("%s is public and missing in the API reference (docs/api)", name)


def page_of(target: str) -> str | None:
    """The generated page for a path in the repository, relative to docs/; None if there is none."""
    if target in ("CHANGELOG.md", "CONTRIBUTING.md"):
        return target.lower()
    parts = target.split("/")
    if parts[0] == "recipes" and len(parts) > 1:
        return f"recipes/{parts[1]}.md"
    if parts[0] == "examples" and len(parts) == 2:
        return f"examples/{Path(target).stem}.md"
    if target.startswith("docs/"):
        return None
    return "index.md" if target == "README.md" else None


def generated_pages() -> dict[str, str]:
    """Markdown of each generated page, by its path relative to docs/."""
    pages = {}
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        pages[name.lower()] = re.sub(r"\]\(docs/", "](", text)
    for folder in sorted(path for path in (ROOT / "recipes").iterdir() if path.is_dir()):
        parts = [f"# Recipe: {folder.name}\n"]
        for path in sorted(folder.iterdir()):
            if path.suffix in LANGUAGES:
                parts.append(f"## {path.name}\n\n{_block(path.read_text(encoding='utf-8'), LANGUAGES[path.suffix])}")
        pages[f"recipes/{folder.name}.md"] = "\n".join(parts)
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        title = "GTPO in one file" if path.stem == "gtpo_minimal" else f"Example: {path.stem.replace('_', ' ')}"
        pages[f"examples/{path.stem}.md"] = f"# {title}\n\n`examples/{path.name}`\n\n{_block(source, 'python')}"
    notebook = json.loads((ROOT / "examples" / "understand_credit.ipynb").read_text(encoding="utf-8"))
    pages["examples/understand_credit.md"] = "\n\n".join(_cell(cell) for cell in notebook["cells"])
    return pages


def _block(text: str, language: str) -> str:
    fence = "`" * (max([2, *map(len, re.findall(r"`+", text))]) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _cell(cell: dict[str, Any]) -> str:
    """A notebook cell as Markdown, with its stored outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    parts = [_block(source, "python")]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            png = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
            parts.append(f"![The plot that this cell draws](data:image/png;base64,{png})")
        else:
            parts.append(_block("".join(output.get("text") or data.get("text/plain", "")), "text"))
    return "\n".join(parts)


def _package() -> griffe.Module:
    package = griffe.load("gtpo", search_paths=[str(ROOT / "src")], docstring_parser="google")
    assert isinstance(package, griffe.Module)
    return package


def public_names(package: griffe.Module | None = None) -> list[str]:
    """Every public name with its module."""
    package = package or _package()
    found = []
    for module, names in PUBLIC.items():
        exports = package[module.removeprefix("gtpo.")].exports if names is None else names
        if not exports:
            raise ValueError(f"{module} has no __all__; name what is public in docs/hooks.py")
        found += [f"{module}.{name}" for name in exports]
    return found


def undocumented() -> list[str]:
    """What is public and has no docstring: names, and public methods and properties of public classes."""
    package = _package()
    faults = []
    for name in public_names(package):
        thing = package[name.removeprefix("gtpo.")]
        thing = thing.final_target if thing.is_alias else thing
        if not thing.has_docstring:
            faults.append(f"{name} is public and has no docstring ({thing.relative_filepath}:{thing.lineno})")
        if thing.is_class:
            for member in thing.members.values():
                if member.is_function and not member.name.startswith("_") and not member.has_docstring:
                    faults.append(f"{name}.{member.name} is public and has no docstring")
    return faults
