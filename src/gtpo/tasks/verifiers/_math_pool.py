"""A pool of processes that compare answers, each with a CPU-time limit that is enforced from outside.

math-verify limits its time by SIGALRM, which works only in the main thread and can't interrupt a long
computation in C. Here a process that exceeds its limit is killed and replaced. A process that other work keeps from
running gets up to `LONGER` times as much wall-clock time. The processes are started afresh, never forked from the
caller, so they are safe with threads and CUDA, and do not run the caller's `__main__` again, unlike those of
multiprocessing and pebble.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import IO, Any

from gtpo.errors import VerifierError

STARTUP_S = 120.0
LONGER = 2.0
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from gtpo.tasks.verifiers._math_worker import main; main(int(sys.argv[2]))"
)


@dataclass(frozen=True)
class Reply:
    """The reply to a request.

    Attributes:
        equal: whether the answers are equal.
        reason: one short sentence.
        gold_unusable: why the gold answer can't be used, or None if it can.
        timed_out: whether the comparison reached the time limit.
    """

    equal: bool
    reason: str
    gold_unusable: str | None = None
    timed_out: bool = False


class Worker:
    """One process. Not safe to share between threads; started by the first request."""

    def __init__(self, timeout_s: float, memory_bytes: int):
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._unread = b""
        self._requests = 0

    @property
    def pid(self) -> int | None:
        """Process id, or None if it does not run."""
        return self._process.pid if self._process else None

    def ask(self, candidate: str | None, gold: str) -> Reply:
        """Compares the candidate with the gold answer; None only checks whether the gold answer can be read.

        A process that is gone, or that is stuck on the gold answer, is replaced and the request is sent once more:
        something else may have ended the process or kept the machine busy.

        Raises:
            VerifierError: no process can be started.
        """
        for _ in range(2):
            try:
                if (reply := self._ask(candidate, gold)) is not None:
                    return reply
                reason = f"timed out after {self._timeout_s:g} s"
                failure = Reply(False, reason, f"math-verify {reason}")
            except (EOFError, BrokenPipeError):
                self.stop()
                failure = Reply(False, "the process that compared it died twice")
        return failure

    def _ask(self, candidate: str | None, gold: str) -> Reply | None:
        """Makes one attempt; None if reading the gold answer timed out."""
        process = self._process or self._start()
        self._requests += 1
        request = {"id": self._requests, "gold": gold, "candidate": candidate, "limit_s": self._timeout_s}
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        start, used, gold_read = time.monotonic(), self._processor_s(), False
        deadline = start + self._timeout_s
        while True:
            answer = self._read(deadline)
            left = used + self._timeout_s - self._processor_s()
            if answer is None and left > 0.05 and deadline < start + LONGER * self._timeout_s:
                deadline = min(deadline + left, start + LONGER * self._timeout_s)
                continue
            if answer is None:
                self.stop()
                return Reply(False, f"timed out after {self._timeout_s:g} s", timed_out=True) if gold_read else None
            if answer.get("id") != self._requests:
                raise EOFError("an answer to another request")
            if "unusable" in answer:
                return Reply(False, "the gold answer is unusable", answer["unusable"])
            if "equal" in answer:
                return Reply(answer["equal"], answer["reason"])
            gold_read = True

    def _start(self) -> subprocess.Popen[bytes]:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        self._unread = b""
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _BOOTSTRAP,
                json.dumps([p for p in sys.path if isinstance(p, str)]),
                str(self._memory_bytes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # sympy orders some terms by hash: a fixed seed makes verdicts repeatable.
            env={**os.environ, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        try:
            ready = self._read(time.monotonic() + STARTUP_S)
        except EOFError:
            ready = None
        if ready is None:
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace").strip()[-2000:]
            self.stop()
            raise VerifierError(f"can't start a process for math-verify (is it installed?): {said or 'no output'}")
        return self._process

    def _processor_s(self) -> float:
        """CPU time of the process so far; where it can't be read, the wall-clock time."""
        assert self._process is not None
        try:
            return time.clock_gettime((~self._process.pid << 3) | 2)  # Linux's clock of that process
        except (OSError, OverflowError):
            return time.monotonic()

    def _read(self, deadline: float) -> dict[str, Any] | None:
        """Returns the next line, or None after the deadline. Raises EOFError if the process is gone."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            chunk = os.read(fd, 65536)
            if not chunk:
                raise EOFError("the process ended")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def stop(self) -> None:
        """Kills the process if it runs; the next request starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


class WorkerPool:
    """Up to `size` workers, each with one request at a time. Safe to use from any thread."""

    def __init__(self, size: int, timeout_s: float, memory_bytes: int):
        self.size = size
        self._make = lambda: Worker(timeout_s, memory_bytes)
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._idle = [self._make() for _ in range(self.size)]
        self._workers = tuple(self._idle)
        self._free = threading.Semaphore(self.size)

    def ask(self, candidate: str | None, gold: str) -> Reply:
        """Calls `Worker.ask` of a free worker; waits if there is none."""
        with self._lock:
            if self._owner != os.getpid():  # a fork of the process that started the workers: their pipes are not ours
                self._reset()
        with self._free:
            with self._lock:
                worker = self._idle.pop()
            try:
                return worker.ask(candidate, gold)
            except BaseException:
                worker.stop()  # a reply may be under way: it must not be read as the reply to another request
                raise
            finally:
                with self._lock:
                    self._idle.append(worker)

    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """Ends the idle workers; the next request starts them again."""
        if self._owner == os.getpid():
            with self._lock:
                for worker in self._idle:
                    worker.stop()
