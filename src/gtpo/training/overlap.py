"""Rollouts of upcoming batches, generated while the trainer updates (`--overlap`).

The rollouts of a batch start when an earlier batch is requested, from the newest weights that the server has. They all
come from these weights: a batch in progress is not switched to newer ones. So with an overlap of N, a batch is trained
on N batches after its weights were taken, and a late group (`--min_groups`) later than that. TRL's importance sampling
correction uses the log-probabilities under which the rollouts were sampled; turn credit depends on rewards only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from gtpo.errors import ConfigError
from gtpo.rollout.loop import Progress
from gtpo.training.groups import Counts, Draw, Group, Row
from gtpo.training.sampler import EpochOrder

_SHOW_EVERY_S = 0.5
FRAC_CUT = "sampling/importance_sampling_ratio/frac_cut"


def share_cut(ratio: Tensor, trained_B_T: Tensor, args: Any) -> float:
    """Share of the tokens of the loss whose importance sampling ratio was truncated or, in a mask mode, set to 0.

    Args:
        ratio: the ratio as computed by TRL, shape (B, T) or, per sequence, (B, 1).
        trained_B_T: 1 at tokens of the loss.
        args: a `GRPOConfig`, with the bounds.
    """
    cut = (ratio == 0) | (ratio >= (args.vllm_importance_sampling_clip_max or math.inf))
    cut |= ratio <= (args.vllm_importance_sampling_clip_min or 0.0)
    trained_B_T = trained_B_T.bool()
    return float((cut & trained_B_T).sum() / trained_B_T.sum().clamp(min=1))


class BatchOrder:
    """The problems of each generation batch of this process by its number in the run, including future batches.

    Args:
        order: the order of the problems.
        dataset: a map-style data set; `dataset[i]` is a row.
        batch_size: number of rows in one generation batch of this process.
        process, processes: index of this process, and number of processes.
        group_size: rollouts per problem; if the batch does not consist of whole groups, it is a single draw.
    """

    def __init__(
        self,
        order: EpochOrder,
        dataset: Any,
        *,
        batch_size: int,
        process: int,
        processes: int,
        group_size: int = 1,
    ) -> None:
        self._order, self._dataset = order, dataset
        self._size, self._process, self._processes = batch_size, process, processes
        self._group_size = group_size if batch_size % group_size == 0 else batch_size
        self._whole_groups = self._group_size == group_size
        self._repeats = order.sampler.repeat_count
        self.per_epoch = len(order) // (self._repeats * batch_size * processes)
        self._epoch: tuple[int, Sequence[int]] = (-1, ())

    @property
    def groups(self) -> int:
        """Number of draws in a batch of this process."""
        return self._size // self._group_size

    def draws(self, number: int) -> list[Draw]:
        """The draws of the batch with this number, from 0."""
        start, indices = self._place(number)
        own = indices[start : start + self._size]
        return [self._draw(own[i : i + self._group_size]) for i in range(0, self._size, self._group_size)]

    def in_groups(self, rows: Sequence[Row]) -> list[Draw]:
        """The rows of a batch, as the data loader gives them, as draws."""
        return [Draw(tuple(rows[i : i + self._group_size])) for i in range(0, len(rows), self._group_size)]

    def drawn(self, index: int) -> Draw:
        """A draw of the problem at an index of the data set."""
        return self._draw([index] * self._group_size)

    def spare(self, number: int, seed: int, most: int) -> list[Draw]:
        """Further problems for a batch, in random order, none of which is in it; different ones for each process.

        Args:
            number: number of the batch.
            seed: seed of the run.
            most: maximum number of problems.
        """
        start, indices = self._place(number)
        first = start - self._process * self._size
        inside = {*indices[first : first + self._size * self._processes]}
        others = [i for i in range(len(self._dataset)) if i not in inside]
        random.Random(f"{seed} {number}").shuffle(others)
        return [self.drawn(index) for index in others[self._process :: self._processes][:most]]

    def number_at(self, epoch: float) -> int:
        """The number of the first batch after this many epochs."""
        return int(epoch * self.per_epoch + 1e-6)

    def _place(self, number: int) -> tuple[int, Sequence[int]]:
        """Where the rows of this process begin in the order of their epoch, and that order."""
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, list(self._order.of_epoch(epoch)))
        start = place * self._repeats * self._size * self._processes + self._process * self._size
        return start, self._epoch[1]

    def _draw(self, indices: Sequence[int]) -> Draw:
        return Draw(tuple(self._dataset[i] for i in indices), indices[0] if self._whole_groups else None)


@dataclass
class _Source:
    """The rollouts of one generation batch in progress.

    Attributes:
        draws: its problems.
        future: the future of its rollouts; returns their counts.
        owed: number of groups that it has yet to deliver.
        ready: complete groups that have not been taken.
        given: indices of the problems that were taken.
    """

    draws: Sequence[Draw]
    future: Future[Counts]
    owed: int
    ready: list[Group]
    given: list[int | None]
    told: deque[Any]


class Begin(Protocol):
    """Starts the rollouts of a batch; called in the trainer's thread."""

    def __call__(
        self,
        number: int,
        draws: Sequence[Draw],
        progress: Progress,
        on_group: Callable[[Group], None],
        order: BatchOrder,
    ) -> Coroutine[Any, Any, Counts]:
        """The rollouts as a coroutine, from the current weights.

        Args:
            number: number of the batch.
            draws: its problems.
            progress, on_group: see `GroupRollouts.run`.
            order: the problems of all batches.
        """
        ...


