"""Runs one program like the local sandbox, in a process that a remote server started.

This file is sent as text, followed by a call of `main`, so it imports only the standard library; it needs
Python 3.9 there. The source of `_child/snippet.py` and the program are sent as base64.

The last line on stderr is the report: a random word that the client chose for this request, how the program ended,
its CPU time in seconds, its memory in KiB, and the class of its exception. The program shares this
interpreter and can forge the report, as it can in the local sandbox.
"""

from __future__ import annotations

import _thread
import base64
import contextlib
import importlib
import io
import math
import os
import resource
import sys
from typing import Any, NoReturn

_THREAD_STACK_BYTES = 8 << 20


def main(
    snippet: str, program: str, word: str, cpu_s: float, memory_mb: int, output_bytes: int, seed: int | None
) -> NoReturn:
    """Executes the program, writes the report, exits with 0 if all went well and 1 if not.

    Args:
        snippet: source of `_child/snippet.py`, in base64.
        program: the program, in base64.
        word: the first word of the report.
        cpu_s: CPU time in seconds, rounded up since the system counts whole seconds.
        memory_mb: address space in MiB in addition to what the interpreter has now.
        output_bytes: maximum number of bytes on each stream; one more ends the process.
        seed: seed for the random number generators; None for fresh randomness.
    """
    status, detail = "tool_failure", ""
    try:
        _surroundings()
        _limits(cpu_s, memory_mb)
        code = base64.b64decode(program).decode("utf-8", "surrogatepass")
        _randomness(seed, "numpy" in code)
        scope: dict[str, Any] = {"__name__": "snippet"}
        exec(base64.b64decode(snippet), scope)
        scope["_stream"] = lambda fd: _stream(fd, word, output_bytes)
        cell = scope["Cell"](code)
        os.write(2, f"{word} begun\n".encode())  # from now on no failure counts as the server's
        status, detail = cell.run()
    except BaseException as error:
        detail = f"{type(error).__name__}: {error}"
    _end(word, status, detail)


class _Capped(io.FileIO):
    """Ends the process at its limit, between two characters, as the server decodes all of the output or none."""

    def __init__(self, fd: int, word: str, left: int) -> None:
        super().__init__(fd, "w", closefd=False)
        self._word, self._left = word, left

    def write(self, data: Any) -> int:
        data, over = bytes(data), len(data) > self._left
        if over:
            data = data[: self._left].decode("utf-8", "ignore").encode()
        rest = data
        while rest:
            rest = rest[super().write(rest) or 0 :]
        if over:
            _end(self._word, "output_limit", "")
        self._left -= len(data)
        return len(data)


def _stream(fd: int, word: str, output_bytes: int) -> io.TextIOWrapper:
    raw: Any = _Capped(fd, word, output_bytes)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", newline="\n", write_through=True)


def _end(word: str, status: str, detail: str) -> NoReturn:
    with contextlib.suppress(BaseException):
        used = resource.getrusage(resource.RUSAGE_SELF)
        numbers = f"{used.ru_utime + used.ru_stime:.3f} {_peak_kib(used.ru_maxrss)}"
        os.write(2, f"{word} {status} {numbers} {detail[:200]}\n".encode("utf-8", "replace"))
    os._exit(0 if status == "ok" else 1)


def _peak_kib(otherwise: int) -> int:
    """Peak memory of this program; `ru_maxrss` also counts that of the server process which started it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = io.FileIO("/proc/self/status").readall().decode("ascii", "replace")
        return int(status.partition("VmHWM:")[2].split()[0])
    return otherwise


def _surroundings() -> None:
    """Sets up an empty stdin and directory, one thread per library, and no limit on the digits of integers."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with contextlib.suppress(OSError, NameError):  # no file at all under `gtpo sandbox serve`
        os.unlink(__file__)
    sys.argv = ["main.py"]
    sys.dont_write_bytecode = True
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    _thread.stack_size(_THREAD_STACK_BYTES)  # or as much as RLIMIT_STACK, which SandboxFusion sets to its memory limit


def _randomness(seed: int | None, numpy: bool) -> None:
    if seed is not None:
        importlib.import_module("random").seed(seed)
        if numpy:
            with contextlib.suppress(ImportError):
                importlib.import_module("numpy.random").seed(seed % 2**32)


def _limits(cpu_s: float, memory_mb: int) -> None:
    seconds = math.ceil(cpu_s)
    _lower(resource.RLIMIT_CPU, seconds, seconds + 1)
    _lower(resource.RLIMIT_CORE, 0, 0)
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * resource.getpagesize() + (memory_mb << 20)
        _lower(resource.RLIMIT_AS, size, size)


def _lower(kind: int, soft: int, hard: int) -> None:
    """Sets a resource limit, but never above the existing hard limit.

    If programs may not change their limits, those of the server apply; `gtpo sandbox serve` takes them from requests.
    """
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (soft, hard))
