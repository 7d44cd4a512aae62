"""Scheduling: one queue per key, served in turn, over a fixed number of seats."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Seat = TypeVar("Seat", bound=Hashable)
Result = TypeVar("Result")
PATIENCE_S = 0.25


class Dispatcher(Generic[Seat]):
    """Runs jobs in threads, one at a time on each seat.

    Keys take turns, so a key with a thousand jobs does not keep another waiting for all of them. The jobs of a key
    begin in the order in which they were submitted; a job that needs a busy seat delays its key.

    Args:
        seats: the seats; the first ones are preferred, so that no more are used than needed.
        max_fast_jobs: maximum number of seats in use at once, not counting those whose job has run for longer than
            `PATIENCE_S`; default: all. So a few very long jobs do not delay others, and short jobs do not slow each
            other down.
    """

    def __init__(self, seats: Sequence[Seat], max_fast_jobs: int | None = None) -> None:
        self._idle = list(reversed(seats))
        self._max_fast_jobs = max_fast_jobs or len(seats)
        self._began: dict[int, float] = {}  # by number of the job, only those that count for `max_fast_jobs`
        self._rests_until: dict[Seat, float] = {}
        self._numbers = itertools.count()
        self._alarm: threading.Timer | None = None
        self._queues: OrderedDict[Hashable, deque[tuple[Seat | None, Callable[[Seat], None]]]] = OrderedDict()
        self._size = len(seats)
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._threads = ThreadPoolExecutor(len(seats), thread_name_prefix="gtpo-sandbox")

    def submit(
        self, work: Callable[[Seat], Result], *, key: Hashable = None, seat: Seat | None = None
    ) -> Future[Result]:
        """Queues `work(seat)`.

        Args:
            work: function that is called in a thread with the assigned seat.
            key: the queue of the job.
            seat: the seat that it needs, or None for any.

        Returns:
            The future result; cancelling it before the job begins removes the job from the queue.
        """
        future: Future[Result] = Future()

        def job(got: Seat) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work(got)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            self._queues.setdefault(key, deque()).append((seat, job))
            self._start()
        return future

    def rest(self, seat: Seat, seconds: float) -> None:
        """Gives a seat only jobs that need this seat, for a while; if all seats rest, they work nevertheless."""
        with self._lock:
            self._rests_until[seat] = time.monotonic() + seconds

    def rests(self, seat: Seat) -> bool:
        """Whether a seat rests: it gets only jobs that need this seat."""
        return self._rests_until.get(seat, 0.0) > time.monotonic()

    def shutdown(self) -> None:
        """Waits until nothing is queued or running, then ends the threads; nothing may be submitted afterwards."""
        with self._lock:
            while self._queues or len(self._idle) < self._size:
                self._settled.wait()
            if self._alarm:
                self._alarm.cancel()
        self._threads.shutdown(wait=True)

    def _start(self) -> None:
        """Assigns idle seats to waiting jobs, one per key in turn; the lock is held."""
        now = time.monotonic()
        self._began = {job: began for job, began in self._began.items() if now - began < PATIENCE_S}
        progress = True
        while progress and self._idle:
            progress = False
            for key in list(self._queues):
                wanted = self._queues[key][0][0]
                if wanted is None and len(self._began) < self._max_fast_jobs:
                    seat = self._free(now)
                else:
                    seat = wanted if wanted in self._idle else None
                if seat is not None:
                    self._begin(key, seat)
                    progress = True
        changes = [began + PATIENCE_S for began in self._began.values()]
        changes += [until for until in self._rests_until.values() if until > now]
        if self._queues and self._idle and changes and self._alarm is None:
            self._alarm = threading.Timer(min(changes) - now + 0.001, self._ring)
            self._alarm.daemon = True
            self._alarm.start()

    def _free(self, now: float) -> Seat | None:
        """Returns the idle seat to use next, None if there is none; the lock is held."""
        resting = {seat for seat, until in self._rests_until.items() if until > now}
        usable = (seat for seat in reversed(self._idle) if seat not in resting or len(resting) == self._size)
        return next(usable, None)

    def _ring(self) -> None:
        """Called when a job has become a long one, or a seat has finished its rest."""
        with self._lock:
            self._alarm = None
            self._start()

    def _begin(self, key: Hashable, seat: Seat) -> None:
        """Starts the first job of `key` and moves the key to the end of the line; the lock is held."""
        queue = self._queues[key]
        _, job = queue.popleft()
        if queue:
            self._queues.move_to_end(key)
        else:
            del self._queues[key]
        self._idle.remove(seat)
        number = next(self._numbers)
        self._began[number] = time.monotonic()
        self._threads.submit(self._work, seat, job, number)

    def _work(self, seat: Seat, job: Callable[[Seat], None], number: int) -> None:
        try:
            job(seat)
        finally:
            with self._lock:
                self._began.pop(number, None)
                self._idle.append(seat)
                self._start()
                self._settled.notify_all()
