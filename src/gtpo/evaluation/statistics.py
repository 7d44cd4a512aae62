"""The figures of an evaluation and their uncertainty. The unit is the problem: samples of one problem are correlated.

avg@n
    Mean over problems of the share of their n samples that passed.
pass@k
    Mean over problems of the chance that at least one of k samples passes, by the unbiased estimator
    1 - C(n-c, k) / C(n, k) for c of n passing (Chen et al. 2021, arXiv 2107.03374).
maj@k
    Mean over problems of the chance that the most frequent answer of k samples is right (Wang et al. 2022, arXiv
    2203.11171). Samples without an answer do not vote; ties are broken at random.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import numpy as np
import scipy  # its parts are imported when they are first used: scipy.stats takes a second

SUBSETS = 5000
"""maj@k uses all subsets of the samples if there are no more than this, else this many random ones."""
DRAWS = 20_000
"""Number of bootstrap resamples, and of random sign flips in a permutation test with more possible flips than this."""
_FEW = 5


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95 % interval."""

    value: float
    low: float
    high: float
    problems: int


def pass_at_k(passed: int, samples: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples passes, if `passed` of `samples` passed.

    Raises:
        ValueError: not 0 <= passed <= samples, or not 1 <= k <= samples.
    """
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} of {passed} in {samples}: needs 0 <= passed <= samples and 1 <= k <= samples")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def maj_at_k(votes: Sequence[int | None], right: Sequence[bool], k: int) -> float:
    """The chance that the most frequent answer of k samples is right.

    Args:
        votes: for each sample, the class of its answer, or None if it has no answer.
        right: whether each sample passed. The samples of one class must all pass or all fail.
        k: number of samples that vote, from 1 to all of them.

    Raises:
        ValueError: lengths differ, or k is out of range.
    """
    if len(votes) != len(right) or not 1 <= k <= len(votes):
        raise ValueError(f"maj@{k} of {len(votes)} votes and {len(right)} verdicts")
    count = math.comb(len(votes), k)
    if count <= SUBSETS:
        subsets = itertools.combinations(range(len(votes)), k)
        return fmean(_vote([votes[i] for i in chosen], [right[i] for i in chosen]) for chosen in subsets)
    draw = random.Random(0)
    places = range(len(votes))
    drawn = (draw.sample(places, k) for _ in range(SUBSETS))
    return fmean(_vote([votes[i] for i in chosen], [right[i] for i in chosen]) for chosen in drawn)


def _vote(votes: Sequence[int | None], right: Sequence[bool]) -> float:
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    passes = {vote: ok for vote, ok in zip(votes, right, strict=True) if vote is not None}
    return fmean(float(passes[vote]) for vote, count in counts.items() if count == most)


def mean_with_interval(values: Sequence[float], samples: int = 1) -> Estimate:
    """The mean of values in [0, 1], one per problem, with a 95 % interval that is never empty.

    A Wilson interval at the effective number of observations, which is p (1 - p) over the variance of the mean
    estimated from the problems' spread, with Student's quantile (as in surveys: Korn and Graubard 1998; Franco et al.
    2019, doi:10.1093/jssam/smy019). If passes or failures amount to fewer than five problems, the spread is computed
    with one more problem that passes and one that fails [ours]; otherwise it would be estimated too small, or as 0.

    Args:
        values: at least one value.
        samples: number of samples behind each value; a problem counts as at most this many observations.
    """
    count, mean = len(values), fmean(values)
    if count == 1:
        return Estimate(mean, 0.0, 1.0, 1)
    few = min(mean, 1 - mean) * count < _FEW
    padded = [*values, 0.0, 1.0] if few else values
    middle, spread = fmean(padded), variance(padded) / count
    effective = min(middle * (1 - middle) / spread, float(count * samples)) if spread > 0 else float(count * samples)
    within = mean * (1 - mean)
    t = float(scipy.special.stdtrit(count - 1, 0.975))
    centre = (mean + t * t / (2 * effective)) / (1 + t * t / effective)
    half = t / (1 + t * t / effective) * math.sqrt(within / effective + t * t / (4 * effective**2))
    return Estimate(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)), count)


@dataclass(frozen=True)
class Mean:
    """A mean over problems of unbounded numbers, with Student's 95 % interval; its bounds are None for one problem."""

    value: float
    low: float | None
    high: float | None
    problems: int


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of finite values, one per problem; at least one value."""
    count, mean = len(values), fmean(values)
    if count == 1:
        return Mean(mean, None, None, 1)
    half = float(scipy.special.stdtrit(count - 1, 0.975)) * math.sqrt(variance(values) / count)
    return Mean(mean, mean - half, mean + half, count)


@dataclass(frozen=True)
class Difference:
    """A paired difference of means over the same problems.

    Attributes:
        value: mean of the second minus mean of the first.
        low, high: 95 % interval, a percentile bootstrap over problems.
        p_value: two-sided, by a sign-flip permutation test.
        problems: number of problems.
        changed: problems on which the two differ.
    """

    value: float
    low: float
    high: float
    p_value: float
    problems: int
    changed: int


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """Compare values of the same problems in the same order.

    The p-value is the share of sign flips of the problems' differences whose mean is at least as far from 0 as the
    observed mean: of all sign flips if at most 14 problems differ, else of 20,000 random ones and the observed one.

    Raises:
        ValueError: the lengths differ, or there are no values.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} values; give the same problems, at least one")
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    changed = differences[differences != 0]
    value = low = high = float(differences.mean())
    p_value = 1.0
    drawn = {"n_resamples": DRAWS, "batch": max(1, 2_000_000 // len(differences)), "rng": np.random.default_rng(seed)}
    if len(differences) > 1:
        low, high = scipy.stats.bootstrap((differences,), np.mean, method="percentile", **drawn).confidence_interval
    if len(changed) > 1:
        p_value = scipy.stats.permutation_test(
            (changed,), _distance, permutation_type="samples", alternative="greater", **drawn
        ).pvalue
    return Difference(value, float(low), float(high), float(p_value), len(differences), len(changed))


def _distance(differences: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(differences.mean(axis=axis))
