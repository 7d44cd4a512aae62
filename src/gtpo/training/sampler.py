"""The order of the problems, which a resumed run takes up where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch.utils.data import Sampler

from gtpo.training.trl_compat import RepeatSampler


class EpochOrder(Sampler[int]):
    """TRL's sampler, with an order that depends on the seed and the epoch and on nothing else.

    TRL's draws each epoch's order from a generator that goes on from the last epoch's and is in no checkpoint: a
    run that is resumed in its second epoch or later would begin with the order of the first one again.

    Args:
        sampler: TRL's.
        epoch: the number of epochs that are done, asked at the beginning of each.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        self.sampler = sampler
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from self.of_epoch(self.epoch())

    def of_epoch(self, epoch: int) -> Iterator[int]:
        """The indices of that epoch, from 0, in their order; read whole before another epoch is asked for."""
        if self.sampler.shuffle:
            generator = self.sampler.generator
            generator.manual_seed(cast(int, self.sampler.seed))
            for _ in range(epoch):
                torch.randperm(self.sampler.num_samples, generator=generator)
        yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)
