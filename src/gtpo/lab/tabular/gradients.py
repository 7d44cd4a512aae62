"""Mean and variance of an estimator's gradient, over all possible groups or over sampled ones.

A group's gradient is the mean over its rollouts of the sum over turns of the advantage times the gradient of the
action's log-probability, as in REINFORCE.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice

import torch
from torch import Tensor

from gtpo.lab.tabular.process import CallProcess, Rollouts

Advantage = Callable[[Rollouts, Tensor], Tensor]
"""advantage(rollouts, group_ids_B) -> advantages_B_K, in float64."""
_CHUNK = 20_000


@dataclass(frozen=True)
class Expectation:
    """Mean and spread of a group's gradient.

    Attributes:
        mean_S_A: the mean.
        second_moment: mean of the squared length.
        error_S_A: standard error of the mean; 0 if all groups were enumerated.
        groups: how many different groups were enumerated, or how many were sampled.
    """

    mean_S_A: Tensor
    second_moment: float
    error_S_A: Tensor
    groups: int

    @property
    def variance(self) -> float:
        """Sum of the variances of all components."""
        return self.second_moment - float(self.mean_S_A.square().sum())

    def cosine(self, gradient_S_A: Tensor) -> float:
        """The cosine of the angle between the mean and a gradient."""
        lengths = float(self.mean_S_A.norm() * gradient_S_A.norm())
        return float((self.mean_S_A * gradient_S_A).sum()) / lengths if lengths > 0 else 0.0

    def signal_to_noise(self, gradient_S_A: Tensor) -> float:
        """The mean's component along a gradient, over the standard deviation of the whole group gradient."""
        along = float((self.mean_S_A * gradient_S_A).sum() / gradient_S_A.norm())
        return along / math.sqrt(max(self.variance, 1e-300))


def group_gradients(logits_S_A: Tensor, rollouts: Rollouts, advantages_B_K: Tensor, group_size: int) -> Tensor:
    """The gradients of groups whose rollouts are contiguous, shape (groups, S, A).

    The logits may have a leading axis, with one table per group.
    """
    count, states = len(rollouts.num_turns_B), logits_S_A.shape[-2]
    policy = logits_S_A.softmax(dim=-1)
    weight_B_K = advantages_B_K.double() * rollouts.active_B_K / group_size
    group_B_1 = torch.arange(count)[:, None] // group_size
    place_B_K = (group_B_1 * states + rollouts.states_B_K) * policy.shape[-1] + rollouts.actions_B_K
    size = count // group_size * states * policy.shape[-1]
    taken = torch.zeros(size, dtype=torch.float64).index_add(0, place_B_K.flatten(), weight_B_K.flatten())
    taken = taken.view(-1, states, policy.shape[-1])
    return taken - taken.sum(dim=-1, keepdim=True) * policy


def enumerate_expectation(
    process: CallProcess, logits_S_A: Tensor, advantage: Advantage, group_size: int
) -> Expectation:
    """The exact expectation, over all groups.

    Estimators ignore the order of a group, so each multiset of rollouts is evaluated once. There are
    C(N + G - 1, G) of them for N rollouts: N is 13 for 2 turns, 40 for 3, 121 for 4.
    """
    every = process.every_rollout()
    log_p = process.log_probabilities(logits_S_A, every)
    mean = torch.zeros_like(logits_S_A)
    second, seen = 0.0, 0
    for chosen_M_G, arrangements in _multisets(len(log_p), group_size):
        rollouts = _pick(every, chosen_M_G.flatten())
        gradients = group_gradients(logits_S_A, rollouts, _advantages(advantage, rollouts, group_size), group_size)
        probability = (log_p[chosen_M_G].sum(dim=1)).exp() * arrangements
        mean += (probability[:, None, None] * gradients).sum(dim=0)
        second += float((probability * gradients.square().sum(dim=(1, 2))).sum())
        seen += len(chosen_M_G)
    return Expectation(mean, second, torch.zeros_like(mean), seen)


def sampled_expectation(
    process: CallProcess, logits_S_A: Tensor, advantage: Advantage, group_size: int, *, groups: int, seed: int = 0
) -> Expectation:
    """The expectation estimated from sampled groups."""
    generator = torch.Generator().manual_seed(seed)
    tables = logits_S_A.expand(groups * group_size, *logits_S_A.shape)
    rollouts = process.sample(tables, generator)
    gradients = group_gradients(logits_S_A, rollouts, _advantages(advantage, rollouts, group_size), group_size)
    second = float(gradients.square().sum(dim=(1, 2)).mean())
    return Expectation(gradients.mean(dim=0), second, gradients.std(dim=0) / math.sqrt(groups), groups)


def _advantages(advantage: Advantage, rollouts: Rollouts, group_size: int) -> Tensor:
    return advantage(rollouts, torch.arange(len(rollouts.num_turns_B)) // group_size)


def _pick(rollouts: Rollouts, rows: Tensor) -> Rollouts:
    return Rollouts(
        rollouts.states_B_K[rows], rollouts.actions_B_K[rows], rollouts.num_turns_B[rows], rollouts.passed_B[rows]
    )


def _multisets(count: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The multisets of `size` out of `count` items, in chunks: their members, and the number of orders of each."""
    every = combinations_with_replacement(range(count), size)
    whole = math.factorial(size)
    while chunk := list(islice(every, _CHUNK)):
        orders = [whole // math.prod(map(math.factorial, Counter(members).values())) for members in chunk]
        yield torch.tensor(chunk), torch.tensor(orders, dtype=torch.float64)
