"""The estimators for comparison: against loops, and what each promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo import functional as F

REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5])
GROUPS = torch.tensor([7, 7, 7, 3, 3])


def test_dr_grpo_is_the_reward_less_the_mean_of_the_group():
    expected = torch.tensor([2 / 3, -1 / 3, -1 / 3, 0.25, -0.25])
    assert torch.allclose(F.dr_grpo_advantages(REWARDS, GROUPS), expected)


def test_rloo_is_the_reward_less_the_mean_of_the_others():
    expected = torch.tensor([1.0, -0.5, -0.5, 0.5, -0.5])
    assert torch.allclose(F.rloo_advantages(REWARDS, GROUPS), expected)


def test_rloo_is_dr_grpo_stretched_by_the_size_of_the_group():
    size = torch.tensor([3.0, 3, 3, 2, 2])
    stretched = F.dr_grpo_advantages(REWARDS, GROUPS) * size / (size - 1)
    assert torch.allclose(F.rloo_advantages(REWARDS, GROUPS), stretched)


@pytest.mark.parametrize("estimator", [F.dr_grpo_advantages, F.rloo_advantages])
def test_a_rollout_alone_in_its_group_has_no_advantage(estimator):
    assert estimator(torch.tensor([0.7]), torch.tensor([0])).tolist() == [0.0]


def test_mt_grpo_adds_the_outcome_to_the_turns_own_reward():
    turns_B_K = torch.tensor([[0.0, -0.1, 9.0], [-0.1, 0.0, 0.0]])
    outcomes_B, num_turns_B, group_B = torch.tensor([1.0, 0.0]), torch.tensor([2, 3]), torch.tensor([0, 0])
    found = F.mt_grpo_advantages(turns_B_K, outcomes_B, num_turns_B, group_B, weight=2.0, eps=0.0)
    half = 0.5**0.5
    # Turn 1: own advantages +half and -half. Turn 2 is the first rollout's last, which has the outcome alone; there the
    # second one's own reward is 0 against -0.1. Turn 3 is the second one's last.
    expected = [[half + 2 * half, half, 0.0], [-half - 2 * half, half - 2 * half, -half]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def leave_one_out_by_loop(returns, num_turns, groups):
    advantages = torch.zeros_like(returns)
    for i, group in enumerate(groups):
        others = [k for k, other in enumerate(groups) if other == group and k != i]
        for j in range(num_turns[i]) if others else []:
            reaching = [returns[k, j] for k in others if num_turns[k] > j]
            chosen = reaching or [returns[k, num_turns[k] - 1] for k in others]
            advantages[i, j] = returns[i, j] - sum(chosen) / len(chosen)
    return advantages


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_leave_one_out_matches_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 9, (), generator=generator))
    returns = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    num_turns = torch.randint(1, 5, (count,), generator=generator)
    groups = torch.randint(0, 3, (count,), generator=generator)
    padded = returns.masked_fill(torch.arange(4) >= num_turns[:, None], float("nan"))
    found = F.leave_one_out_advantages(padded, num_turns, groups)
    expected = leave_one_out_by_loop(returns, num_turns.tolist(), groups.tolist())
    assert torch.allclose(found, expected)


def test_with_one_turn_leave_one_out_is_rloo():
    found = F.leave_one_out_advantages(REWARDS[:, None], torch.ones(5, dtype=torch.long), GROUPS)
    assert torch.allclose(found[:, 0], F.rloo_advantages(REWARDS, GROUPS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_have_the_dtype_of_the_input(dtype):
    rewards, ones = REWARDS.to(dtype), torch.ones(5, dtype=torch.long)
    assert F.dr_grpo_advantages(rewards, GROUPS).dtype == dtype
    assert F.rloo_advantages(rewards, GROUPS).dtype == dtype
    assert F.leave_one_out_advantages(rewards[:, None], ones, GROUPS).dtype == dtype
    assert F.mt_grpo_advantages(rewards[:, None], rewards, ones, GROUPS).dtype == dtype


def test_bad_input_is_named():
    ones = torch.ones(5, dtype=torch.long)
    with pytest.raises(ValueError, match="weight"):
        F.mt_grpo_advantages(REWARDS[:, None], REWARDS, ones, GROUPS, weight=float("nan"))
    with pytest.raises(ValueError, match="num_turns_B"):
        F.leave_one_out_advantages(REWARDS[:, None], ones + 1, GROUPS)
    with pytest.raises(ValueError, match="rewards_B must be finite"):
        F.rloo_advantages(REWARDS * float("inf"), GROUPS)
    with pytest.raises(ValueError, match="group_ids_B"):
        F.dr_grpo_advantages(REWARDS, GROUPS[:3])
