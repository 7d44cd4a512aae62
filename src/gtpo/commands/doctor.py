"""`gtpo doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
from collections import Counter
from collections.abc import Sequence

from gtpo._text import show
from gtpo.errors import ConfigError, GtpoError
from gtpo.models import load_tokenizer
from gtpo.rollout import PromptConfig, build_encoder
from gtpo.tasks.checking import check_verifier
from gtpo.tasks.sources import problems_from
from gtpo.tasks.verifiers import get_verifier
from gtpo.versions import installed_versions

EXTRAS = {
    "vllm": ("vllm", "fast generation"),
    "verl": ("verl", "training on a Ray cluster"),
    "embeddings": ("sentence_transformers", "code similarity by an embedding model"),
    "gguf": ("gguf", "models in GGUF files"),
    "search": ("bm25s", "the search tool"),
    "mcp": ("mcp", "tools of MCP servers"),
    "verifiers": ("verifiers", "environments of verifiers"),
    "reasoning-gym": ("reasoning_gym", "problems made by reasoning-gym"),
}


def main(argv: Sequence[str]) -> int:
    """Print the findings; exit status 1 if the sandbox does not work here, or a verifier gets rows wrong."""
    if "-h" in argv or "--help" in argv:
        help_parser().print_help()
        return 0
    if argv:
        options = _options(argv)
        if options.model:
            return _model(options.model, options.tool_format)
        return max([_verify(source, options.verifier, options.adversarial) for source in options.verify])
    versions = installed_versions()
    show(f"system    {platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores")
    show("versions  " + ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items()))
    show(f"device    {_device()}")
    sandbox_works, finding = _sandbox()
    show(f"sandbox   {finding}")
    for extra, (module, purpose) in EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        show(f"extra     {extra}: " + ("installed" if found else f"missing ({purpose}): pip install 'gtpo[{extra}]'"))
    if importlib.util.find_spec("verl") is not None:
        show(f"verl      {_verl()}")
    return 0 if sandbox_works else 1


def _verl() -> str:
    """Whether our plugin loads in verl, which does not report a plugin that fails to load."""
    try:
        importlib.import_module("gtpo.integrations.verl.plugin")
    except Exception as error:  # whatever it is, it is what verl would have met
        return f"the plugin can't be loaded: {type(error).__name__}: {error}"
    return "the plugin is loaded: trainer gtpo_sync, estimator gtpo, agent loop gtpo"


def help_parser() -> argparse.ArgumentParser:
    """The parser behind `--help` and shell completion."""
    parser = argparse.ArgumentParser(
        prog="gtpo doctor",
        description="Without options: check this machine (versions, device, sandbox, optional packages).",
        exit_on_error=False,
        allow_abbrev=False,
    )
    verifier = parser.add_argument_group("check a verifier on problems: gold answers must pass, wrong ones must not")
    verifier.add_argument(
        "--verify", nargs="+", default=[], metavar="SOURCE", help="Sources of problems, as in gtpo eval."
    )
    verifier.add_argument(
        "--verifier", default="auto", metavar="NAME", help="Verifier, as in gtpo train. [default: auto]"
    )
    verifier.add_argument(
        "--adversarial",
        action="store_true",
        help="Also try answers with which a policy could cheat: equations with many solutions, near misses, lost "
        "letters, programs that falsify their tests.",
    )
    model = parser.add_argument_group("check how a model calls tools; loads its tokenizer only")
    model.add_argument("--model", metavar="MODEL", help="Local folder or Hub id of a model.")
    model.add_argument(
        "--tool_format", default="auto", metavar="NAME", help="Syntax of tool calls, as in gtpo train. [default: auto]"
    )
    return parser


def _options(argv: Sequence[str]) -> argparse.Namespace:
    try:
        options, unknown = help_parser().parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    if unknown:
        takes = "--verify, --verifier, --adversarial, --model and --tool_format"
        raise ConfigError(f"unknown option {unknown[0]}; gtpo doctor takes {takes}")
    if not options.verify and not options.model:
        raise ConfigError("--verifier and --adversarial need --verify SOURCE; --tool_format needs --model MODEL")
    return options


def _model(name: str, tool_format: str) -> int:
    """Print which tool format a model gets and why, and what a call and an observation look like."""
    config = PromptConfig(tool_format=tool_format)
    encoder = build_encoder(config, load_tokenizer(name), config.specs())
    ends = ", ".join(repr(encoder.decode([i])) for i in sorted(encoder.end_ids))
    show(f"tool format   {encoder.choice}")
    show(f"a call        {encoder.format.render_call('print(6 * 7)')!r}")
    show(f"a result      {encoder.decode(encoder.observation_ids(['42']))!r}")
    show(f"ends a turn   {ends}")
    return 0


def _verify(source: str, name: str, adversarial: bool) -> int:
    """Check a verifier on the problems of a source; prints one line for each row that it gets wrong."""
    problems = problems_from(source)
    verifier = get_verifier(name)
    try:
        check = check_verifier(problems, verifier, name, adversarial=adversarial)
    finally:
        verifier.close()
    counts = Counter(finding.what for finding in check.findings)
    shown = ", ".join(f"{counts[what]} {what}" for what in ("unusable", "gold fails", "wrong passes"))
    show(f"{source}: {check.problems} problems, {check.wrong_answers} wrong answers: {shown}")
    for finding in check.findings:
        show(f"  {finding.problem_id}: {finding.what}: {finding.answer[:80]!r}: {finding.reason}")
    return 1 if check.findings else 0


def _device() -> str:
    import torch

    if not torch.accelerator.is_available():
        return f"cpu, {torch.get_num_threads()} threads; no accelerator"
    current = torch.accelerator.current_accelerator()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else str(current)
    return f"{torch.accelerator.device_count()} x {name}"


def _sandbox() -> tuple[bool, str]:
    """Start a sandbox, run a program in it, and report the isolation that it provides."""
    from gtpo.sandbox import LocalSandbox

    try:
        sandbox = LocalSandbox(max_workers=1)
        try:
            result = sandbox.run_sync("6 * 7")
            level = sandbox.level()
        finally:
            sandbox.close()
    except GtpoError as error:
        return False, f"does not work: {error}"
    if result.stdout.strip() != "42":
        return False, f"does not work: 6 * 7 gave {result.status.value} {result.stderr or result.stdout!r}"
    landlock = f" Landlock ABI {level.landlock_abi}." if level.landlock_abi else ""
    notes = "".join(f" Note: {note}." for note in level.notes)
    return True, f"works, level {level.name}. {level.sentence}{landlock}{notes}"
