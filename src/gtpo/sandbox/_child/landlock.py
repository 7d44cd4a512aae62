"""Landlock (Linux 5.13 and later): which files a process may open, whom it may signal. No privilege is needed.

What it does not mediate: `stat`, and changes of mode, owner, times and extended attributes. The system-call
filter refuses those changes where no new root does; `stat` needs the new root.
"""

from __future__ import annotations

import os
import struct
import sys

from . import kernel

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_BIND_TCP_CONNECT_TCP = 3
_SCOPE_ABSTRACT_SOCKETS_SIGNALS = 3


def abi() -> int:
    """Version of the kernel's Landlock, 0 if it has none."""
    if sys.platform != "linux":
        return 0
    try:
        return kernel.syscall(_CREATE, None, 0, 1)
    except OSError:
        return 0


class Ruleset:
    """A ruleset: what a process may still do after it is enforced.

    Args:
        fd: descriptor of the kernel's object, -1 if there is no Landlock.
        version: version of Landlock, 0 if there is none.
    """

    def __init__(self, fd: int, version: int) -> None:
        self.fd, self.version = fd, version
        self._enforce = kernel.prepared_syscall(_RESTRICT, fd, 0)

    def enforce(self) -> None:
        """Confines the calling process and all its children permanently; PR_SET_NO_NEW_PRIVS must be set.

        It does nothing if there is no Landlock.

        Raises:
            OSError: the kernel refused.
        """
        if self.version:
            kernel.checked(self._enforce(), "Landlock")


def ruleset(read: list[str], write: list[str]) -> Ruleset:
    """Creates a ruleset. This costs much more than enforcing it, so a server creates one for all its children.

    Args:
        read: files and directories that may be read; what does not exist is left out.
        write: directories that may also be written to, without devices, sockets and programs.

    Raises:
        OSError: the kernel has Landlock and refused.
    """
    version = abi()
    if not version:
        return Ruleset(-1, 0)
    files = (1 << 13) - 1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEVICE)):
        files |= right if version >= since else 0
    handled = struct.pack(
        "=QQQ",
        files,
        _BIND_TCP_CONNECT_TCP if version >= 4 else 0,
        _SCOPE_ABSTRACT_SOCKETS_SIGNALS if version >= 6 else 0,
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = kernel.syscall(_CREATE, handled, size, 0)
    never = _EXECUTE | _MAKE_CHAR | _MAKE_SOCK | _MAKE_FIFO | _MAKE_BLOCK | _IOCTL_DEVICE
    for path in read:
        _allow(rules, path, files & (_READ_FILE | _READ_DIR))
    for path in write:
        _allow(rules, path, files & ~never)
    _allow(rules, os.devnull, files & (_READ_FILE | _WRITE_FILE | _TRUNCATE))
    return Ruleset(rules, version)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        kernel.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)
