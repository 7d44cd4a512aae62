"""A small fork server: one process, one thread, one child at a time.

The trainer starts it by exec, with an empty environment, so neither the trainer's memory nor its
descriptors are ever in it. For each request it forks a child in a process group and a working directory of
its own, under resource limits and the system-call filter; watches the clocks and the size of the output; ends
the child with SIGKILL; reaps it; and removes its directory. Code and output travel as descriptors that only
the trainer and the child read, so one program's text is not lying about in the memory that the next one
inherits. When the trainer goes away, the server ends its child and itself.

The child reports how it ended through a page of shared memory without a descriptor; the report is a hint.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from . import child
from .channel import Channel
from .cleanup import holds_more, remove, remove_empty
from .session import Session

TICK_S = 0.02
_KEPT_FILES = 256
_KEPT_BYTES = 4 << 20
"""What a session may leave for its next program: the sessions of a server share one small file system."""


class Server:
    """Answers requests on one channel until the other end hangs up.

    Args:
        channel: to the trainer.
        directory: where programs run.
        disposable: whether each program gets that directory anew, to write in; else it is there, empty and
            read-only.
        base_bytes: address space of this process, which its children inherit.
        filter_program: the system-call filter of the children, or None.
        readable: files that a child may read, to give it a Landlock domain of its own where the directories of
            sessions stand next to its own; empty where there is no Landlock.
    """

    def __init__(
        self,
        channel: Channel,
        directory: str,
        *,
        disposable: bool,
        base_bytes: int,
        filter_program: bytes | None,
        readable: tuple[str, ...],
    ) -> None:
        self.channel = channel
        self.directory = directory
        self.disposable = disposable
        self.base_bytes = base_bytes
        self.filter = filter_program
        self.readable = readable
        self.sessions: dict[str, Session] = {}
        self.board, self.begun = mmap.mmap(-1, child.BOARD_BYTES), mmap.mmap(-1, child.BOARD_BYTES)
        self.wake, wake_in = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_in, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        self.poll = select.poll()
        self.poll.register(self.wake, select.POLLIN)
        self.poll.register(channel.sock.fileno(), select.POLLIN)
        self.pid = os.getpid()

    def serve(self) -> None:
        """Answers one request after the other; returns at hang-up.

        A reply says whether the program's directory is gone already; if not, a second message follows when it
        is, so that a program which leaves a great many files can't hold back its own result.
        """
        while (received := self.channel.recv()) is not None:
            request, fds = received
            try:
                reply = self._answer(request, fds)
            finally:
                for fd in fds:
                    os.close(fd)
            if reply is not None:
                clean = request["op"] != "run" or not self.disposable or remove_empty(self.directory)
                self.channel.send({**reply, "clean": clean})
                if not clean:
                    remove(self.directory)
                    self.channel.send({"clean": True})

    def _answer(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """The reply to one request; None to a request that has none, or if the trainer has gone."""
        run = {"run": self._run, "cell": self._cell}.get(request["op"])
        if run is not None:
            try:
                return run(request, fds)
            except OSError as error:  # no room for a directory, no process to be had
                self._end_session(request.get("session", ""))
                return {"id": request["id"], **_NOTHING_USED, "status": "tool_failure", "detail": f"server: {error}"}
        if request["op"] == "close":
            self._end_session(request["session"])
        return None

    def self_test(self, witness: str) -> list[str]:
        """What a child can't do here, as found by one that tries; `witness` is a readable file outside."""
        if self.filter is None:
            return []
        self.board[:] = bytes(child.BOARD_BYTES)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                text = " ".join(child.refusals(self.filter, self.pid, witness)).encode()
                self.board[: len(text)] = text
            os._exit(0)
        os.waitpid(pid, 0)
        return bytes(self.board).rstrip(b"\0").decode().split()

    def _run(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """Executes one request in a child of its own; None if the trainer has gone."""
        order = self._order(request, fds, self.directory, alone=not self.sessions)
        if self.disposable:
            os.mkdir(order.directory, 0o700)
        self.board[:] = bytes(child.BOARD_BYTES)
        self.begun[0] = 0
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child.main(order, self.board, self.begun)
        end: list[Any] = []

        def ended() -> bool:
            done, *rest = os.wait4(pid, os.WNOHANG)
            end[:] = rest
            return bool(done)

        reason = self._watch(pid, request, order, started, 0.0, ended)
        if reason:
            os.kill(pid, signal.SIGKILL)
            _, *end = os.wait4(pid, 0)
        wall_s = time.monotonic() - started
        wait_status, usage = end
        if self.filter is None:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        if reason == "gone":
            return None
        used = {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime, "max_rss_kib": usage.ru_maxrss}
        return {"id": request["id"], **used, **_verdict(reason, wait_status, self.board, self.begun, request, order)}

    def _cell(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """Executes one request in the child of its session, which is started if need be; None if the trainer has gone.

        The reply says whether the child was started for it ("opened"), and whether it is gone now ("lost").
        """
        name, opened = request["session"], request["session"] not in self.sessions
        directory = os.path.join(os.path.dirname(self.directory), name) if self.disposable else self.directory
        order = self._order(request, fds, directory, alone=False)
        if opened:
            if self.disposable:
                os.mkdir(directory, 0o700)
            self.sessions[name] = Session(order)
        session, started = self.sessions[name], time.monotonic()
        used_before = _cpu_s(session.pid)
        session.begin(order, request["fresh"])
        self.poll.register(session.sock.fileno(), select.POLLIN)
        end: list[int] = []

        def ended() -> bool:
            done, status = os.waitpid(session.pid, os.WNOHANG)
            end[:] = [status] if done else []
            return bool(done) or session.done()

        reason = self._watch(session.pid, request, order, started, used_before, ended)
        self.poll.unregister(session.sock.fileno())
        used = {"wall_s": time.monotonic() - started, "cpu_s": _cpu_s(session.pid) - used_before, "max_rss_kib": 0}
        lost = bool(end) or (bool(reason) and (reason in ("cancelled", "gone") or not session.interrupted()))
        verdict = _verdict(reason, end[0] if end else 0, session.board, session.begun, request, order)
        if not lost:
            session.rest()
            verdict["over_quota"] = self.disposable and holds_more(directory, _KEPT_FILES, _KEPT_BYTES)
            lost = verdict["over_quota"] or verdict["status"] == "memory"
        if lost:
            self._end_session(name, reaped=bool(end))
        return None if reason == "gone" else {"id": request["id"], "opened": opened, "lost": lost, **used, **verdict}

    def _end_session(self, name: str, reaped: bool = False) -> None:
        session = self.sessions.pop(name, None)
        if session is None:
            return
        if reaped:
            session.release()
        else:
            session.end()
        if self.disposable:
            remove(session.order.directory)

    def _order(self, request: dict[str, Any], fds: list[int], directory: str, alone: bool) -> child.Order:
        return child.Order(
            fds=(fds[0], fds[1], fds[2]),
            directory=directory,
            cpu_s=request["cpu_s"],
            memory_bytes=self.base_bytes + (request["memory_mb"] << 20),
            file_bytes=max(child.FILE_BYTES, 2 * request["output_bytes"]),
            filter=self.filter,
            parent=self.pid,
            seed=request["seed"],
            apart=() if alone else self.readable,
            lasting="session" in request,
        )

    def _watch(
        self,
        pid: int,
        request: dict[str, Any],
        order: child.Order,
        started: float,
        used_before: float,
        ended: Callable[[], bool],
    ) -> str:
        """Waits until the program has ended or must be ended; returns why it must, "" if it has."""
        control, deadline = self.channel.sock.fileno(), started + request["wall_s"]
        while True:
            left = min(TICK_S, max(0.0, deadline - time.monotonic()))
            ready = {fd for fd, _ in self.poll.poll(left * 1000 + 1)}
            if self.wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wake, 4096)
            if ended():
                return ""
            reason = _overdue(pid, request, order, deadline, used_before)
            if control in ready or self.channel.pending():
                reason = self._interrupted(request) or reason
            if reason:
                return reason

    def _interrupted(self, request: dict[str, Any]) -> str:
        """Reads one message: "cancelled" or "gone" if the trainer says so, else ""."""
        received = self.channel.recv()
        if received is None:
            return "gone"
        cancelled = received[0]["op"] == "cancel" and received[0]["id"] == request["id"]
        return "cancelled" if cancelled else ""


_NOTHING_USED = {"wall_s": 0.0, "cpu_s": 0.0, "max_rss_kib": 0, "opened": True, "lost": True}


def _verdict(
    reason: str, wait_status: int, board: mmap.mmap, begun: mmap.mmap, request: dict[str, Any], order: child.Order
) -> dict[str, Any]:
    """How it ended: from what the server itself saw, and only then from the board."""
    if reason in ("cpu", "wall", "cancelled"):
        return {"status": "timeout", "detail": reason}
    if reason == "output_limit" or _too_much(request, order):
        return {"status": "output_limit"}
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        if number == signal.SIGXCPU:
            return {"status": "timeout", "detail": "cpu"}
        return {"status": "crashed", "detail": _signal_name(number)}
    status, _, rest = bytes(board).partition(b"\0")
    detail = rest.rstrip(b"\0").decode("utf-8", "replace")
    if status == b"tool_failure":
        return {"status": "error"} if begun[0] else {"status": "tool_failure", "detail": detail}
    if status in (b"error", b"memory"):
        return {"status": status.decode(), "error_type": detail if detail.isidentifier() else None}
    return {"status": "error" if os.WEXITSTATUS(wait_status) else "ok"}


def _overdue(pid: int, request: dict[str, Any], order: child.Order, deadline: float, used_before: float) -> str:
    """The limit that the child is over: "wall", "cpu", "output_limit" or ""."""
    if time.monotonic() >= deadline:
        return "wall"
    if _cpu_s(pid) - used_before >= request["cpu_s"]:
        return "cpu"
    return "output_limit" if _too_much(request, order) else ""


def _cpu_s(pid: int) -> float:
    """Processor time of a process, all threads together; 0 where the system has no clock for it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return time.clock_gettime((~pid << 3) | 2)
    return 0.0


def _too_much(request: dict[str, Any], order: child.Order) -> bool:
    """Whether a stream's offset, which the child shares, has passed its limit."""
    return any(os.lseek(fd, 0, os.SEEK_CUR) > request["output_bytes"] for fd in order.fds[1:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
