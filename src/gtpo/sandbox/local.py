"""A code sandbox on this machine: a fresh process for each program, forked from a small server per worker.

Threat model. The code is written by a language model in training: mostly careless, sometimes adversarial because a
reward can be had by it. On Linux (x86-64 or aarch64) this sandbox

- denies the network: no sockets, not even to the same machine or of the AF_UNIX family;
- denies processes: no fork, no exec, so nothing that it starts can outlive it (threads are allowed and die with it);
- denies signals to, tracing of, questions about, and limits on other processes, and every system call that ordinary
  Python does not need (io_uring, bpf, namespaces, mounts, keys, timers, locks on the machine's files);
- confines files: only the Python installation can be read, only a file system of the program's own, in memory, can be
  written or changed, and it is gone after the program;
- bounds processor time, wall-clock time, address space, threads, output, open files and the size of files, by a
  supervisor that needs no co-operation of the code;
- gives an empty environment, an empty stdin, no descriptor and no memory of the trainer or of other programs; a session
  is stopped between its programs, and ended if it runs nevertheless.

How much of it holds depends on the machine; `gtpo.sandbox.levels` names the levels, `level()` tells what was found by
trying, and `require=` refuses to start below one. Nothing falls to a weaker level without being told to.

It is not a defence against bugs of the kernel or against side channels. Statuses and error types come partly from a
process that the code controls, so no reward may depend on them alone. For code that is hostile rather than careless
use a sandbox on another machine (`gtpo.sandbox.SandboxFusionSandbox`), behind gVisor or a virtual machine.

Elsewhere (macOS) none of the denials hold, nor do the address-space limit and the exact processor-time limit;
`require="weak"` must be given to run there at all.
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
"""A worker that fails so often in a row gets no program for so long: failing is fast, and would draw the work."""
STATE_LOST = "what earlier code defined is lost"
Require = Literal["namespaces", "landlock", "seccomp", "weak"]
"""The least isolation that a sandbox must have to start, from strictest to weakest."""


class LocalSandbox:
    """Runs Python programs on this machine; see the top of the module for what it holds and what it does not.

    No state belongs to an event loop: one sandbox may be used from several loops and threads, one after the
    other or at once. It may not be used in a process forked from the one that made it.

    Args:
        max_workers: programs at once; by default three for each core, and up to eight where programs take longer than a
            quarter of a second, as time-outs wait more than they work. A worker costs nothing before it is needed.
        limits: for each program, unless `run` is given others.
        require: the weakest level of `gtpo.sandbox.levels` to start with. The strongest that this machine allows
            is used in any case.
        warm: further programs to run once in the scientific server before its first call, so that what they load
            and cache is there.

    Raises:
        ConfigError: `max_workers` or `require` is out of range.
        SandboxError: the sandbox can't start, or does not hold what `require` asks for.
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
                "the sandbox has no confinement for this system (it needs Linux on x86-64 or aarch64); "
                "give require='weak' to run code with your own user's files, network and processes open to it"
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
        """Programs at once, at most."""
        return len(self._seats)

    async def run(
        self, code: str, *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> ExecResult:
        """Runs one program in a fresh process, in its turn.

        Whatever the program does is a result. A failure of the sandbox is tried once more, then is
        `Status.TOOL_FAILURE`. Cancelling the task kills the program before this returns.

        Args:
            code: source text.
            limits: of this program; the sandbox's own by default.
            seed: of `random` and numpy's global generator; fresh randomness by default.
            key: whose turn it takes; programs of different keys are served in turn.

        Raises:
            SandboxError: the sandbox is closed, or belongs to another process.
            TypeError: `code` is not a string.
        """
        call, job = self._submit(code, limits, seed, key)
        return await killed_if_cancelled(job, call.cancel)

    async def run_many(
        self, codes: Sequence[str], *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> list[ExecResult]:
        """Runs all, as many at once as there are workers; results in the order of `codes`.

        No item raises: one that is not even a string becomes `Status.TOOL_FAILURE`. A closed sandbox does raise.
        """
        self._check()
        jobs = (self.run(code, limits=limits, seed=seed, key=key) for code in codes)
        return await all_results(jobs)

    def run_sync(
        self, code: str, *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> ExecResult:
        """`run` for callers without an event loop; waits in the calling thread."""
        call, job = self._submit(code, limits, seed, key)
        return killed_if_interrupted(job, call.cancel)

    def session(self, *, fresh: bool = False, seed: int | None = None) -> LocalSession:
        """One process for several programs of a rollout; use it as an asynchronous context manager or close it.

        Args:
            fresh: give each program new globals. What a program changes elsewhere (files of the session's own
                directory, attributes of modules) stays for the next one in any case.
            seed: of `random` and numpy's global generator when the process starts; fresh randomness by default.
        """
        self._check()
        return LocalSession(self._submit_cell, self._end_session, fresh, seed)

    def level(self) -> Level:
        """What holds here, as a child of the first server found by trying."""
        return self._level

    async def aclose(self) -> None:
        """Kills what is running, gives back every process, thread, descriptor and directory; idempotent."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """`aclose` for callers without an event loop."""
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
            raise SandboxError("the sandbox is closed")
        if os.getpid() != self._owner:
            raise SandboxError("the sandbox belongs to the process that made it; make a new one after a fork")

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
        """One program of a session."""
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
        """One program on a seat that has nothing else to do, in a worker thread; never raises an Exception."""
        result = seat.run(worker, code, limits, call, options, self._refused, **state)
        if seat.failures >= _FAILURES:
            self._dispatcher.rest(seat, _REST_S)
        return result


def _start_first(launch: Launch) -> tuple[Worker, tuple[str, ...]]:
    """The first server, with namespaces if `launch` wants them and the machine has them; and what it could not have."""
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
        f"the sandbox reaches only the level '{level.name}' here, not '{require}'{notes}. {level.sentence} "
        f"Give require='{weaker[0]}' if that is enough for you"
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stop_all(seats: list[Seat], owner: int) -> None:
    """Ends the servers; does nothing in a forked copy of the process, whose servers they are not."""
    if os.getpid() != owner:
        return
    for seat in seats:
        seat.stop()
