"""Runs a program that reads standard input, like `python program.py < input`.

This text is sent into the sandbox.
"""

from __future__ import annotations

import atexit
import builtins
import io
import os
import sys
import threading
import types
from typing import Any


def main(asked: dict[str, Any]) -> None:
    """Runs the program until its threads and its exit functions have ended.

    Args:
        asked: `prelude`, `program`, and `input`, the text of standard input.
    """
    place = os.open("stdin.txt", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    data = asked["input"].encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(place, data) :]
    os.lseek(place, 0, os.SEEK_SET)
    os.unlink("stdin.txt")
    os.dup2(place, 0)
    os.close(place)
    sys.stdin = sys.__stdin__ = os.fdopen(os.dup(0), "r", encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = os.fdopen(os.dup(1), "w", encoding="utf-8")  # type: ignore[misc]
    _open_reads_standard_input()
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    space = module.__dict__
    try:
        for name, text in (("<prelude>", asked["prelude"]), ("<program>", asked["program"])):
            exec(compile(text, name, "exec", dont_inherit=True), space)
    finally:
        main_thread = threading.current_thread()
        while others := [t for t in threading.enumerate() if t is not main_thread and not t.daemon]:
            others[0].join()
        atexit._run_exitfuncs()
        sys.stdout.flush()


def _open_reads_standard_input() -> None:
    """Paths of standard input that do not exist in the sandbox's file system."""
    plain = builtins.open

    def opened(file: Any, *rest: Any, **named: Any) -> Any:
        return plain(0 if file in ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0") else file, *rest, **named)

    builtins.open = io.open = opened
