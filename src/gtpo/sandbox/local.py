"""A code sandbox on this machine: each program runs in a fresh process, forked from a small server per worker.

Threat model: the code is written by a language model in training. It is mostly careless, and sometimes adversarial,
because that may increase the reward. On Linux (x86-64 or aarch64) this sandbox

- denies network access: no sockets, not even to the same machine or of the AF_UNIX family;
- denies new processes: no fork and no exec, so nothing that a program starts can outlive it (threads are allowed and
  end with it);
- denies signals to, tracing of, queries about, and limits on other processes, and every system call that ordinary
  Python does not need (io_uring, bpf, namespaces, mounts, keys, timers, locks on the machine's files);
- confines files: only the Python installation can be read, and only the program's own file system in memory can be
  written or changed; it is removed after the program;
- limits CPU time, wall-clock time, address space, threads, output, open files and the size of files, by a supervisor
  that does not depend on the code's cooperation;
- provides an empty environment, an empty stdin, and no descriptors or memory of the trainer or of other programs. A
  session is stopped between its programs, and ended if it runs nevertheless.

The machine determines how much of this holds: `gtpo.sandbox.levels` names the levels, `level()` returns the level that
was found by testing, and `require=` refuses to start below a level. The sandbox never uses a weaker level than
`require` on its own.

It does not protect against kernel bugs or side channels. Statuses and error types come partly from a process that the
code controls, so do not let a reward depend on them alone. For hostile rather than careless code, use a sandbox on
another machine (`gtpo.sandbox.SandboxFusionSandbox`), behind gVisor or a virtual machine.

On other systems (macOS) none of these denials hold, nor do the address-space limit and the exact CPU-time limit;
running there requires `require="weak"`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

from gtpo.errors import ConfigError, SandboxError
from gtpo.sandbox import preload
from gtpo.sandbox._child import seccomp
from gtpo.sandbox._dispatch import Dispatcher
from gtpo.sandbox._jobs import all_results, killed_if_cancelled, killed_if_interrupted
from gtpo.sandbox._seat import Seat
from gtpo.sandbox._session import LocalSession
from gtpo.sandbox._worker import Call, Launch, Worker
from gtpo.sandbox.base import ExecResult, Limits, Status
from gtpo.sandbox.levels import REQUIREMENTS, Level, level_of

_FAILURES, _REST_S = 3, 30.0
"""After this many failures in a row, a worker gets no program for this long: a worker that fails fast attracts work."""
STATE_LOST = "what earlier code defined is lost"
Require = Literal["namespaces", "landlock", "seccomp", "weak"]
"""The minimum isolation that a sandbox must have to start, from strictest to weakest."""


class LocalSandbox:
    """Runs Python programs on this machine; the module `gtpo.sandbox.local` documents what it protects against.

    The sandbox is not tied to an event loop: it may be used from several loops and threads, one after the other or at
    the same time. It must not be used in a process forked from the one that created it.

    Args:
        max_workers: maximum number of programs that run at once. Default: three per core, and up to eight per core if
            programs run longer than a quarter of a second, since programs that time out mostly wait. A worker costs
            nothing before it is needed.
        limits: default limits of each program; `run` can override them.
        require: the weakest level of `gtpo.sandbox.levels` with which the sandbox may start. It always uses the
            strongest level that this machine allows.
        warm: additional programs to run once in the server with numpy and sympy before its first call, so that the
            modules and caches that they load are available.

    Raises:
        ConfigError: `max_workers` or `require` is out of range.
        SandboxError: the sandbox can't start, or does not reach the level `require`.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        limits: Limits | None = None,
        require: Require = "landlock",
        warm: Sequence[str] = (),
    ) -> None:
        if max_workers is not None and (
            isinstance(max_workers, bool) or not isinstance(max_workers, int) or max_workers < 1
        ):
            raise ConfigError(f"max_workers must be a whole number of at least 1, not {max_workers!r}")
        if require not in REQUIREMENTS:
            raise ConfigError(f"require must be one of {', '.join(REQUIREMENTS)}, not {require!r}")
        self.limits = Limits() if limits is None else limits
        confine = seccomp.supported()
        if require != "weak" and not confine:
            raise SandboxError(
                "the sandbox can't confine programs on this system (it needs Linux on x86-64 or aarch64); pass "
                "require='weak' to run code with full access to your user's files, network and processes"
            )
        first, notes = _start_first(Launch(confine=confine, namespaces=confine))
        self._refused = first.refused
        self._level = level_of(self._refused, first.hello["landlock"], (*notes, *first.hello["notes"]))
        if not self._refused >= REQUIREMENTS[require]:
            first.stop()
            raise SandboxError(_too_weak(self._level, require))
        science = tuple(preload.installed())
        programs = (*preload.warm_up(list(science)), *warm)
        self._seats = [Seat(first.launch, science, programs) for _ in range(max_workers or 8 * _cores())]
        self._seats[0].light = first
        self._owner = os.getpid()
        self._dispatcher = Dispatcher(self._seats, max_fast_jobs=max_workers or 3 * _cores())
        self._calls: set[Call] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _stop_all, self._seats, self._owner)

    @property
    def max_workers(self) -> int:
        """Maximum number of programs that run at once."""
        return len(self._seats)

    async def run(
        self, code: str, *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> ExecResult:
        """Runs one program in a fresh process as soon as a worker is free.

        Whatever the program does gives a result, never an exception. If the sandbox fails, the program is tried once
        more; if it fails again, the status is `Status.TOOL_FAILURE`. Cancelling the task kills the program before this
        returns.

        Args:
            code: source code of the program.
            limits: limits of this program; default: those of the sandbox.
            seed: seed for `random` and numpy's global generator; default: fresh randomness.
            key: the queue of the program, for example its rollout; queues of different keys take turns.

        Raises:
            SandboxError: the sandbox is closed, or was created by another process.
            TypeError: `code` is not a string.
        """
        call, job = self._submit(code, limits, seed, key)
        return await killed_if_cancelled(job, call.cancel)

    async def run_many(
        self, codes: Sequence[str], *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> list[ExecResult]:
        """Runs all programs, as many at once as there are workers; returns results in the order of `codes`.

        No item raises: an item that is not a string becomes `Status.TOOL_FAILURE`. A closed sandbox raises.
        """
        self._check()
        jobs = (self.run(code, limits=limits, seed=seed, key=key) for code in codes)
        return await all_results(jobs)

    def run_sync(
        self, code: str, *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> ExecResult:
        """Like `run`, for callers without an event loop; blocks the calling thread."""
        call, job = self._submit(code, limits, seed, key)
        return killed_if_interrupted(job, call.cancel)

    def session(self, *, fresh: bool = False, seed: int | None = None) -> LocalSession:
        """Returns a session: one process that runs several programs of a rollout.

        Use it as an asynchronous context manager, or close it.

        Args:
            fresh: give each program new globals. What a program changes elsewhere (files in the session's directory,
                attributes of modules) is kept for the next one in any case.
            seed: seed for `random` and numpy's global generator when the process starts; default: fresh randomness.
        """
        self._check()
        return LocalSession(self._submit_cell, self._end_session, fresh, seed)

    def level(self) -> Level:
        """Returns the isolation on this machine, as tested by a child of the first server."""
        return self._level

    async def aclose(self) -> None:
        """Kills running programs and frees all processes, threads, descriptors and directories; idempotent."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """Like `aclose`, for callers without an event loop."""
        with self._lock:
            self._closed = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()
        if os.getpid() == self._owner:
            self._dispatcher.shutdown()
            self._finalizer()

    async def __aenter__(self) -> LocalSandbox:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check(self) -> None:
        if self._closed:
            raise SandboxError("the sandbox is closed; create a new one")
        if os.getpid() != self._owner:
            raise SandboxError("the sandbox was created by another process; create a new one after a fork")

    def _submit(
        self, code: str, limits: Limits | None, seed: int | None, key: Hashable
    ) -> tuple[Call, Future[ExecResult]]:
        if not isinstance(code, str):
            raise TypeError(f"code must be a string, not {type(code).__name__}")
        within = limits or self.limits
        return self._queue(
            lambda seat, call: self._run(seat, seat.worker_for(code), code, within, call, {"seed": seed}), key
        )

    def _submit_cell(self, session: LocalSession, code: str, limits: Limits | None) -> tuple[Call, Future[ExecResult]]:
        if not isinstance(code, str):
            raise TypeError(f"code must be a string, not {type(code).__name__}")
        within = limits or self.limits
        with self._lock:
            self._check()
            if session.seat is None:
                session.seat = min(self._seats, key=lambda seat: (self._dispatcher.rests(seat), seat.sessions))
                session.seat.sessions += 1
            seat = session.seat
            session.under_way += 1
        call, job = self._queue(lambda seat, call: self._run_cell(session, seat, code, within, call), session, seat)
        job.add_done_callback(lambda job: self._cell_done(session) if job.cancelled() else None)
        return call, job

    def _cell_done(self, session: LocalSession) -> None:
        with self._lock:
            session.under_way -= 1

    def _queue(
        self, work: Callable[[Seat, Call], ExecResult], key: Hashable, seat: Seat | None = None
    ) -> tuple[Call, Future[ExecResult]]:
        call = Call()
        with self._lock:
            self._check()
            self._calls.add(call)
            job = self._dispatcher.submit(lambda seat: work(seat, call), key=key, seat=seat)
        job.add_done_callback(lambda _: self._dismiss(call))
        return call, job

    def _dismiss(self, call: Call) -> None:
        with self._lock:
            self._calls.discard(call)

    def _run_cell(self, session: LocalSession, seat: Seat, code: str, limits: Limits, call: Call) -> ExecResult:
        """Runs one program of a session."""
        try:
            return self._run_cell_in_turn(session, seat, code, limits, call)
        finally:
            self._cell_done(session)

    def _run_cell_in_turn(self, session: LocalSession, seat: Seat, code: str, limits: Limits, call: Call) -> ExecResult:
        options = {"op": "cell", "session": session.name, "fresh": session.fresh, "seed": session.seed}
        had_state = session.alive and not session.fresh
        session.alive = False
        result = self._run(seat, seat.scientific, code, limits, call, options, had_state=had_state)
        session.alive = result.status is not Status.TOOL_FAILURE and not result.session_lost
        if result.session_lost and not session.fresh:
            return replace(result, note="; ".join(filter(None, (result.note, STATE_LOST))))
        return result

    def _end_session(self, session: LocalSession) -> None:
        with self._lock:
            seat = session.seat
            if seat is None or self._closed or os.getpid() != self._owner:
                return
            session.seat, session.alive = None, False
            seat.sessions -= 1
            ended = None
            if session.under_way:  # after its own programs, but behind those of no other
                work = lambda seat: seat.scientific.end_session(session.name)  # noqa: E731
                ended = self._dispatcher.submit(work, key=session, seat=seat)
        if ended is not None:
            ended.result()
        else:
            seat.scientific.end_session(session.name)

    def _run(
        self, seat: Seat, worker: Worker, code: str, limits: Limits, call: Call, options: dict[str, Any], **state: bool
    ) -> ExecResult:
        """Runs one program on an idle seat, in a worker thread; never raises an Exception."""
        result = seat.run(worker, code, limits, call, options, self._refused, **state)
        if seat.failures >= _FAILURES:
            self._dispatcher.rest(seat, _REST_S)
        return result


def _start_first(launch: Launch) -> tuple[Worker, tuple[str, ...]]:
    """Starts the first server, with namespaces if requested and available; also returns what is not available."""
    first = Worker(launch)
    try:
        first.start()
        return first, ()
    except SandboxError as error:
        if not launch.namespaces:
            raise
        without = Worker(replace(launch, namespaces=False))
        without.start()
        return without, (f"no namespaces: {error}",)


def _too_weak(level: Level, require: str) -> str:
    notes = f" ({'; '.join(level.notes)})" if level.notes else ""
    weaker = [name for name in REQUIREMENTS if list(REQUIREMENTS).index(name) >= list(REQUIREMENTS).index(level.name)]
    return (
        f"the sandbox reaches only the level '{level.name}' on this machine, not '{require}'{notes}. {level.sentence} "
        f"If that is enough for you, pass require='{weaker[0]}'"
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stop_all(seats: list[Seat], owner: int) -> None:
    """Ends the servers; does nothing in a forked copy of the process, which does not own them."""
    if os.getpid() != owner:
        return
    for seat in seats:
        seat.stop()
