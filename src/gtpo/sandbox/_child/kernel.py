"""System calls that the standard library does not provide, by ctypes (Linux only)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import partial

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 4, 8, 22
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 24, 36, 38
CAP_SYS_ADMIN = 21
_CAPABILITY_HEADER, _NO_CAPABILITIES = (0x20080522).to_bytes(4, "little") + bytes(4), bytes(24)
_MADV_COLLAPSE, _HUGE_PAGE = 25, 2 << 20

_loaded: ctypes.CDLL | None = None


def libc() -> ctypes.CDLL:
    """The C library, loaded on first use."""
    global _loaded
    if _loaded is None:
        _loaded = ctypes.CDLL(None, use_errno=True)
    return _loaded


def prctl(option: int, value: int, address: int = 0) -> int:
    """`prctl(2)`; -1 and errno on failure."""
    zero = ctypes.c_ulong(0)
    return int(libc().prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(address), zero, zero))


def prepared_prctl(option: int, value: int, address: int) -> Callable[[], int]:
    """Prepares `prctl(2)` for a later call, which then does little work."""
    zero = ctypes.c_ulong(0)
    return partial(libc().prctl, ctypes.c_int(option), ctypes.c_ulong(value), ctypes.c_ulong(address), zero, zero)


def prepared_syscall(number: int, *arguments: int) -> Callable[[], int]:
    """Prepares `syscall(2)` for a later call, which then does little work; -1 and errno on failure."""
    call = libc().syscall
    call.restype = ctypes.c_long
    return partial(call, ctypes.c_long(number), *map(ctypes.c_long, arguments))


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """`syscall(2)` with the errors of the standard library: integers are passed as words, bytes as pointers."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    call = libc().syscall
    call.restype = ctypes.c_long
    return checked(call(ctypes.c_long(number), *words), f"system call {number}")


def checked(result: int, what: str) -> int:
    """`result`, or an OSError from errno if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def forbid_capabilities() -> None:
    """Removes every capability from the bounding set, so that no further ones can be gained; needs CAP_SETPCAP.

    Without that capability nothing happens: such a process can only gain capabilities by exec, which the filter denies.
    """
    for capability in range(64):
        if prctl(PR_CAPBSET_DROP, capability):
            break


def keep_capabilities(*kept: int) -> None:
    """Gives up every capability except `kept` permanently; raises OSError if one of `kept` is not held."""
    mask = sum(1 << capability for capability in kept)
    words = [(mask >> shift & 0xFFFFFFFF).to_bytes(4, "little") for shift in (0, 32)]
    checked(libc().capset(_CAPABILITY_HEADER, b"".join(word * 2 + bytes(4) for word in words)), "capset")


def drop_capabilities() -> None:
    """Gives up every capability permanently, so that a root user's limits can't be raised; raises OSError."""
    checked(libc().capset(_CAPABILITY_HEADER, _NO_CAPABILITIES), "capset")


def collapse_heap(maps: str) -> None:
    """Asks the kernel to put the writable private memory into huge pages (Linux 6.1), which makes a fork cheaper.

    Args:
        maps: the content of `/proc/self/maps`.
    """
    for line in maps.splitlines():
        fields = line.split()
        if not fields[1].startswith("rw-p") or (len(fields) > 5 and fields[5] != "[heap]"):
            continue
        start, end = (int(bound, 16) for bound in fields[0].split("-"))
        for address in range(-(-start // _HUGE_PAGE) * _HUGE_PAGE, end - _HUGE_PAGE + 1, _HUGE_PAGE):
            libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(_HUGE_PAGE), _MADV_COLLAPSE)
