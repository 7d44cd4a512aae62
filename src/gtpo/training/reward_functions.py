"""The reward functions of TRL's trainer, set aside: TRL calls them only on request, and sees one number per rollout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gtpo.scoring import VERIFIED


class RewardSources:
    """The reward functions that TRL's trainer has prepared, set aside: the trainer sees only their weighted sum.

    Credit is computed from that sum, and the paper's GRPO baseline combines it with the format. So each function is
    called once, before TRL's own normalisation.

    Args:
        trainer: a `GRPOTrainer` after its `__init__`; from now on it has one reward function.
        outcome_reward: that function.
        environment_reward: one more reward function with weight 1, as in TRL for environments.
    """

    _NAMES = ("reward_funcs", "reward_processing_classes", "reward_func_names", "reward_weights")

    def __init__(
        self, trainer: Any, outcome_reward: Callable[..., Any], environment_reward: Callable[..., Any] | None = None
    ) -> None:
        self._trainer = trainer
        self._all = {name: getattr(trainer, name) for name in self._NAMES}
        if environment_reward is not None:
            for name, value in zip(self._NAMES, (environment_reward, None, environment_reward.__name__), strict=False):
                self._all[name] = [*self._all[name], value]
            self._all["reward_weights"] = torch.cat([self._all["reward_weights"], torch.ones(1)])
        values = ([outcome_reward], [None], ["outcome_reward"], torch.ones(1))
        self._one = dict(zip(self._NAMES, values, strict=True))
        self._use(self._one)

    def _use(self, sources: Mapping[str, Any]) -> None:
        for name, value in sources.items():
            setattr(self._trainer, name, value)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, TRL calls all of them."""
        self._use(self._all)
        try:
            yield
        finally:
            self._use(self._one)

    def means(self, rewards_B_F: Tensor) -> dict[str, float]:
        """The mean reward by function name, if there are functions besides the verifier."""
        names = self._all["reward_func_names"]
        if names == [VERIFIED]:
            return {}
        return {name: column.nanmean().item() for name, column in zip(names, rewards_B_F.unbind(dim=1), strict=True)}

    def by_rollout(self, rewards_B_F: Tensor) -> list[list[float | None]]:
        """For each rollout, the reward of each function; None where a function does not apply."""
        return [[None if math.isnan(value) else value for value in row] for row in rewards_B_F.tolist()]
