"""Candidates for credit: numbers by hand, loops, reductions, and the exact bench."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo import functional as F
from gtpo.lab.tabular import (
    CANDIDATES,
    CallProcess,
    candidate,
    enumerate_expectation,
    estimator,
    policy_with_success,
    sampled_expectation,
)
from gtpo.lab.tabular import candidates as C

PROCESS = CallProcess(steps=2, max_turns=3)


def batch(seed, count=8, turns=4):
    """Random events of few kinds, so that prefixes are shared, and padding that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    num_turns = torch.randint(1, turns + 1, (count,), generator=generator)
    events = torch.randint(0, 2, (count, turns), generator=generator)
    groups = torch.randint(0, 2, (count,), generator=generator) * 7 + 3
    returns = torch.randn(count, turns, dtype=torch.float64, generator=generator)
    past = torch.arange(turns) >= num_turns[:, None]
    return events.masked_fill(past, 99), returns.masked_fill(past, float("nan")), num_turns, groups


def sharing(events, num_turns, groups, i, j):
    """The rollouts that have i's prefix at turn j, i included."""
    return [
        k
        for k in range(len(events))
        if groups[k] == groups[i] and num_turns[k] > j and events[k, :j].tolist() == events[i, :j].tolist()
    ]


def test_shaping_is_bounded_by_the_least_first_turn_of_the_groups_successes():
    shaped = torch.tensor([0.0, 0.0, 0.5, 0.2, 0.4, 0.0, 0.3])
    first = torch.tensor([0.8, 0.4, 9.0, -1.0, 0.0, -0.2, 0.0])
    passed = torch.tensor([True, True, False, False, False, True, False])
    groups = torch.tensor([1, 1, 1, 1, 2, 3, 3])
    # Group 1: at most 0.4. Group 2 has no success. In group 3 the success itself got less than nothing.
    assert C.bounded_shaping(shaped, first, passed, groups).tolist() == pytest.approx([0, 0, 0.2, 0.08, 0, 0, 0])


def test_where_first_turns_of_successes_get_everything_shaping_stays_as_it_is():
    shaped, passed = torch.tensor([0.0, 0.5]), torch.tensor([True, False])
    assert torch.equal(C.bounded_shaping(shaped, torch.ones(2), passed, torch.zeros(2, dtype=torch.long)), shaped)


def test_a_format_penalty_apart_is_neither_normalised_nor_silenced():
    returns, num_turns, groups = torch.zeros(2, 2), torch.tensor([2, 1]), torch.tensor([0, 0])
    penalties = torch.tensor([[-0.1, 0.0], [0.0, 5.0]])
    found = C.format_apart_advantages(returns, penalties, num_turns, groups, passed_B=torch.tensor([False, False]))
    assert torch.allclose(found, torch.tensor([[-0.1, 0.0], [0.0, 0.0]]))


def test_without_penalties_format_apart_is_gtpo():
    _, returns, num_turns, groups = batch(1)
    passed = torch.arange(8) % 2 == 0
    found = C.format_apart_advantages(returns, torch.zeros_like(returns), num_turns, groups, passed_B=passed)
    assert torch.equal(found, F.group_advantages(returns, num_turns, groups, passed_B=passed))


def test_maxrl_by_hand():
    outcome = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    groups, ones = torch.tensor([0, 0, 0, 0, 1]), torch.ones(5, dtype=torch.long)
    found = C.maxrl_advantages(outcome[:, None], ones, groups, passed_B=outcome.bool())
    assert found[:, 0].tolist() == pytest.approx([3.0, -1.0, -1.0, -1.0, 0.0])  # (r - 1/4) / (1/4)


def test_prefixes_by_hand():
    events = torch.tensor([[5, 6, 7], [5, 6, 8], [5, 9, 7], [5, 6, 7], [0, 0, 0]])
    num_turns, groups = torch.tensor([3, 3, 3, 2, 1]), torch.tensor([4, 4, 4, 4, 2])
    found = C.prefix_ids(events, num_turns, groups).tolist()
    root, after_5, after_56 = found[0]
    assert [row[0] for row in found[:4]] == [root] * 4
    assert [row[1] for row in found[:4]] == [after_5] * 4
    assert found[1][2] == after_56 != found[2][2]
    assert (found[3][2], found[4][1]) == (-1, -1)
    assert found[4][0] != root
    assert len({root, after_5, after_56, found[2][2], found[4][0]}) == 5


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_prefixes_are_equal_where_all_events_before_are(seed):
    events, _, num_turns, groups = batch(seed)
    ids = C.prefix_ids(events, num_turns, groups)
    for i in range(8):
        for j in range(num_turns[i]):
            assert (ids[:, j] == ids[i, j]).nonzero()[:, 0].tolist() == sharing(events, num_turns, groups, i, j)
            assert (ids == ids[i, j]).sum() == (ids[:, j] == ids[i, j]).sum()


