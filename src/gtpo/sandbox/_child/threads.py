"""How many threads a program has: the kernel asks the server before one begins, and tells it when one ends.

This takes a filter of system calls whose answers come from the server (Linux 5.5). The server puts it on itself, once;
its children inherit it, and a child can't take it off. Limits of the kernel's own count a user's threads together, the
trainer's included, and are void for root.
"""

from __future__ import annotations

import errno
import fcntl
import platform
import struct
from dataclasses import dataclass

from . import kernel, seccomp

MOST = 64
"""Threads of one program at a time, the first not counted."""
_SECCOMP = {"x86_64": 317, "aarch64": 277, "arm64": 277}
_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 1 << 3, 1 << 5
_RECEIVE, _SEND, _GO_ON = 0xC0502100, 0xC0182101, 1
_SIZE = 80


@dataclass
class Count:
    """Threads that a process has beside its first."""

    alive: int = 0


class Threads:
    """Made once by a server, which must have no other thread; PR_SET_NO_NEW_PRIVS must be set.

    Attributes:
        fd: readable when the kernel asks.

    Raises:
        OSError: the kernel can't ask, or somebody else is asked already (a container's own supervisor).
    """

    def __init__(self) -> None:
        questions = seccomp.Filter(seccomp.thread_questions())
        number = _SECCOMP[platform.machine()]
        try:
            self.fd = kernel.syscall(number, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, questions.address)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Linux before 5.19
                raise
            self.fd = kernel.syscall(number, _SET_MODE_FILTER, _NEW_LISTENER, questions.address)

    def answer(self, count: Count) -> None:
        """Answers one question, which must be there, about the process that `count` belongs to."""
        question = bytearray(_SIZE)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, question)
            identity, _, _, number = struct.unpack_from("=QIIi", question)
            begins = number == seccomp.number_of("clone")
            if begins and count.alive >= MOST:
                fcntl.ioctl(self.fd, _SEND, struct.pack("=QqiI", identity, 0, -errno.EAGAIN, 0))
                return
            fcntl.ioctl(self.fd, _SEND, struct.pack("=QqiI", identity, 0, 0, _GO_ON))
        except OSError:  # a signal or its end has taken the question back
            return
        count.alive = count.alive + 1 if begins else max(0, count.alive - 1)
