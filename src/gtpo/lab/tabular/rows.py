"""The candidates by name, in the form that the bench uses: from rollouts to the advantage of each turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gtpo import functional as F
from gtpo.credit_assignment import CreditSettings
from gtpo.lab.tabular import candidates as C
from gtpo.lab.tabular.estimators import shaped_groups
from gtpo.lab.tabular.gradients import Advantage
from gtpo.lab.tabular.process import CallProcess, Rollouts

_DEFAULT = CreditSettings()


@dataclass(frozen=True)
class Batch:
    """Rollouts whose groups are contiguous, and the quantities that candidates are computed from; in float64."""

    process: CallProcess
    rollouts: Rollouts
    group_B: Tensor
    group_size: int

    @property
    def outcome_B(self) -> Tensor:
        """1 for rollouts that passed, else 0."""
        return self.rollouts.passed_B.double()

    @property
    def outcome_B_K(self) -> Tensor:
        """The outcome as the return of each turn: no discount, no penalty, no shaping."""
        return self.outcome_B[:, None] * self.rollouts.active_B_K

    @property
    def prefixes_B_K(self) -> Tensor:
        """Prefixes of calls and results: an action stands for both."""
        return C.prefix_ids(self.rollouts.actions_B_K, self.rollouts.num_turns_B, self.group_B)

    def returns_B_K(self, gamma: float, *, penalty: float = -0.1, bounded: bool = False) -> Tensor:
        """Returns with default shaping, or with shaping bounded by first turns of successes."""
        turns, passed_B = self.rollouts.num_turns_B, self.rollouts.passed_B
        codes_B_D = self.rollouts.code_B_D(self.process.states)
        shaped_B = shaped_groups(codes_B_D, passed_B, self.group_size, _DEFAULT.alpha)
        if bounded:
            unshaped = F.discounted_returns(self._rewards(passed_B, penalty, None), turns, gamma=gamma)
            shaped_B = C.bounded_shaping(shaped_B, unshaped[:, 0], passed_B, self.group_B)
        return F.discounted_returns(self._rewards(passed_B, penalty, shaped_B), turns, gamma=gamma)

    def _rewards(self, passed_B: Tensor, penalty: float, shaped_B: Tensor | None) -> Tensor:
        found = self.rollouts
        return F.turn_rewards(
            passed_B,
            found.num_turns_B,
            found.invalid_B_K,
            found.has_call_B,
            format_penalty=penalty,
            shaped_B=torch.zeros(len(passed_B), dtype=torch.float64) if shaped_B is None else shaped_B,
        )

    def normalised(self, returns_B_K: Tensor) -> Tensor:
        """Returns normalised as GTPO does by default."""
        found = self.rollouts
        return F.group_advantages(returns_B_K, found.num_turns_B, self.group_B, passed_B=found.passed_B)

    def gamma(self) -> float:
        """`F.gamma_for_turns` for the longest possible rollout."""
        return F.gamma_for_turns(self.process.max_turns)


def _gigpo(batch: Batch) -> Tensor:
    found = batch.rollouts
    last_B_K = torch.arange(found.actions_B_K.shape[1]) == found.num_turns_B[:, None] - 1
    returns_B_K = F.discounted_returns(batch.outcome_B[:, None] * last_B_K, found.num_turns_B, gamma=0.95)
    return C.gigpo_advantages(batch.outcome_B, returns_B_K, batch.prefixes_B_K, found.num_turns_B, batch.group_B)


CANDIDATES: dict[str, Callable[[Batch], Tensor]] = {
    "gtpo default": lambda b: b.normalised(b.returns_B_K(_DEFAULT.gamma)),
    "default, gamma by turns": lambda b: b.normalised(b.returns_B_K(b.gamma())),
    "default, shaping bounded": lambda b: b.normalised(b.returns_B_K(_DEFAULT.gamma, bounded=True)),
    "gamma by turns, shaping bounded": lambda b: b.normalised(b.returns_B_K(b.gamma(), bounded=True)),
    "GiGPO": _gigpo,
}
"""`default`: GTPO with the defaults of `CreditSettings`. GiGPO takes the bare outcome."""


def candidate(process: CallProcess, group_size: int, name: str) -> Advantage:
    """The advantages of a candidate. The rollouts of a group must be contiguous."""
    make = CANDIDATES[name]
    return lambda rollouts, group_ids_B: make(Batch(process, rollouts, group_ids_B, group_size))