@given(st.integers(0, 10_000), st.sampled_from([0.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_prefix_baselines_match_a_loop(seed, prior):
    events, returns, num_turns, groups = batch(seed)
    expected = torch.zeros_like(returns)
    for i in range(8):
        base = 0.0
        for j in range(num_turns[i] if (groups == groups[i]).sum() > 1 else 0):
            others = [float(returns[k, j]) for k in sharing(events, num_turns, groups, i, j) if k != i]
            weight = 0.0 if j == 0 else prior
            if others or weight:
                base = (sum(others) + weight * base) / (len(others) + weight)
            expected[i, j] = returns[i, j] - base
    ids = C.prefix_ids(events, num_turns, groups)
    found = C.prefix_baseline_advantages(returns, ids, num_turns, groups, prior=prior)
    assert torch.allclose(found, expected)


def test_with_a_large_prior_the_baseline_is_rloos():
    events, _, num_turns, groups = batch(3)
    outcome = torch.rand(8, dtype=torch.float64)
    ids = C.prefix_ids(events, num_turns, groups)
    active = torch.arange(4) < num_turns[:, None]
    found = C.prefix_baseline_advantages(outcome[:, None] * active, ids, num_turns, groups, prior=1e9)
    assert torch.allclose(found, F.rloo_advantages(outcome, groups)[:, None] * active, atol=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_prefix_values_match_a_loop_and_add_up_to_the_outcome_minus_the_mean(seed):
    events, returns, num_turns, groups = batch(seed)
    outcome = returns[:, 0]
    expected = torch.zeros_like(returns)
    for i in range(8):
        values = [outcome[sharing(events, num_turns, groups, i, j)].mean() for j in range(num_turns[i])]
        for j in range(num_turns[i]):
            expected[i, j] = (values[j + 1] if j + 1 < num_turns[i] else outcome[i]) - values[j]
    found = C.prefix_value_advantages(outcome, C.prefix_ids(events, num_turns, groups), num_turns)
    assert torch.allclose(found, expected)
    assert torch.allclose(found.sum(dim=1), F.dr_grpo_advantages(outcome, groups))


def test_gigpo_by_hand():
    events = torch.tensor([[1, 3], [1, 4], [2, 0]])
    num_turns, groups = torch.tensor([2, 2, 1]), torch.zeros(3, dtype=torch.long)
    outcome = torch.tensor([1.0, 0.0, 0.0])
    returns = torch.tensor([[0.5, 1.0], [0.0, 0.0], [0.0, 9.0]])
    ids = C.prefix_ids(events, num_turns, groups)
    found = C.gigpo_advantages(outcome, returns, ids, num_turns, groups, weight=2.0, eps=0.0)
    high, low, half = 2 / 3**0.5, -1 / 3**0.5, 0.5**0.5
    # All begin the first turn alike; the first two also the second. The returns there are the outcomes or half of them.
    expected = [[high + 2 * high, high + 2 * half], [low + 2 * low, low - 2 * half], [low + 2 * low, 0.0]]
    assert torch.allclose(found, torch.tensor(expected))


def test_bad_input_is_named():
    events, returns, num_turns, groups = batch(0)
    ids = C.prefix_ids(events, num_turns, groups)
    with pytest.raises(ValueError, match="events_B_K"):
        C.prefix_ids(returns, num_turns, groups)
    with pytest.raises(ValueError, match="prefix_ids_B_K"):
        C.prefix_baseline_advantages(returns, ids[:, :2], num_turns, groups)
    with pytest.raises(ValueError, match="prior"):
        C.prefix_baseline_advantages(returns, ids, num_turns, groups, prior=-1.0)
    with pytest.raises(ValueError, match="weight"):
        C.gigpo_advantages(returns[:, 0], returns, ids, num_turns, groups, weight=float("nan"))
    with pytest.raises(ValueError, match="returns_B_K must be finite"):
        C.maxrl_advantages(returns / 0, num_turns, groups, passed_B=groups == 3)


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_points_to_success(name):
    logits = policy_with_success(PROCESS, 0.3)
    found = enumerate_expectation(PROCESS, logits, candidate(PROCESS, 2, name), 2)
    assert found.cosine(PROCESS.true_gradient(logits)) > 0.9


@pytest.mark.parametrize("name", ["prefix baseline", "prefix baseline, prior 2"])
def test_prefix_baselines_are_unbiased(name):
    logits = policy_with_success(PROCESS, 0.3) + torch.linspace(-0.3, 0.3, 12, dtype=torch.float64).view(3, 4)
    found = enumerate_expectation(PROCESS, logits, candidate(PROCESS, 3, name), 3)
    assert torch.allclose(found.mean_S_A, PROCESS.true_gradient(logits), atol=1e-12)


def test_the_expectation_of_maxrl_is_the_truncated_gradient_of_log_success():
    logits, size = policy_with_success(PROCESS, 0.3), 3
    found = enumerate_expectation(PROCESS, logits, candidate(PROCESS, size, "MaxRL"), size)
    factor = sum(0.7 ** (k - 1) for k in range(1, size))
    assert torch.allclose(found.mean_S_A, PROCESS.true_gradient(logits) * factor, atol=1e-9)


def test_the_default_is_that_of_the_credit_settings():
    logits = policy_with_success(PROCESS, 0.3)
    mine = enumerate_expectation(PROCESS, logits, candidate(PROCESS, 3, "gtpo default"), 3)
    theirs = enumerate_expectation(PROCESS, logits, estimator(PROCESS, 3), 3)
    assert torch.equal(mine.mean_S_A, theirs.mean_S_A)


def test_in_long_rollouts_the_default_points_further_off_than_grpo_and_gamma_by_turns_mends_that():
    process = CallProcess(7, 12)
    logits = policy_with_success(process, 0.1)
    true = process.true_gradient(logits)
    names = ("gtpo default", "default, gamma by turns", "gamma by turns, shaping bounded")
    default, gamma, both, grpo = (
        sampled_expectation(process, logits, advantage, 8, groups=4000, seed=1).cosine(true)
        for advantage in (*(candidate(process, 8, name) for name in names), estimator(process, 8, algorithm="grpo"))
    )
    assert default < grpo - 0.02
    assert gamma > grpo
    assert both > gamma
