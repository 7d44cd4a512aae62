"""The order of the problems, which a resumed run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch.utils.data import Sampler

from gtpo.training.trl_compat import RepeatSampler


class EpochOrder(Sampler[int]):
    """TRL's sampler, with an order that depends only on the seed and the epoch.

    TRL draws each epoch's order from a generator that continues from the last epoch and is not in the checkpoint: a run
    resumed in its second epoch or later would start again with the order of the first one.

    Args:
        sampler: TRL's sampler.
        epoch: returns the number of finished epochs; called at the start of each epoch.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        self.sampler = sampler
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from self.of_epoch(self.epoch())

    def of_epoch(self, epoch: int) -> Iterator[int]:
        """The indices of an epoch, counted from 0, in order; exhaust them before requesting another epoch."""
        if self.sampler.shuffle:
            generator = self.sampler.generator
            generator.manual_seed(cast(int, self.sampler.seed))
            for _ in range(epoch):
                torch.randperm(self.sampler.num_samples, generator=generator)
        yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)
