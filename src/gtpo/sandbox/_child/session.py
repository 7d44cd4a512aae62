"""A child that runs several programs of one rollout, and the server's side of it.

Between programs the child is stopped, so that nothing that an earlier program left running uses CPU time or interacts
with others. The system-call filter denies whatever could wake it, and the server checks that it slept. It
gets each program's descriptors over a socket that no other process has, and reports there how the program ended. The
program can forge that report; it then harms only its own rollout.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from . import child
from .proc import Memory, Proc, cpu_s, memory_of
from .report import BYTES, decoded, encoded
from .snippet import Cell, new_main
from .threads import Count

START_S = 10.0
STOP_S = 0.5
KEPT_FILES, KEPT_FILE_BYTES = 256, 4 << 20
"""What a session may leave in its directory for its next program."""
KEPT_BYTES, KEPT_SHARED_BYTES = 128 << 20, 256 << 20
"""Memory that a session may keep while it is stopped, beyond that of the server; and address space of mappings that are
shared or come from files, in which memory use can't be seen."""
_ASLEEP_S = 0.005
_READY = b"ready"
_KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_STREAM
_FD = 3
_SPARE = 8


class Session:
    """The server's side: one child, started when this is created.

    Args:
        order: as for a single program; its descriptors are not used, and its limits are reset for each program.
        proc: used to inspect the child's memory.

    Raises:
        OSError: the child could not be started or confined.
    """

    def __init__(self, order: child.Order, proc: Proc) -> None:
        self.order = order
        self.threads = Count()
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, _KIND)
        proc.scatter_numbers()
        self.pid = os.fork()
        if self.pid == 0:
            _live(order, theirs)
        theirs.close()
        self.place: int | None = None
        self._memory_file = proc.memory_file(self.pid)
        self._slept_cpu_s: float | None = None
        self._restless = False
        try:
            self._await_start()
        except OSError:
            self.end()
            raise
        self._memory = memory_of(self._memory_file) if self._memory_file is not None else None
        self.sock.setblocking(False)

    def _await_start(self) -> None:
        """Receives the child's directory, if only the child sees it, and waits until the child is confined."""
        self.sock.settimeout(START_S)
        said, fds, _, _ = socket.recv_fds(self.sock, BYTES, 1)
        self.place = fds[0] if fds else None
        if fds:
            said = self.sock.recv(BYTES)
        if said != _READY:
            raise OSError(f"the process of the session did not start: {decoded(said)[1]}")

    def begin(self, order: child.Order, fresh: bool) -> bool:
        """Wakes the child under the order's limits and sends it code, stdout and stderr.

        Returns:
            Whether it slept since the last program; if not, nothing was sent.
        """
        woke = self._slept_cpu_s is not None and cpu_s(self.pid) > self._slept_cpu_s + _ASLEEP_S
        if woke or self._restless:
            return False
        if sys.platform == "linux":
            for kind, soft in child.changing_limits(order):
                hard = resource.prlimit(self.pid, kind)[1]
                resource.prlimit(self.pid, kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
        with contextlib.suppress(BlockingIOError):
            while self.sock.recv(BYTES):
                pass
        os.kill(self.pid, signal.SIGCONT)
        with contextlib.suppress(OSError):
            socket.send_fds(self.sock, [b"f" if fresh else b"k"], list(order.fds))
        return True

    def answer(self) -> tuple[str, str] | None:
        """Status and detail of the program, None if the child has not reported its end."""
        with contextlib.suppress(OSError):
            if said := self.sock.recv(BYTES):
                return decoded(said)
        return None

    def interrupt(self) -> None:
        """Raises KeyboardInterrupt in the program."""
        os.kill(self.pid, signal.SIGINT)

    def stop(self) -> None:
        """Begins to stop the child until the next program."""
        os.kill(self.pid, signal.SIGSTOP)

    def settle(self, await_signal: Callable[[float], object]) -> None:
        """Waits until the child has stopped, or ended; kills it if it does neither. Linux only.

        Args:
            await_signal: waits for SIGCHLD, at most the given number of seconds.
        """
        if sys.platform != "linux":
            return
        deadline, kinds = time.monotonic() + STOP_S, os.WSTOPPED | os.WEXITED | os.WNOHANG
        while (found := os.waitid(os.P_PID, self.pid, kinds | os.WNOWAIT)) is None and time.monotonic() < deadline:
            await_signal(0.01)
        if found is None:
            self._restless = True
            os.kill(self.pid, signal.SIGKILL)
        elif found.si_code == os.CLD_STOPPED:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
        self._slept_cpu_s = cpu_s(self.pid)

    def over_quota(self) -> str:
        """The resource of which the child keeps more than it may: "files", "memory" or ""."""
        if self.place is not None:
            there = os.fstatvfs(self.place)
            used = (there.f_blocks - there.f_bfree) * there.f_frsize
            if there.f_files - there.f_ffree > KEPT_FILES + 1 or used > KEPT_FILE_BYTES:
                return "files"
        if self._memory_file is not None and self._memory is not None:
            return "memory" if _grown(self._memory, memory_of(self._memory_file)) else ""
        return ""

    def end(self) -> int:
        """Kills and reaps the child; returns its wait status."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.release()
        return status

    def release(self) -> None:
        """Frees the resources of a child that has been reaped."""
        self.sock.close()
        for fd in (self.place, self._memory_file):
            if fd is not None:
                os.close(fd)
        self.place = self._memory_file = None


def _grown(first: Memory, now: Memory) -> bool:
    return now.resident - first.resident > KEPT_BYTES or now.shared - first.shared > KEPT_SHARED_BYTES


def _live(order: child.Order, sock: socket.socket) -> NoReturn:
    """The child: confines itself, then runs programs until the server hangs up."""
    leave = os._exit
    try:
        with contextlib.suppress(BaseException):
            _serve(order, sock)
    finally:
        leave(1)


def _serve(order: child.Order, sock: socket.socket) -> NoReturn:
    try:
        child.surroundings(order)
    except BaseException as error:
        sock.send(encoded("tool_failure", f"{type(error).__name__}: {error}"))
        raise
    null = os.open(os.devnull, os.O_RDWR)
    child.descriptors((null, null, null), keep=sock.fileno(), at=_FD)
    channel = socket.socket(fileno=_FD)
    try:
        if order.confinement is not None and order.confinement.new_root:
            here = os.open(".", os.O_RDONLY)
            socket.send_fds(channel, [b"directory"], [here])
            os.close(here)
        child.confine(order)
        channel.send(_READY)
    except BaseException as error:
        channel.send(encoded("tool_failure", f"{type(error).__name__}: {error}"))
        raise
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
        answer = encoded(*_run(code, module.__dict__))
        _mend_descriptors()
        channel.send(answer)


def _mend_descriptors() -> None:
    """Reopens an empty stdin if the program closed it, and frees descriptors for the next program if none are left."""
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
    """Runs one program; an interrupt that arrives after its end is ignored."""
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
