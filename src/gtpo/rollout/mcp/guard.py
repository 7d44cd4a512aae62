"""Runs a command, and ends it with all that it has started once the process that asked for it is gone.

A server on stdio should end when its stdin closes, but not every server does, and none of its children has to. It is
run as a script, by path: it imports little, so that it starts in about 20 ms.

    guard.py PARENT_PID COMMAND [ARGUMENT ...]

It must be the leader of its process group; it can't end a child that leaves the group.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from types import FrameType

_LOOK_EVERY_S = 0.5


def main(parent: int, command: list[str]) -> int:
    """Run the command with this process's stdin and stdout; returns its exit status, as a shell gives it."""
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, _nothing)
    signal.signal(signal.SIGTERM, _nothing)  # it is for the group: this process ends after the command
    child = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        setsigdef=[signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD],
    )
    os.close(0)
    os.close(1)  # else the pipe would stay open after the command has closed its own end
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        if select.select([woken], [], [], _LOOK_EVERY_S)[0]:
            os.read(woken, 4096)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Wakes the loop in `main`."""


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