class Overlap:
    """Keeps the rollouts of the next `depth` batches in progress, in an event loop in a separate thread.

    A batch consists of its own groups and, if some of these are late, of groups of the next batches that are already
    complete; late groups go into the next batch. So each group is trained on once, in the order of the problems except
    for late ones.

    Args:
        depth: number of batches ahead, at least 1.
        begin: starts the rollouts of a batch.
        min_groups: share of a batch's groups that must be complete before the batch is returned, in (0, 1].
    """

    def __init__(self, depth: int, begin: Begin, min_groups: float = 1.0) -> None:
        self.depth, self.min_groups, self._begin = depth, min_groups, begin
        self._sources: dict[int, _Source] = {}
        self._counts, self._number = Counts(), -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._busy, self._idle_since, self._idle_s = 0, 0.0, 0.0
        self._resumed: dict[int, list[int]] = {}

    def take(self, number: int, rows: Sequence[Row], order: BatchOrder, last: int, progress: Progress) -> list[Group]:
        """The groups of a batch, after waiting for them if needed; starts the batches after it.

        Args:
            number: number of the batch, from 0.
            rows: the rows that the data loader gives for it.
            order: the problems of all batches.
            last: number of the last batch of the run.
            progress: called while waiting, with the number of rollouts of this batch that have ended.

        Raises:
            ConfigError: the data set gives other rows now than when it was read ahead.
            BackendError: see `RolloutEngine.run`.
        """
        for earlier, indices in self._resumed.items():
            self._start(earlier, [order.drawn(index) for index in indices], order)
        self._resumed = {}
        for coming in range(number, min(number + self.depth, last) + 1):
            if coming not in self._sources:
                self._start(coming, order.draws(coming), order)
        found, sources = self._sources[number], dict(self._sources)
        ahead = found.draws if len(found.draws) == order.groups else order.draws(number)  # resumed: some were given
        if [row["prompt"] for draw in ahead for row in draw.rows] != [row["prompt"] for row in rows]:
            raise ConfigError(
                "overlap: the training data gave other rows for a batch than when it was read ahead; use a data set "
                "whose rows stay the same, or --overlap 0"
            )
        with self._changed:
            while not self._enough(sources, number, order.groups):
                self._changed.wait(_SHOW_EVERY_S)
                if found.told:
                    progress(*found.told[-1])
            taken = _ready(sources)[: order.groups]
            for source, group in taken:
                source.ready.remove(group)
                source.given.append(group.draw.index)
                source.owed -= 1
            self._number = number
            self._sources = {key: source for key, source in sources.items() if source.owed or key > number}
        return [group for _, group in taken]

    def counts(self) -> Counts:
        """Counts of the batches whose rollouts have all ended since the last call; see `GroupRollouts.run`."""
        with self._changed:
            found, self._counts = self._counts, Counts()
        return found

    def owed(self) -> dict[int, list[int]]:
        """For a checkpoint: by batch, the problems whose groups are yet to be delivered.

        Included are batches up to the one that was taken last, and later ones that have already delivered groups.
        """
        with self._changed:
            return self._resumed or {
                number: _without([draw.index for draw in source.draws], source.given)
                for number, source in self._sources.items()
                if source.given or number <= self._number
            }

    def resume(self, owed: Mapping[int, list[int]]) -> None:
        """Resume from the `owed` groups of a checkpoint."""
        self._resumed = dict(owed)

    def wait(self) -> None:
        """Wait until no rollout is in progress, since weights are replaced in place."""
        for source in list(self._sources.values()):
            with contextlib.suppress(Exception):  # whoever takes the batch is told
                source.future.result()

    def idle_s(self) -> float:
        """Seconds without a rollout in progress since the last call."""
        with self._changed:
            now = time.monotonic()
            spent = self._idle_s + (now - self._idle_since if self._loop and not self._busy else 0.0)
            self._idle_s, self._idle_since = 0.0, now
            return spent

    def close(self) -> None:
        """Cancel the rollouts in progress, and end the thread."""
        self._sources.clear()
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def _enough(self, sources: Mapping[int, _Source], number: int, groups: int) -> bool:
        """Whether a batch of this many groups can be returned.

        Raises:
            Exception: the error that ended rollouts which the batch would wait for.
        """
        until = [source for key, source in sources.items() if key <= number]
        for source in until:
            if source.future.done() and (error := source.future.exception()):  # raises CancelledError, too
                raise error
        if all(len(source.ready) == source.owed for source in until):
            return True
        least = math.ceil(self.min_groups * groups - 1e-9)
        return self.min_groups < 1 and sum(len(s.ready) for s in until) >= least and len(_ready(sources)) >= groups

    def _start(self, number: int, draws: Sequence[Draw], order: BatchOrder) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="gtpo-overlap", daemon=True)
            self._thread.start()
            self._idle_since = time.monotonic()
        told: deque[Any] = deque(maxlen=1)
        ready: list[Group] = []

        def on_group(group: Group) -> None:
            with self._changed:
                ready.append(group)
                self._changed.notify_all()

        work = self._begin(number, draws, lambda *state: told.append(state), on_group, order)
        with self._changed:
            if not self._busy:
                self._idle_s += time.monotonic() - self._idle_since
            self._busy += 1
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._sources[number] = _Source(draws, future, len(draws), ready, [], told)
        future.add_done_callback(self._ended)

    def _ended(self, future: Future[Counts]) -> None:
        with self._changed:
            self._busy -= 1
            if not self._busy:
                self._idle_since = time.monotonic()
            if not future.cancelled() and not future.exception():
                self._counts += future.result()
            self._changed.notify_all()


def _ready(sources: Mapping[int, _Source]) -> list[tuple[_Source, Group]]:
    """The groups that can be taken, those of earlier batches first."""
    return [
        (source, group)
        for _, source in sorted(sources.items())
        for group in sorted(source.ready, key=lambda group: group.number)
    ]


def _without(indices: Sequence[int | None], given: Sequence[int | None]) -> list[int]:
    """The indices that were not given; duplicates of a problem count separately.

    Each given problem that is not in `indices`, having been drawn as a replacement, also removes one index.
    """
    left = Counter(indices)
    left.subtract(index for index in given if left[index] > 0)
    found = [index for index in left.elements() if index is not None]
    return found[: len(indices) - len(given)]


async def _cancel_all() -> None:
    """Cancel the tasks of this loop and wait until they have cleaned up."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
