"""Learning curves on the process: many seeds at once, with success rates computed instead of sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gtpo.credit_assignment import SHAPED, CreditSettings
from gtpo.lab.tabular.estimators import credit_of
from gtpo.lab.tabular.gradients import Advantage, group_gradients
from gtpo.lab.tabular.process import CallProcess


@dataclass(frozen=True)
class Curves:
    """Results of training, for each seed (N) and step (T + 1, the start first).

    Attributes:
        success_N_T: true success rate of the policy.
        turns_N_T, invalid_N_T: turns and malformed calls per rollout, of the rollouts of the step; the last is NaN.
        similarity_N_T: mean similarity of failed rollouts to the successes of their group, as used for shaping, in
            groups with a success; NaN if the algorithm does not shape.
        uniform_N_T: share of groups in which all rollouts passed or all failed.
    """

    success_N_T: Tensor
    turns_N_T: Tensor
    invalid_N_T: Tensor
    similarity_N_T: Tensor
    uniform_N_T: Tensor


def learn(
    process: CallProcess,
    logits_S_A: Tensor,
    *,
    algorithm: str = "gtpo",
    settings: CreditSettings | None = None,
    advantage: Advantage | None = None,
    seeds: int = 50,
    steps: int = 60,
    groups: int = 16,
    group_size: int = 8,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> Curves:
    """Train `seeds` copies of a policy with Adam, each on its own rollouts.

    Args:
        process: the process.
        logits_S_A: the initial policy.
        algorithm: one of `gtpo.credit_assignment.ALGORITHMS`.
        settings: settings of the algorithm.
        advantage: an estimator to use instead of the algorithm, such as `gtpo.lab.tabular.candidate`.
        seeds: number of copies.
        steps: number of optimizer steps.
        groups, group_size: groups per step and copy, and rollouts per group.
        learning_rate: learning rate of Adam, which compensates that some estimators divide by a deviation and others
            do not.
        seed: seed of all random numbers.
    """
    settings = settings or CreditSettings()
    generator = torch.Generator().manual_seed(seed)
    table_N_S_A = torch.nn.Parameter(logits_S_A.detach().clone().repeat(seeds, 1, 1))
    optimizer = torch.optim.Adam([table_N_S_A], lr=learning_rate)
    each = groups * group_size
    group_ids_B = torch.arange(seeds * each) // group_size
    records: dict[str, list[Tensor]] = {name: [] for name in ("success", "turns", "invalid", "similarity", "uniform")}
    for _ in range(steps):
        rollouts = process.sample(table_N_S_A.repeat_interleave(each, dim=0), generator)
        failed = ~rollouts.passed_B
        with_success = rollouts.passed_B.view(-1, group_size).any(dim=1).repeat_interleave(group_size) & failed
        alike = rollouts.passed_B.double() * float("nan")
        if advantage is not None:
            advantages_B_K = advantage(rollouts, group_ids_B)
        else:
            credit = credit_of(process, rollouts, group_ids_B, group_size, settings, algorithm)
            advantages_B_K = credit.advantages_B_K
            if algorithm in SHAPED and settings.alpha > 0:
                alike = credit.shaped_B / settings.alpha * with_success
        passes_M = rollouts.passed_B.view(-1, group_size).sum(dim=1)
        uniform = ((passes_M == 0) | (passes_M == group_size)).double()
        records["success"].append(process.success(table_N_S_A.detach()))
        records["turns"].append(rollouts.num_turns_B.double().view(seeds, -1).mean(dim=1))
        records["invalid"].append(rollouts.invalid_B_K.sum(dim=1).double().view(seeds, -1).mean(dim=1))
        records["similarity"].append(alike.view(seeds, -1).sum(dim=1) / with_success.view(seeds, -1).sum(dim=1))
        records["uniform"].append(uniform.view(seeds, -1).mean(dim=1))
        table_N_S_A.grad = -group_gradients(table_N_S_A.detach(), rollouts, advantages_B_K, each)
        optimizer.step()
    records["success"].append(process.success(table_N_S_A.detach()))
    missing = torch.full((seeds,), float("nan"), dtype=torch.float64)
    stacked = {
        name: torch.stack(values + [missing] * (steps + 1 - len(values)), dim=1) for name, values in records.items()
    }
    return Curves(*(stacked[name] for name in ("success", "turns", "invalid", "similarity", "uniform")))
