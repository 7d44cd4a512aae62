"""A code sandbox on this machine: a fresh process for each program, forked from a small server per slot.

Threat model. The code is written by a language model in training: mostly careless, sometimes adversarial
because a reward can be had by it. On Linux (x86-64 or aarch64) this sandbox

- denies the network: no sockets, not even to the same machine or of the AF_UNIX family;
- denies processes: no fork, no exec, so nothing that it starts can outlive it (threads are allowed and die
  with it);
- denies signals to, tracing of, and limits on other processes, and the system calls that reach the kernel's
  wider surface (io_uring, bpf, namespaces, mounts, keys);
- bounds processor time, wall-clock time, address space, output, open files and the size of each file, by a
  supervisor that needs no co-operation of the code;
- gives an empty environment, an empty stdin, an empty working directory that is removed afterwards, and no
  descriptor and no memory of the trainer or of earlier programs.

It does NOT confine the file system: code can read and change whatever the user of the trainer can,
including files of answers, `/proc` of the user's other processes (their environment and, where the kernel's
ptrace policy lets it, their memory), `/dev/shm`, and the disk's free space, which is bounded only by time
and by 16 MiB a file. It is not a defence against bugs of the kernel. Statuses and error types come partly
from a process that the code controls. For code that is hostile rather than careless, run the trainer as a
user who may touch nothing of worth, or use a sandbox on another machine.

Elsewhere (macOS) none of the denials hold, nor do the address-space limit and the exact processor-time limit;
`require="weak"` must be given to run there at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Literal

from gtpo.errors import ConfigError, SandboxError
from gtpo.sandbox._child import seccomp
from gtpo.sandbox._slot import Call, Raw, Slot, SlotDied
from gtpo.sandbox.base import ExecResult, Level, Limits, Status

_ATTEMPTS = 2
_WANTED = frozenset(("network", "processes", "signals"))


class LocalSandbox:
    """Runs Python programs on this machine; see the top of the module for what it holds and what it does not.

    No state belongs to an event loop: one sandbox may be used from several loops and threads, one after the
    other or at once. It may not be used in a process forked from the one that made it.

    Args:
        slots: programs at once; by default three for each core (time-outs wait more than they work), at
        least 2.
        limits: for each program, unless `run` is given others.
        require: "seccomp" refuses to start where the denials above do not hold; "weak" takes what there is.

    Raises:
        ConfigError: `slots` or `require` is out of range.
        SandboxError: the sandbox can't start, or does not hold what `require` asks for.
    """

    def __init__(
        self,
        slots: int | None = None,
        limits: Limits | None = None,
        require: Literal["seccomp", "weak"] = "seccomp",
    ) -> None:
        if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int) or slots < 1):
            raise ConfigError(f"slots must be a whole number of at least 1, not {slots!r}")
        if require not in ("seccomp", "weak"):
            raise ConfigError(f"require must be 'seccomp' or 'weak', not {require!r}")
        self.limits = Limits() if limits is None else limits
        confine = seccomp.supported()
        if require == "seccomp" and not confine:
            raise SandboxError(
                "the sandbox has no seccomp filter for this system (it needs Linux on x86-64 or aarch64); "
                "give require='weak' to run code with your own user's network and processes open to it"
            )
        self._slots = [Slot(confine) for _ in range(slots or max(2, 3 * _cores()))]
        self._slots[0].start()
        self._refused = self._slots[0].refused
        if require == "seccomp" and not self._refused >= _WANTED:
            self._slots[0].stop()
            missing = ", ".join(sorted(_WANTED - self._refused))
            raise SandboxError(
                f"the seccomp filter does not hold here: {missing} not denied; "
                "give require='weak' to run code all the same"
            )
        self._owner = os.getpid()
        self._free: queue.LifoQueue[Slot] = queue.LifoQueue()
        for slot in reversed(self._slots):
            self._free.put(slot)
        self._threads = ThreadPoolExecutor(len(self._slots), thread_name_prefix="gtpo-sandbox")
        self._calls: set[Call] = set()
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _stop_all, self._slots, self._threads, self._owner)

    async def run(self, code: str, *, limits: Limits | None = None) -> ExecResult:
        """Runs one program in a fresh process, in its turn.

        Whatever the program does is a result. A failure of the sandbox is tried once more, then is
        `Status.INFRA`. Cancelling the task kills the program before this returns.

        Raises:
            SandboxError: the sandbox is closed, or belongs to another process.
            TypeError: `code` is not a string.
        """
        call = self._admit(code)
        try:
            job = self._threads.submit(self._run, code, limits or self.limits, call)
            waiting = asyncio.wrap_future(job)
            try:
                return await asyncio.shield(waiting)
            except asyncio.CancelledError:
                call.cancel()
                if not job.cancel():
                    await asyncio.wait([waiting])
                raise
        finally:
            self._dismiss(call)

    async def run_many(self, codes: Sequence[str], *, limits: Limits | None = None) -> list[ExecResult]:
        """Runs all, as many at once as there are slots; results in the order of `codes`.

        No item raises: one that is not even a string becomes `Status.INFRA`. A closed sandbox does raise.
        """
        self._check()
        results = await asyncio.gather(*(self.run(code, limits=limits) for code in codes), return_exceptions=True)
        return [self._as_result(result) for result in results]

    def run_sync(self, code: str, *, limits: Limits | None = None) -> ExecResult:
        """`run` for callers without an event loop; waits in the calling thread."""
        call = self._admit(code)
        try:
            return self._run(code, limits or self.limits, call)
        finally:
            self._dismiss(call)

    def level(self) -> Level:
        """What holds here, as a child of the first server found by trying."""
        if self._refused >= _WANTED:
            return Level(
                "seccomp",
                *(True, True, True, False, False),
                "Network, new processes and signals to others are denied by a seccomp filter; "
                "reads and writes of files are not confined.",
            )
        holds = {name: name in self._refused for name in sorted(_WANTED)}
        denied = ", ".join(name for name, held in holds.items() if held) or "nothing"
        return Level(
            "weak",
            *(holds["network"], holds["processes"], holds["signals"], False, False),
            f"Time and output are limited; denied: {denied}; reads and writes of files are not confined.",
        )

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
        if os.getpid() != self._owner:
            return
        with self._closing:
            if self._finalizer.alive:
                for _ in self._slots:
                    self._free.get()
                self._finalizer()
                for slot in self._slots:
                    self._free.put(slot)
                self._threads.shutdown(wait=True)

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

    def _admit(self, code: str) -> Call:
        if not isinstance(code, str):
            raise TypeError(f"code must be a string, not {type(code).__name__}")
        call = Call()
        with self._lock:
            self._check()
            self._calls.add(call)
        return call

    def _dismiss(self, call: Call) -> None:
        with self._lock:
            self._calls.discard(call)

    def _run(self, code: str, limits: Limits, call: Call) -> ExecResult:
        """One program on the next free slot, in a worker thread; never raises an Exception."""
        slot = self._free.get()
        try:
            cause = ""
            for _ in range(_ATTEMPTS):
                try:
                    raw = slot.execute(code, limits, call)
                except (SlotDied, SandboxError, OSError) as error:
                    cause = str(error)
                    continue
                if raw is None or call.cancelled:
                    return ExecResult(Status.INFRA, note="cancelled")
                if not slot.refused >= self._refused:
                    slot.stop()
                    cause = "a restarted server holds less than the first one did"
                    continue
                result = _result(raw, limits)
                if result.status is not Status.INFRA:
                    return result
                cause = result.note
            return ExecResult(Status.INFRA, note=cause)
        finally:
            self._free.put(slot)

    @staticmethod
    def _as_result(result: ExecResult | BaseException) -> ExecResult:
        if isinstance(result, ExecResult):
            return result
        if isinstance(result, Exception):
            return ExecResult(Status.INFRA, note=f"{type(result).__name__}: {result}")
        raise result


def _result(raw: Raw, limits: Limits) -> ExecResult:
    """The server's reply and the two streams as a result."""
    status, detail = Status(raw.reply["status"]), raw.reply.get("detail", "")
    cut = [len(stream) > limits.output_bytes for stream in (raw.stdout, raw.stderr)]
    stdout, stderr = (s[: limits.output_bytes].decode("utf-8", "replace") for s in (raw.stdout, raw.stderr))
    note = ""
    if status is Status.TIMEOUT:
        limit, what = (limits.cpu_s, "processor time") if detail == "cpu" else (limits.wall_s, "running time")
        note = f"timed out: more than {limit:g} s of {what}"
    elif status is Status.OUTPUT_LIMIT:
        note = f"stopped: more than {limits.output_bytes} bytes of output"
    elif status is Status.CRASHED:
        stderr += f"the process was ended by {detail}\n"
    elif status is Status.INFRA:
        note = detail
    return ExecResult(status, stdout, stderr, raw.reply["wall_s"], raw.reply.get("error_type"), any(cut), note)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stop_all(slots: list[Slot], threads: ThreadPoolExecutor, owner: int) -> None:
    """Ends the servers; does nothing in a forked copy of the process, whose servers they are not."""
    if os.getpid() != owner:
        return
    for slot in slots:
        with contextlib.suppress(OSError):
            slot.stop()
    threads.shutdown(wait=False)
