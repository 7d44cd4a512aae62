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

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed memory; returns whether that was possible. Safe to call twice."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, 2**28))


class KeptMemory:
    """Bounds the memory that `keep_freed_memory` keeps. Steps whose tensors differ in shape fragment it, so it grows.

    Call `check` once per step. The memory of the process at the first call counts as what a step needs. Once it has
    grown beyond `growth` times that, all free memory goes back to the kernel, and the next call measures anew.

    Args:
        growth: above 1.
    """

    def __init__(self, growth: float = 1.5) -> None:
        self._growth, self._needed = growth, 0

    def check(self) -> bool:
        """Returns whether memory went back to the kernel; always False except on Linux with glibc."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
        if trim is None:
            return False
        resident = _resident_bytes()
        grown = 0 < self._growth * self._needed < resident
        if grown:
            trim(0)
        self._needed = 0 if grown else self._needed or resident
        return grown


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
