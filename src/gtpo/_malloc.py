"""Keep freed memory in the process, on Linux with glibc.

glibc returns large blocks to the kernel as soon as they are freed and requests them again, page fault by page fault,
for the next tensor. A training step on a CPU frees and allocates gigabytes: `benchmarks/allocator.py` measures the gain
of keeping them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed memory; returns whether that was possible. Safe to call twice."""
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, 2**28))


class KeptMemory:
    """Bounds the memory that `keep_freed_memory` keeps. Steps whose tensors differ in shape fragment it, so it grows.

    Call `check` once per step. The largest memory of the process at the first `steps` calls counts as what a step
    needs. Once it has grown beyond `growth` times that, all free memory goes back to the kernel, and the next calls
    measure anew.

    Args:
        growth: above 1.
        steps: at least 1. The kernel hands memory out again page by page, so it should not go back often.
    """

    def __init__(self, growth: float = 1.5, steps: int = 10) -> None:
        self._growth, self._steps = growth, steps
        self._seen = self._needed = 0

    def check(self) -> bool:
        """Returns whether memory went back to the kernel; always False except on Linux with glibc."""
        trim = _of_glibc("malloc_trim")
        if trim is None:
            return False
        resident = _resident_bytes()
        if self._seen < self._steps:
            self._seen, self._needed = self._seen + 1, max(self._needed, resident)
        elif resident > self._growth * self._needed:
            trim(0)
            self._seen = self._needed = 0
            return True
        return False


def _of_glibc(name: str) -> Any:
    """A function of glibc's allocator; None on another system or with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
