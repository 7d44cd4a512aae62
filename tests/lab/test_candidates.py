"""Candidates for credit: numbers by hand, loops, reductions, and the exact bench."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    with pytest.raises(ValueError, match="weight"):
        C.gigpo_advantages(returns[:, 0], returns, ids, num_turns, groups, weight=float("nan"))


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_points_to_success(name):
    logits = policy_with_success(PROCESS, 0.3)
    found = enumerate_expectation(PROCESS, logits, candidate(PROCESS, 2, name), 2)
    assert found.cosine(PROCESS.true_gradient(logits)) > 0.9


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
