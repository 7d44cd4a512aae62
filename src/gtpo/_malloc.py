"""Keep freed memory in the process, on Linux with glibc.

glibc returns large blocks to the kernel as soon as they are freed and requests them again, page fault by page fault,
for the next tensor. A training step on a CPU frees and allocates gigabytes: `benchmarks/allocator.py` measures the gain
of keeping them.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed memory; returns whether that was possible. Safe to call twice."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, 2**28))
