"""Figures against values worked out by hand, and intervals against simulation."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from gtpo.evaluation import statistics
from gtpo.evaluation.statistics import maj_at_k, mean_with_interval, paired_difference, pass_at_k


@pytest.mark.parametrize(
    ("passed", "samples", "k", "value"),
    [
        (0, 4, 1, 0.0),
        (1, 4, 1, 1 / 4),
        (1, 4, 2, 1 / 2),  # 3 of the 6 pairs hold it
        (2, 4, 2, 5 / 6),  # 1 of the 6 pairs misses both
        (3, 5, 2, 9 / 10),
        (2, 5, 3, 9 / 10),
        (4, 4, 4, 1.0),
        (3, 4, 2, 1.0),  # any two hold a passing one
    ],
)
def test_pass_at_k_by_hand(passed, samples, k, value):
    assert pass_at_k(passed, samples, k) == pytest.approx(value)


def test_pass_at_k_is_unbiased():
    rng, p, samples, k = random.Random(0), 0.3, 6, 3
    draws = [pass_at_k(sum(rng.random() < p for _ in range(samples)), samples, k) for _ in range(20_000)]
    assert fmean(draws) == pytest.approx(1 - (1 - p) ** k, abs=0.01)


@pytest.mark.parametrize(
    ("votes", "right", "k", "value"),
    [
        ([0, 0, 1], [True, True, False], 3, 1.0),
        ([0, 1, 1], [True, False, False], 3, 0.0),
        ([0, 1], [True, False], 2, 0.5),  # a tie
        ([0, 1, 2], [True, False, False], 3, 1 / 3),
        ([0, None, None], [True, False, False], 3, 1.0),  # no answer is no vote
        ([None, None], [False, False], 2, 0.0),
        ([0, 1, 1], [True, False, False], 1, 1 / 3),
        ([0, 0, 1], [True, True, False], 2, (1 + 0.5 + 0.5) / 3),
    ],
)
def test_maj_at_k_by_hand(votes, right, k, value):
    assert maj_at_k(votes, right, k) == pytest.approx(value)


def test_maj_at_k_of_many_samples_is_close_to_the_exact_value():
    votes, right = [0] * 11 + [1] * 9, [True] * 11 + [False] * 9
    exact = sum(
        math.comb(11, a) * math.comb(9, 5 - a) / math.comb(20, 5) for a in range(3, 6)
    )  # more than half of five
    assert math.comb(20, 5) > 5000
    assert maj_at_k(votes, right, 5) == pytest.approx(exact, abs=0.02)
    assert maj_at_k(votes, right, 5) == maj_at_k(votes, right, 5)


@pytest.mark.parametrize("call", [lambda: pass_at_k(3, 2, 1), lambda: pass_at_k(1, 2, 3), lambda: maj_at_k([], [], 1)])
def test_figures_of_impossible_counts_are_refused(call):
    with pytest.raises(ValueError, match="@"):
        call()


def test_intervals_are_never_empty():
    none, every = mean_with_interval([0.0] * 200), mean_with_interval([1.0] * 200)
    assert (none.value, none.low) == (0.0, 0.0)
    assert 0.015 < none.high < 0.025  # Wilson's at 0 of 200 is 0.0188
    assert 0.975 < every.low < 0.985
    assert (every.value, every.high) == (1.0, 1.0)
    alike = mean_with_interval([0.5] * 10, samples=4)
    assert alike.low < 0.5 < alike.high
    assert (mean_with_interval([0.3]).low, mean_with_interval([0.3]).high) == (0.0, 1.0)


@pytest.mark.parametrize("p", [0.03, 0.3, 0.8])
@pytest.mark.parametrize(("problems", "samples"), [(30, 1), (200, 1), (30, 8), (30, 32), (200, 4)])
@pytest.mark.parametrize("spread", [0.3, 30.0])
def test_intervals_hold_the_true_value_in_95_of_100(p, problems, samples, spread):
    """Problems differ in how often they are passed (beta distributed: 0.3 much, 30 hardly)."""
    rng, trials, held = random.Random(f"{p} {problems} {samples}"), 1000, 0
    for _ in range(trials):
        rates = []
        for _ in range(problems):
            rate = rng.betavariate(p * spread, (1 - p) * spread)
            rates.append(sum(rng.random() < rate for _ in range(samples)) / samples)
        found = mean_with_interval(rates, samples)
        held += found.low <= p <= found.high
    assert held / trials >= 0.92
    assert held / trials <= (0.985 if min(p, 1 - p) * problems > 8 else 1.0), "no wider than it need be"


def test_a_paired_difference_by_hand():
    same = paired_difference([0.5, 1.0], [0.5, 1.0])
    assert (same.value, same.p_value, same.changed) == (0.0, 1.0, 0)
    found = paired_difference([0, 0, 0, 0, 1], [1, 1, 1, 1, 1])
    assert found.value == pytest.approx(0.8)
    assert found.p_value == pytest.approx(2 / 16)  # of the 16 sign flips of the four that changed, two are as far out
    assert (found.problems, found.changed) == (5, 4)
    assert found.low < 0.8 <= found.high


def test_p_values_of_no_difference_are_uniform(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    rng = random.Random(1)
    ps = []
    for _ in range(200):
        first = [float(rng.random() < 0.4) for _ in range(60)]
        second = [float(rng.random() < 0.4) for _ in range(60)]
        ps.append(paired_difference(first, second).p_value)
    assert 0.005 <= sum(p < 0.05 for p in ps) / len(ps) <= 0.09
    assert 0.4 <= fmean(ps) <= 0.62


def test_differences_need_the_same_number_of_problems():
    with pytest.raises(ValueError, match="same problems"):
        paired_difference([1.0], [])
