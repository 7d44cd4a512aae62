"""Rollouts of coming batches, made while the trainer updates (`--overlap`).

The rollouts of a batch begin when an earlier batch is asked for, from the newest weights that the server has. They all
come from these weights: a batch under way is not switched to newer ones. So with an overlap of N a batch is trained on
N batches after its weights were taken. TRL's importance sampling correction uses the log-probabilities under which it
was sampled; turn credit depends on rewards only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gtpo.errors import ConfigError
from gtpo.rollout.loop import Progress, RolloutBatch
from gtpo.training.sampler import EpochOrder

Row = Mapping[str, Any]
_SHOW_EVERY_S = 0.5
FRAC_CUT = "sampling/importance_sampling_ratio/frac_cut"


def share_cut(ratio: Tensor, trained_B_T: Tensor, args: Any) -> float:
    """Share of the tokens of the loss whose importance sampling ratio was truncated or, under a mask mode, set to 0.

    Args:
        ratio: as TRL leaves it, shape (B, T) or, per sequence, (B, 1).
        trained_B_T: 1 at tokens of the loss.
        args: a `GRPOConfig`, with the bounds.
    """
    cut = (ratio == 0) | (ratio >= (args.vllm_importance_sampling_clip_max or math.inf))
    cut |= ratio <= (args.vllm_importance_sampling_clip_min or 0.0)
    trained_B_T = trained_B_T.bool()
    return float((cut & trained_B_T).sum() / trained_B_T.sum().clamp(min=1))


class BatchOrder:
    """The rows of each generation batch of this process, by its number in the run, also of those to come.

    Args:
        order: of the problems.
        dataset: a map-style data set; `dataset[i]` is a row.
        batch_size: rows of one generation batch of this process.
        process, processes: which one, of how many.
    """

    def __init__(self, order: EpochOrder, dataset: Any, *, batch_size: int, process: int, processes: int) -> None:
        self._order, self._dataset = order, dataset
        self._size, self._process, self._processes = batch_size, process, processes
        self._repeats = order.sampler.repeat_count
        self.per_epoch = len(order) // (self._repeats * batch_size * processes)
        self._epoch: tuple[int, Sequence[int]] = (-1, ())

    def rows(self, number: int) -> list[Row]:
        """Rows of the batch of that number, from 0."""
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, list(self._order.of_epoch(epoch)))
        start = place * self._repeats * self._size * self._processes + self._process * self._size
        return [self._dataset[i] for i in self._epoch[1][start : start + self._size]]

    def number_at(self, epoch: float) -> int:
        """The number of the batch that is asked for first when so many epochs are done."""
        return int(epoch * self.per_epoch + 1e-6)


@dataclass(frozen=True)
class Ahead:
    """Rollouts that were begun before they were asked for.

    Attributes:
        batch: the rollouts.
        weights_step: the optimizer step after which the weights were taken that all of them were sampled from.
    """

    batch: RolloutBatch
    weights_step: int


@dataclass
class _UnderWay:
    prompts: list[Any]
    weights_step: int
    future: Future[RolloutBatch]
    told: deque[Any]


class Overlap:
    """Keeps the rollouts of the next `depth` batches under way, in an event loop in a thread of its own.

    Args:
        depth: batches ahead, at least 1.
        begin: called in the trainer's thread with the rows of a batch and where progress is told; returns its rollouts
            as a coroutine, from the weights as they are now.
    """

    def __init__(
        self, depth: int, begin: Callable[[Sequence[Row], Progress], Coroutine[Any, Any, RolloutBatch]]
    ) -> None:
        self.depth, self._begin = depth, begin
        self._batches: dict[int, _UnderWay] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock, self._busy, self._idle_since, self._idle_s = threading.Lock(), 0, 0.0, 0.0

    def take(
        self,
        number: int,
        rows: Sequence[Row],
        order: BatchOrder,
        last: int,
        weights_step: int,
        progress: Progress,
    ) -> Ahead:
        """The rollouts of a batch, waited for if need be; begins those that come after it.

        Args:
            number: of the batch, from 0.
            rows: of the batch.
            order: the rows of later batches.
            last: number of the last batch of the run.
            weights_step: the optimizer step that the newest weights are from.
            progress: told how many rollouts of this batch have ended, while it is waited for.

        Raises:
            ConfigError: the data set gave other rows ahead than it gives now.
            BackendError: see `RolloutEngine.run`.
        """
        for coming in range(number, min(number + self.depth, last) + 1):
            if coming not in self._batches:
                self._start(coming, list(rows) if coming == number else order.rows(coming), weights_step)
        found = self._batches.pop(number)
        if found.prompts != [row["prompt"] for row in rows]:
            found.future.cancel()
            raise ConfigError(
                "overlap: the training data gave other rows for a batch than were read ahead for it; use a data set "
                "whose rows stay the same, or --overlap 0"
            )
        while True:
            try:
                return Ahead(found.future.result(_SHOW_EVERY_S), found.weights_step)
            except NotYet:
                if found.future.done():  # a TimeoutError of the rollouts themselves
                    raise
                if found.told:
                    progress(*found.told[-1])

    def wait(self) -> None:
        """Until nothing is under way: for weights that are replaced in place."""
        for found in self._batches.values():
            with contextlib.suppress(Exception):  # whoever takes the batch is told
                found.future.result()

    def idle_s(self) -> float:
        """Seconds in which no rollout was under way, since this was asked last."""
        with self._lock:
            now = time.monotonic()
            spent = self._idle_s + (now - self._idle_since if self._loop and not self._busy else 0.0)
            self._idle_s, self._idle_since = 0.0, now
            return spent

    def close(self) -> None:
        """End what is under way, and the thread."""
        self._batches.clear()
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def _start(self, number: int, rows: list[Row], weights_step: int) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="gtpo-overlap", daemon=True)
            self._thread.start()
            self._idle_since = time.monotonic()
        told: deque[Any] = deque(maxlen=1)
        work = self._begin(rows, lambda *state: told.append(state))
        with self._lock:
            if not self._busy:
                self._idle_s += time.monotonic() - self._idle_since
            self._busy += 1
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(self._ended)
        self._batches[number] = _UnderWay([row["prompt"] for row in rows], weights_step, future, told)

    def _ended(self, future: Future[RolloutBatch]) -> None:
        with self._lock:
            self._busy -= 1
            if not self._busy:
                self._idle_since = time.monotonic()


async def _cancel_all() -> None:
    """Cancel the tasks of this loop and wait until they have cleaned up."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
