"""Reads `/proc` about the server and its children, even after a new root without `/proc` is in place.

Children lose the descriptor before their program begins.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from dataclasses import dataclass

_FIRST_NUMBER, _NUMBERS = 1000, 30000
"""Below the least that the system has for a greatest number."""


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes.

    Args:
        resident: resident memory.
        shared: address space of mappings that are not private and writable, in which memory use can't be seen.
    """

    resident: int
    shared: int


class Proc:
    """Opened while there is a `/proc`; without one, nothing is known."""

    def __init__(self) -> None:
        self._root: int | None = None
        self._last: int | None = None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._root = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def own_numbers(self) -> bool:
        """Prepares `scatter_numbers`, in a separate pid namespace; returns whether the system allows it."""
        if self._root is None:
            return False
        with contextlib.suppress(OSError):
            path = "sys/kernel/ns_last_pid"
            self._last = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._root)
        return self.scatter_numbers()

    def scatter_numbers(self) -> bool:
        """Draws a random number from which the ids of new processes and threads of this pid namespace continue.

        The kernel numbers them consecutively, so a program could send information to a later one by the number of
        threads that it starts. Needs CAP_SYS_ADMIN.
        """
        if self._last is None:
            return False
        try:
            number = _FIRST_NUMBER + int.from_bytes(os.urandom(4), "little") % _NUMBERS
            os.pwrite(self._last, str(number).encode(), 0)
        except OSError:
            return False
        return True

    def address_space(self) -> int:
        """Address space of the server in bytes, which each child inherits."""
        pages = self._read("self/statm").split()
        return int(pages[0]) * resource.getpagesize() if pages else 512 << 20

    def maps(self) -> str:
        """The server's mappings, "" if not known."""
        return self._read("self/maps")

    def threads(self) -> int:
        """Number of the server's threads, 1 if not known."""
        return int(self._read("self/status").partition("Threads:")[2].split()[0] or 1) if self._root else 1

    def memory_file(self, pid: int) -> int | None:
        """A descriptor for `memory_of` the process `pid`, for the caller to close; None if not known."""
        if self._root is None or not hasattr(os, "pidfd_open"):
            return None
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                found = self._read(f"self/fdinfo/{handle}").partition("\nPid:")[2].split()
            finally:
                os.close(handle)
            if found and int(found[0]) > 0:  # the number that `/proc` has for it
                return os.open(f"{found[0]}/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
        return None

    def _read(self, path: str) -> str:
        if self._root is None:
            return ""
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
            with open(fd, encoding="utf-8", errors="replace") as file:
                return file.read()
        return ""


def memory_of(file: int) -> Memory:
    """Memory of the process that `file` belongs to; raises OSError if it is gone."""
    pages = os.pread(file, 256, 0).split()
    size, resident, data = (int(pages[i]) * resource.getpagesize() for i in (0, 1, 5))
    return Memory(resident, max(0, size - data))


def cpu_s(pid: int) -> float:
    """CPU time of a process, summed over all threads; 0 if the system has no clock for it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return time.clock_gettime((~pid << 3) | 2)
    return 0.0
