"""A small fork server: one process, one thread, one child at a time.

The trainer starts it by exec, with an empty environment, so it never has the trainer's memory or
descriptors. For each request it forks a child with its own process group and working directory,
under resource limits and the system-call filter; monitors the clocks, the threads and the size of the output;
ends the child with SIGKILL; and reaps it. Code and output are passed as descriptors that only
the trainer and the child read, so one program's text is not left in the memory that the next one
inherits. When the trainer is gone, the server ends its child and itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import child
from .channel import Channel
from .cleanup import holds_more, remove, remove_empty
from .namespaces import Work
from .proc import Proc, cpu_s
from .report import Report
from .session import KEPT_FILE_BYTES, KEPT_FILES, Session
from .threads import Count, Threads

TICK_S = 0.02
INTERRUPT_S = 0.5


@dataclass(frozen=True)
class Means:
    """The resources of a server.

    Args:
        directory: directory in which programs run.
        shared_disk: whether that directory must be created and removed for each program, on a shared file system;
            else it exists already.
        work: the file system over that directory; None if programs can't write, or on a shared disk.
        base_bytes: address space of the server, which its children inherit.
        confinement: confinement of the children, or None.
        proc: used to inspect children.
        threads: answers the kernel's questions about new threads; None if the kernel can't ask.
    """

    directory: str
    shared_disk: bool
    work: Work | None
    base_bytes: int
    confinement: child.Confinement | None
    proc: Proc
    threads: Threads | None


class Server:
    """Answers requests on one channel until the other end hangs up.

    Args:
        channel: channel to the trainer.
        means: see `Means`.
    """

    def __init__(self, channel: Channel, means: Means) -> None:
        self.channel = channel
        self.means = means
        self.sessions: dict[str, Session] = {}
        self.wake, wake_in = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_in, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        self.signals = select.poll()
        self.signals.register(self.wake, select.POLLIN)
        self.poll = select.poll()
        self.poll.register(self.wake, select.POLLIN)
        self.poll.register(channel.sock.fileno(), select.POLLIN)
        if means.threads is not None:
            self.poll.register(means.threads.fd, select.POLLIN)
        self.pid = os.getpid()

    def serve(self) -> None:
        """Answers requests one after the other; returns when the trainer hangs up.

        A reply says whether the program's directory is already removed; if not, a second message follows when it
        is, so a program that leaves very many files can't delay its own result.
        """
        while (received := self.channel.recv()) is not None:
            request, fds = received
            try:
                reply = self._answer(request, fds)
            finally:
                for fd in fds:
                    os.close(fd)
            if reply is not None:
                clean = request["op"] != "run" or self._is_clean()
                self.channel.send({**reply, "clean": clean})
                if request["op"] == "cell" and request["session"] in self.sessions:
                    self.sessions[request["session"]].settle(self._await_signal)
                if not clean:
                    self._clean()
                    self.channel.send({"clean": True})

    def _is_clean(self) -> bool:
        """Whether nothing is left of the last program."""
        if self.means.work is not None:
            return self.means.work.untouched()
        return not self.means.shared_disk or remove_empty(self.means.directory)

    def _clean(self) -> None:
        if self.means.work is not None:
            self.means.work.renew()
        else:
            remove(self.means.directory)

    def _answer(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """Returns the reply to one request; None if the request has none, or if the trainer is gone."""
        run = {"run": self._run, "cell": self._cell}.get(request["op"])
        if run is not None:
            try:
                return run(request, fds)
            except OSError as error:  # no space for a directory, or no process available
                self._end_session(request.get("session", ""))
                return {"id": request["id"], **_NOTHING_USED, "status": "tool_failure", "detail": f"server: {error}"}
        if request["op"] == "close":
            self._end_session(request["session"])
        return None

    def self_test(self, witness: str) -> list[str]:
        """Operations that a child can't perform, as tested by a child; `witness` is a readable file outside."""
        if self.means.confinement is None:
            return []
        report = Report()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                found = child.refusals(self.means.confinement, self.means.directory, self.pid, witness)
                report.say(" ".join(found), "")
            os._exit(0)
        os.waitpid(pid, 0)
        refused, _ = report.read()
        report.close()
        return refused.split()

    def _run(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """Executes one request in its own child; None if the trainer is gone."""
        order = self._order(request, fds, self.means.directory)
        if self.means.shared_disk:
            os.mkdir(order.directory, 0o700)
        report = Report()
        started = time.monotonic()
        self.means.proc.scatter_numbers()
        pid = os.fork()
        if pid == 0:
            child.main(order, report)
        end: list[Any] = []

        def ended() -> bool:
            done, *rest = os.wait4(pid, os.WNOHANG)
            end[:] = rest
            return bool(done)

        reason = self._watch(_Task(request, order, ended, pid, Count(), 0.0), started + request["wall_s"])
        if reason:
            os.kill(pid, signal.SIGKILL)
            _, *end = os.wait4(pid, 0)
        wall_s = time.monotonic() - started
        wait_status, usage = end
        said = report.read()
        report.close()
        if order.confinement is None:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        if reason == "gone":
            return None
        used = {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime, "max_rss_kib": usage.ru_maxrss}
        return {"id": request["id"], **used, **_verdict(reason, wait_status, said, request, order)}

    def _cell(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """Executes one request in the child of its session, which is started if needed; None if the trainer is gone.

        The reply says whether the child was started for it ("opened"), and whether the child is gone now ("lost").
        """
        name, opened = request["session"], request["session"] not in self.sessions
        order = self._order(request, fds, self._directory_of(name))
        if opened:
            if self.means.shared_disk:
                os.mkdir(order.directory, 0o700)
            self.sessions[name] = Session(order, self.means.proc)
        session, started = self.sessions[name], time.monotonic()
        told = {"id": request["id"], "opened": opened}
        if not session.begin(order, request["fresh"]):
            self._end_session(name)
            return {
                **_NOTHING_USED,
                **told,
                "status": "crashed",
                "detail": "the server, because it ran while it was stopped",
            }
        self.poll.register(session.sock.fileno(), select.POLLIN)
        end: list[int] = []
        said: list[tuple[str, str]] = []

        def ended() -> bool:
            done, status = os.waitpid(session.pid, os.WNOHANG)
            end[:] = [status] if done else []
            if not said and (answer := session.answer()):
                said.append(answer)
            return bool(done or said)

        task = _Task(request, order, ended, session.pid, session.threads, cpu_s(session.pid))
        reason = self._watch(task, started + request["wall_s"])
        lost = reason in ("cancelled", "gone")
        if reason and not lost:
            session.interrupt()
            lost = self._watch(task, time.monotonic() + INTERRUPT_S, limited=False) != ""
        self.poll.unregister(session.sock.fileno())
        lost = lost or bool(end)
        used = {"wall_s": time.monotonic() - started, "cpu_s": task.used(), "max_rss_kib": 0}
        verdict = _verdict(reason, end[0] if end else 0, _said(said), request, order)
        if not lost:
            session.stop()
            verdict["over_quota"] = self._over_quota(session)
            lost = bool(verdict["over_quota"]) or verdict["status"] == "memory"
        if lost:
            self._end_session(name, reaped=bool(end))
        return None if reason == "gone" else {**told, "lost": lost, **used, **verdict}

    def _directory_of(self, session: str) -> str:
        directory = self.means.directory
        return os.path.join(os.path.dirname(directory), session) if self.means.shared_disk else directory

    def _over_quota(self, session: Session) -> str:
        """The resource of which a session keeps more than it may; "" if none."""
        if self.means.shared_disk and holds_more(session.order.directory, KEPT_FILES, KEPT_FILE_BYTES):
            return "files"
        return session.over_quota()

    def _end_session(self, name: str, reaped: bool = False) -> None:
        session = self.sessions.pop(name, None)
        if session is None:
            return
        if reaped:
            session.release()
        else:
            session.end()
        if self.means.shared_disk:
            remove(session.order.directory)

    def _order(self, request: dict[str, Any], fds: list[int], directory: str) -> child.Order:
        return child.Order(
            fds=(fds[0], fds[1], fds[2]),
            directory=directory,
            cpu_s=request["cpu_s"],
            memory_bytes=self.means.base_bytes + (request["memory_mb"] << 20),
            file_bytes=max(child.FILE_BYTES, 2 * request["output_bytes"]),
            confinement=self.means.confinement,
            parent=self.pid,
            seed=request["seed"],
            lasting="session" in request,
        )

    def _watch(self, task: _Task, deadline: float, limited: bool = True) -> str:
        """Waits until the program has ended or must be ended; returns the reason, or "" if it has ended.

        Args:
            task: the program.
            deadline: time on the monotonic clock at which it must end.
            limited: whether it must also end when it exceeds a limit.
        """
        control, threads = self.channel.sock.fileno(), self.means.threads
        while True:
            left = min(TICK_S, max(0.0, deadline - time.monotonic()))
            ready = {fd for fd, _ in self.poll.poll(left * 1000 + 1)}
            if self.wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wake, 4096)
            if threads is not None and threads.fd in ready:
                self.means.proc.scatter_numbers()
                threads.answer(task.threads)
            if task.ended():
                return ""
            reason = "wall" if time.monotonic() >= deadline else task.overdue() if limited else ""
            if control in ready or self.channel.pending():
                reason = self._told(task.request) or reason
            if reason:
                return reason

    def _await_signal(self, seconds: float) -> None:
        self.signals.poll(seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, 4096)

    def _told(self, request: dict[str, Any]) -> str:
        """Reads one message: "cancelled" or "gone" if the trainer says so, else ""; ends a session if told to."""
        received = self.channel.recv()
        if received is None:
            return "gone"
        message, fds = received
        if message["op"] == "close" and message["session"] != request.get("session"):
            self._end_session(message["session"])
        for fd in fds:
            os.close(fd)
        return "cancelled" if message["op"] == "cancel" and message["id"] == request["id"] else ""


@dataclass(frozen=True)
class _Task:
    """A program that is being monitored.

    Args:
        request: the request, with its limits.
        order: the instructions for the child, with its streams.
        ended: returns whether it has ended, and reaps it.
        pid: id of its process.
        threads: the threads of the process.
        used_before: CPU time of earlier programs of the process.
    """

    request: dict[str, Any]
    order: child.Order
    ended: Callable[[], bool]
    pid: int
    threads: Count
    used_before: float

    def used(self) -> float:
        """Its CPU time so far, in seconds."""
        return cpu_s(self.pid) - self.used_before

    def overdue(self) -> str:
        """The limit that it exceeds: "cpu", "output_limit" or ""."""
        if self.used() >= self.request["cpu_s"]:
            return "cpu"
        return "output_limit" if _too_much(self.request, self.order) else ""


def _said(said: list[tuple[str, str]]) -> tuple[str, str]:
    """The report of a session's process; after its program has begun, it can't report a failure of the sandbox."""
    status, detail = said[0] if said else ("", "")
    return ("error", "") if status == "tool_failure" else (status, detail)


_NOTHING_USED = {"wall_s": 0.0, "cpu_s": 0.0, "max_rss_kib": 0, "opened": True, "lost": True}


def _verdict(
    reason: str, wait_status: int, said: tuple[str, str], request: dict[str, Any], order: child.Order
) -> dict[str, Any]:
    """How it ended: by what the server itself observed, and only then by what its process reported."""
    if reason in ("cpu", "wall", "cancelled"):
        return {"status": "timeout", "detail": reason}
    if reason == "output_limit" or _too_much(request, order):
        return {"status": "output_limit"}
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        if number == signal.SIGXCPU:
            return {"status": "timeout", "detail": "cpu"}
        return {"status": "crashed", "detail": _signal_name(number)}
    status, detail = said
    if status == "tool_failure":
        return {"status": "tool_failure", "detail": detail}
    if status in ("error", "memory"):
        return {"status": status, "error_type": detail if detail.isidentifier() else None}
    return {"status": "error" if os.WEXITSTATUS(wait_status) else "ok"}


def _too_much(request: dict[str, Any], order: child.Order) -> bool:
    """Whether a stream's offset, which the child shares, has passed its limit."""
    return any(os.lseek(fd, 0, os.SEEK_CUR) > request["output_bytes"] for fd in order.fds[1:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
