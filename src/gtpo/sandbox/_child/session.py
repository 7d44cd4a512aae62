"""A child that stays for several programs of one rollout, and the server's end of it.

Between programs the child is stopped, so that nothing that an earlier program left running uses a processor. It
gets each program's descriptors over a socket and answers with one byte. The program can forge that byte; it
then harms its own rollout only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import NoReturn

from . import child
from .snippet import Cell, new_main

INTERRUPT_S = 0.5
_FD = 3
_SPARE = 8


class Session:
    """The server's end: one child, started when this is made.

    Args:
        order: as for a single program; its descriptors are not used, and its limits are set anew for each program.
    """

    def __init__(self, order: child.Order) -> None:
        self.order = order
        self.board, self.begun = mmap.mmap(-1, child.BOARD_BYTES), mmap.mmap(-1, child.BOARD_BYTES)
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.pid = os.fork()
        if self.pid == 0:
            _live(order, self.board, self.begun, theirs)
        theirs.close()
        self.sock.setblocking(False)
        self.poll = select.poll()
        self.poll.register(self.sock.fileno(), select.POLLIN)

    def begin(self, order: child.Order, fresh: bool) -> None:
        """Wakes the child under the order's limits and hands it code, stdout and stderr."""
        self.board[:] = bytes(child.BOARD_BYTES)
        if sys.platform == "linux":
            for kind, soft in child.changing_limits(order):
                hard = resource.prlimit(self.pid, kind)[1]
                resource.prlimit(self.pid, kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
        with contextlib.suppress(BlockingIOError):
            while self.sock.recv(4096):
                pass
        os.kill(self.pid, signal.SIGCONT)
        with contextlib.suppress(OSError):
            socket.send_fds(self.sock, [b"f" if fresh else b"k"], list(order.fds))

    def done(self) -> bool:
        """Whether the child says that it is done."""
        with contextlib.suppress(OSError):
            return bool(self.sock.recv(4096))
        return False

    def interrupted(self) -> bool:
        """Raises KeyboardInterrupt in the program; returns whether it ended by that, with its state kept."""
        os.kill(self.pid, signal.SIGINT)
        deadline = time.monotonic() + INTERRUPT_S
        while (left := deadline - time.monotonic()) > 0:
            if self.poll.poll(left * 1000):
                return self.done()
        return False

    def rest(self) -> None:
        """Stops the child until the next program."""
        os.kill(self.pid, signal.SIGSTOP)

    def end(self) -> int:
        """Kills and reaps the child; returns its wait status."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.release()
        return status

    def release(self) -> None:
        """Gives back what belongs to a child that has been reaped."""
        self.sock.close()
        self.board.close()
        self.begun.close()


def _live(order: child.Order, board: mmap.mmap, begun: mmap.mmap, sock: socket.socket) -> NoReturn:
    """The child: confines itself, then runs what it is given until the server hangs up."""
    leave = os._exit
    try:
        with contextlib.suppress(BaseException):
            try:
                _serve(order, board, begun, sock)
            except BaseException as error:
                child.report(board, "tool_failure", f"{type(error).__name__}: {error}")
    finally:
        leave(1)


def _serve(order: child.Order, board: mmap.mmap, begun: mmap.mmap, sock: socket.socket) -> NoReturn:
    null = os.open(os.devnull, os.O_RDWR)
    child.descriptors((null, null, null), keep=sock.fileno(), at=_FD)
    child.confine(order)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    channel = socket.socket(fileno=_FD)
    module = new_main()
    while True:
        how, fds = _receive(channel)
        code = child.read_code(fds[0])
        os.dup2(fds[1], 1)
        os.dup2(fds[2], 2)
        for fd in fds:
            os.close(fd)
        if how == b"f":
            module = new_main()
        if not begun.closed:
            child.mark(begun)
        child.report(board, *_run(code, module.__dict__))
        _mend_descriptors()
        channel.send(b".")


def _mend_descriptors() -> None:
    """An empty stdin, if the program closed it; room for the next program's three, if it left none."""
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # the lowest free number
    spare: list[int] = []
    try:
        spare += (os.dup(_FD) for _ in range(_SPARE))
    except OSError:
        os.closerange(_FD + 1, child.OPEN_FILES)
    else:
        for fd in spare:
            os.close(fd)


def _run(code: str, scope: dict[str, object]) -> tuple[str, str]:
    """One program; an interrupt that arrives after its end is ignored."""
    try:
        return Cell(code).run(scope)
    except KeyboardInterrupt:
        return "error", "KeyboardInterrupt"


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    while True:
        try:
            how, fds, _, _ = socket.recv_fds(channel, 1, 3)
            break
        except KeyboardInterrupt:
            continue
    if not how:
        os._exit(0)
    if len(fds) != 3:
        raise OSError("no room for descriptors")
    return how, list(fds)
