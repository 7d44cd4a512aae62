"""Counts a program's threads: the kernel asks the server before one begins, and notifies it when one ends.

This uses a system-call filter whose answers come from the server (Linux 5.5). The server installs it once for itself;
its children inherit it, and a child can't remove it. The kernel's own limits count all threads of a user, including
the trainer's, and do not apply to root.
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
    """Threads of a process, except its first."""

    alive: int = 0


class Threads:
    """Created once by a server that has no other thread; PR_SET_NO_NEW_PRIVS must be set.

    Attributes:
        fd: readable when the kernel asks.

    Raises:
        OSError: the kernel can't ask, or another process already answers it (a container's supervisor).
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
        """Answers one pending question about the process to which `count` belongs."""
        question = bytearray(_SIZE)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, question)
            identity, _, _, number = struct.unpack_from("=QIIi", question)
            begins = number == seccomp.number_of("clone")
            if begins and count.alive >= MOST:
                fcntl.ioctl(self.fd, _SEND, struct.pack("=QqiI", identity, 0, -errno.EAGAIN, 0))
                return
            fcntl.ioctl(self.fd, _SEND, struct.pack("=QqiI", identity, 0, 0, _GO_ON))
        except OSError:  # a signal or the thread's end has withdrawn the question
            return
        count.alive = count.alive + 1 if begins else max(0, count.alive - 1)
