"""Discounted returns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo import functional as F


def loop_returns(rewards, num_turns, gamma):
    """R[i,j] = r[i,j] + gamma * R[i,j+1], one turn at a time."""
    returns = [[0.0] * len(row) for row in rewards]
    for i, row in enumerate(rewards):
        ahead = 0.0
        for j in reversed(range(num_turns[i])):
            ahead = row[j] + gamma * ahead
            returns[i][j] = ahead
    return returns


def test_worked_example():
    rewards = torch.tensor([[0, -0.1, 1], [0, 0.3, 0]], dtype=torch.float64)
    expected = torch.tensor([[0.72, 0.8, 1], [0.27, 0.3, 0]], dtype=torch.float64)
    torch.testing.assert_close(F.discounted_returns(rewards, torch.tensor([3, 2])), expected)


def test_a_lone_outcome_decays_by_gamma_a_turn():
    returns = F.discounted_returns(torch.tensor([[0.0, 0, 0, 1]]), torch.tensor([4]), gamma=0.5)
    assert returns.tolist() == [[0.125, 0.25, 0.5, 1]]


def test_gamma_one_sums_what_is_ahead_and_gamma_zero_leaves_the_reward():
    rewards = torch.tensor([[1.0, 2, 4]])
    num_turns = torch.tensor([3])
    assert F.discounted_returns(rewards, num_turns, gamma=1).tolist() == [[7, 6, 4]]
    assert F.discounted_returns(rewards, num_turns, gamma=0).tolist() == [[1, 2, 4]]


def test_the_discount_makes_a_difference():
    rewards, num_turns = torch.tensor([[0.0, 1]]), torch.tensor([2])
    assert not torch.equal(F.discounted_returns(rewards, num_turns, gamma=1), F.discounted_returns(rewards, num_turns))


def test_padding_is_ignored_and_returned_as_zero():
    rewards = torch.tensor([[1.0, float("nan"), 5], [1, 1, 1]])
    returns = F.discounted_returns(rewards, torch.tensor([1, 3]), gamma=1)
    assert returns.tolist() == [[1, 0, 0], [3, 2, 1]]


TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@settings(deadline=None)
@given(st.data())
def test_returns_match_a_loop(data):
    num_rollouts, max_turns = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    gamma = data.draw(st.floats(0, 1))
    num_turns = data.draw(st.lists(st.integers(1, max_turns), min_size=num_rollouts, max_size=num_rollouts))
    row = st.lists(st.floats(-1, 1), min_size=max_turns, max_size=max_turns)
    rewards = torch.tensor([data.draw(row) for _ in range(num_rollouts)], dtype=torch.float64).to(dtype)
    returns = F.discounted_returns(rewards, torch.tensor(num_turns), gamma=gamma)
    expected = torch.tensor(loop_returns(rewards.tolist(), num_turns, gamma), dtype=torch.float64)
    assert returns.dtype == dtype
    torch.testing.assert_close(returns.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_equal_rollouts_have_equal_returns_to_the_last_bit():
    """Whatever the batch: a kernel that treats the last rows otherwise would give them other roundings."""
    row = torch.tensor([0.1, -0.1, 0.7, -0.1, 0.3, 0.9, 0.2])
    returns = F.discounted_returns(row.expand(37, -1), torch.full((37,), 7))
    assert bool((returns == returns[0]).all())


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_the_matmul_precision_of_the_process_does_not_matter(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        returns = F.discounted_returns(torch.tensor([[0.0, 0, 1]]), torch.tensor([3]))
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(returns, torch.tensor([[0.81, 0.9, 1]]), rtol=1e-6, atol=0)


def test_an_empty_batch_has_no_returns():
    assert F.discounted_returns(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).shape == (0, 3)


@pytest.mark.parametrize(
    ("rewards", "num_turns", "gamma", "message"),
    [
        (torch.ones(2), torch.tensor([1, 1]), 0.9, "rewards_B_K must have shape"),
        (torch.ones(2, 2), torch.tensor([1]), 0.9, "num_turns_B must have shape"),
        (torch.ones(2, 2), torch.tensor([1, 0]), 0.9, "num_turns_B must lie in"),
        (torch.ones(2, 2), torch.tensor([1, 3]), 0.9, "num_turns_B must lie in"),
        (torch.ones(2, 2), torch.tensor([True, True]), 0.9, "integer dtype"),
        (torch.ones(2, 2).long(), torch.tensor([1, 1]), 0.9, "float dtype"),
        (torch.tensor([[float("inf")]]), torch.tensor([1]), 0.9, "rewards_B_K must be finite"),
        (torch.tensor([[float("nan")]]), torch.tensor([1]), 0.9, "rewards_B_K must be finite"),
        (torch.ones(1, 1), torch.tensor([1]), 1.1, "gamma"),
        (torch.ones(1, 1), torch.tensor([1]), -0.1, "gamma"),
        (torch.ones(1, 1), torch.tensor([1]), float("nan"), "gamma"),
    ],
)
def test_bad_arguments_raise(rewards, num_turns, gamma, message):
    with pytest.raises(ValueError, match=message):
        F.discounted_returns(rewards, num_turns, gamma=gamma)


def test_gamma_leaves_the_first_turn_its_share():
    assert F.gamma_for_turns(8, first_share=0.9) ** 7 == pytest.approx(0.9)
    assert F.gamma_for_turns(2, first_share=0.5) == 0.5
    assert F.gamma_for_turns(1) == 1.0
    for turns, share in ((0, 0.9), (4, 0.0), (4, 1.1)):
        with pytest.raises(ValueError, match="first_share"):
            F.gamma_for_turns(turns, first_share=share)
