"""Records which system calls the corpus makes, and compares them with what the sandbox allows; needs strace.

    python record_calls.py [--write]

`--write` rewrites `calls.txt`: each allowed call, with the programs of the corpus that make it, or with the allowed
call whose deed it does under another name ("as NAME"), which is taken over from the file. Calls of the corpus that are
not allowed are printed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from corpus import PROGRAMS

from gtpo.sandbox._child import syscalls

FILE = Path(__file__).with_name("calls.txt")
NEW_NAMES = {436: "close_range", 439: "faccessat2", 441: "epoll_pwait2", 449: "futex_waitv", 437: "openat2"}


def allowed() -> set[str]:
    """Names of all calls that some program may make with some arguments."""
    tables = (syscalls.ALLOWED, syscalls.METADATA, syscalls.ATTRIBUTES, syscalls.WRITES, syscalls.CHECKED)
    names = {name for table in tables for name in table}
    return names | {NEW_NAMES[number] for number in (*syscalls.NEW_ALLOWED, syscalls.OPENAT2)}


def listed() -> dict[str, str]:
    """Each call of the file, with who needs it."""
    lines = FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
    return dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))


def recorded(code: str) -> set[str]:
    """Calls of a program in a plain interpreter, its start included."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as elsewhere:
        log = Path(elsewhere) / "log"
        command = ["strace", "-f", "-qq", "-o", str(log), sys.executable, "-I", "-c", code]
        subprocess.run(
            command, cwd=folder, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=120
        )
        return set(re.findall(r"^\d+\s+(\w+)\(", log.read_text(errors="replace"), re.MULTILINE))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite calls.txt")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        parser.error("strace is not installed")
    makers: dict[str, list[str]] = {}
    for name, code in PROGRAMS.items():
        for call in recorded(code):
            makers.setdefault(call, []).append(name)
    for call in sorted(makers.keys() - allowed()):
        print(f"not allowed: {call}, made by {', '.join(makers[call])}")
    before = listed()
    if options.write:
        lines = ["# Allowed system calls, and who needs them; written by record_calls.py."]
        lines += [
            f"{call} {', '.join(makers[call]) if call in makers else before.get(call, '?')}"
            for call in sorted(allowed())
        ]
        FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
