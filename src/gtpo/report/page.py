"""The page: one self-contained HTML file that runs only its own script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from gtpo._files import write_text
from gtpo.errors import ConfigError
from gtpo.report.data import MAX_BYTES, run_document
from gtpo.report.glossary import glossary
from gtpo.run_directory import RunFiles, distinct_names
from gtpo.versions import installed_versions

_SCRIPTS = ("credit", "store", "dom", "charts", "overview", "groups", "rollout", "find", "app")


def write_page(runs: Sequence[str | Path], path: str | Path, *, max_bytes: int = MAX_BYTES) -> int:
    """Write the report of runs as one self-contained HTML file.

    Args:
        runs: run directories; their metrics are overlaid.
        path: the file.
        max_bytes: maximum size of the packed rollouts of all runs; the rest is left out, and the page says so.

    Returns:
        The size of the file in bytes.

    Raises:
        DataError: a directory is not a run's, or one of its files can't be read.
        ConfigError: the page can't be written.
    """
    found = [RunFiles(run) for run in runs]
    named = zip(found, distinct_names(found), strict=True)
    documents = [{**run_document(run, max_bytes=max_bytes // len(found)), "name": name} for run, name in named]
    text = page({**header(), "runs": documents})
    try:
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror}; give another --output") from error
    return len(text.encode())


def header() -> dict[str, Any]:
    """The contents of the page besides runs."""
    return {"live": False, "version": installed_versions()["gtpo"], "glossary": glossary()}


def page(document: dict[str, Any]) -> str:
    """The page with a document in it. The contents of the document are never executed: see `as_data`."""
    assets = files("gtpo.report") / "assets"
    style = (assets / "style.css").read_text(encoding="utf-8")
    parts = [(assets / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (assets / "page.html").read_text(encoding="utf-8")
    for name, value in (("ALLOWED", allowed), ("STYLE", style), ("SCRIPT", script), ("DATA", as_data(document))):
        text = text.replace(f"/*{name}*/", value, 1)
    return text


def as_data(document: dict[str, Any]) -> str:
    """JSON that is safe in a script element: no `<`, `>` or `&`, ASCII only, lone surrogates escaped."""
    text = json.dumps(document, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
