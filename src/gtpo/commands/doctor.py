"""`gtpo doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Sequence

from gtpo.errors import ConfigError, GtpoError
from gtpo.versions import installed_versions

EXTRAS = {
    "vllm": ("vllm", "fast generation"),
    "verl": ("verl", "training on a Ray cluster"),
    "embeddings": ("sentence_transformers", "code similarity by an embedding model"),
    "gguf": ("gguf", "models in GGUF files"),
}


def main(argv: Sequence[str]) -> int:
    """Print the findings; status 1 if the sandbox does not work here."""
    if "-h" in argv or "--help" in argv:
        print("usage: gtpo doctor\n\nSay what this machine can do: versions, device, sandbox, missing extras.")
        return 0
    if argv:
        raise ConfigError(f"gtpo doctor takes no options, got {' '.join(argv)}")
    versions = installed_versions()
    print(f"system    {platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores")
    print("versions  " + ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items()))
    print(f"device    {_device()}")
    sandbox_works, finding = _sandbox()
    print(f"sandbox   {finding}")
    for extra, (module, purpose) in EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        print(f"extra     {extra}: " + ("installed" if found else f"missing ({purpose}): pip install 'gtpo[{extra}]'"))
    return 0 if sandbox_works else 1


def _device() -> str:
    import torch

    if not torch.accelerator.is_available():
        return f"cpu, {torch.get_num_threads()} threads; no accelerator"
    current = torch.accelerator.current_accelerator()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else str(current)
    return f"{torch.accelerator.device_count()} x {name}"


def _sandbox() -> tuple[bool, str]:
    """Start one, run a program in it, and report what it really holds."""
    from gtpo.sandbox import LocalSandbox

    try:
        sandbox = LocalSandbox(slots=1)
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
