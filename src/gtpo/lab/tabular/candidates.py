"""Candidates for credit that is nowhere worse than GRPO's, as pure functions in the manner of `gtpo.functional`.

No trainer has them: one that wins on the exact bench and in studies moves to `gtpo.functional`, the others go.
Glossary, marks and conventions are those of `gtpo.functional`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gtpo.functional import group_advantages, grpo_advantages
from gtpo.functional._checks import (
    active_turns,
    as_flags,
    check_finite,
    check_floating,
    check_integer,
    check_shape,
    turn_values,
    widen,
)
from gtpo.functional.advantages import number_groups


def bounded_shaping(shaped_B: Tensor, first_returns_B: Tensor, passed_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Shaped accuracy, scaled so that no failure gets more than the first turn of any success of its group.

        shaped'[i] = shaped[i] * clip(min over passing k of i's group of R[k,1], 0, 1), and 0 if none passes

    Source: ours [O].

    Args:
        shaped_B: float in [0, 1], 0 for rollouts that passed (`shaped_accuracy`).
        first_returns_B: float, returns of first turns; those of rollouts that passed count.
        passed_B: bool, True iff the rollout's final answer is verified.
        group_ids_B: integer, equal within a group; any values, order and group sizes.

    Returns:
        shaped_B: in the dtype of `shaped_B`.

    Raises:
        ValueError: shapes or dtypes don't fit, or a value is not finite.
    """
    check_shape("shaped_B", shaped_B, (None,))
    check_shape("first_returns_B", first_returns_B, shaped_B.shape)
    for name, values in (("shaped_B", shaped_B), ("first_returns_B", first_returns_B)):
        check_floating(name, values)
        check_finite(name, values)
    passed = as_flags("passed_B", passed_B, shaped_B.shape)
    group_B, num_groups = number_groups(group_ids_B, len(shaped_B))
    first = widen(first_returns_B).masked_fill(~passed, float("inf"))
    least = first.new_full((num_groups,), float("inf")).scatter_reduce(0, group_B, first, "amin")[group_B]
    return (widen(shaped_B) * least.masked_fill(least.isinf(), 0).clamp(0, 1)).to(shaped_B.dtype)


def format_apart_advantages(
    returns_B_K: Tensor,
    format_B_K: Tensor,
    num_turns_B: Tensor,
    group_ids_B: Tensor,
    *,
    passed_B: Tensor,
    weight: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """GTPO's advantage of accuracy alone, plus each turn's own format penalty as it stands.

        A[i,j] = group_advantages(R)[i,j] + weight * r_format[i,j]

    A penalty stays as small as it was meant in a group in which it is the only signal, and falls on its own turn.

    Source: ours [O]; `group_advantages` with its defaults.

    Args:
        returns_B_K: float, returns of the turn rewards without format penalties. Padding is ignored.
        format_B_K: float, the format penalties. Padding is ignored.
        num_turns_B: integer, 1..K.
        group_ids_B: integer, equal within a group; any values, order and group sizes.
        passed_B: bool, True iff the rollout's final answer is verified.
        weight: finite, of the penalties beside advantages whose size is about 1.
        eps: at least 0, added to the deviation.

    Returns:
        advantages_B_K: in the dtype of `returns_B_K`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, a value is not finite, or `eps` is
            out of range.
    """
    if not math.isfinite(weight):
        raise ValueError(f"weight must be finite, got {weight}")
    accuracy = group_advantages(returns_B_K, num_turns_B, group_ids_B, passed_B=passed_B, eps=eps)
    check_shape("format_B_K", format_B_K, returns_B_K.shape)
    penalties = format_B_K.to(accuracy.dtype).masked_fill(~active_turns(num_turns_B, *accuracy.shape), 0)
    check_finite("format_B_K", penalties)
    return accuracy + weight * penalties


def maxrl_advantages(returns_B_K: Tensor, num_turns_B: Tensor, group_ids_B: Tensor, *, passed_B: Tensor) -> Tensor:
    """Returns, centred over first turns and divided by the share of the group that passed, as MaxRL scales.

        A[i,j] = (R[i,j] - mean over k of R[k,1]) / (share of i's group that passed), and 0 if none passed

    With the outcome as the return of each turn this is MaxRL's advantage, (r - mean(r)) / mean(r): for groups of
    G its expectation is the gradient of success times the sum over k < G of (1 - p)^(k-1), where that of the logarithm
    has 1/p, the sum over all k.

    Source: Tajwar et al. 2026, arXiv 2602.02710; returns that differ from turn to turn are ours [O].

    Args:
        returns_B_K: float, one return per turn. Padding is ignored.
        num_turns_B: integer, 1..K.
        group_ids_B: integer, equal within a group; any values, order and group sizes.
        passed_B: bool, True iff the rollout's final answer is verified.

    Returns:
        advantages_B_K: in the dtype of `returns_B_K`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, or a return is not finite.
    """
    returns, active = turn_values("returns_B_K", returns_B_K, num_turns_B)
    passed = as_flags("passed_B", passed_B, (len(returns),)).to(returns)
    group_B, num_groups = number_groups(group_ids_B, len(returns))
    passes, first_sums = _sums(passed, group_B, num_groups), _sums(returns[:, 0], group_B, num_groups)
    sizes = _sums(torch.ones_like(passed), group_B, num_groups)
    centred = returns - (first_sums / sizes)[:, None]
    scaled = centred * (sizes / passes.clamp(min=1))[:, None]
    return scaled.masked_fill(~active | (passes == 0)[:, None], 0).to(returns_B_K.dtype)


def prefix_ids(events_B_K: Tensor, num_turns_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Numbers what each turn begins with: the calls and results of all turns before it.

    Two turns get the same number if and only if they have the same index, in rollouts of one group whose events up to
    there are equal. All first turns of a group share one.

    Args:
        events_B_K: integer, equal where a turn's call and result are. Padding is ignored.
        num_turns_B: integer, 1..K.
        group_ids_B: integer, equal within a group; any values, order and group sizes.

    Returns:
        prefix_ids_B_K: int64, at least 0; -1 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, or a number of turns lies outside 1..K.
    """
    check_shape("events_B_K", events_B_K, (None, None))
    check_integer("events_B_K", events_B_K)
    active = active_turns(num_turns_B, *events_B_K.shape)
    events = torch.unique(events_B_K.masked_fill(~active, 0), return_inverse=True)[1]
    ids, known = number_groups(group_ids_B, len(events))
    columns, offset = [], 0
    for turn in range(events.shape[1]):
        columns.append(ids + offset)
        offset += known
        kinds, ids = torch.unique(ids * (int(events.max()) + 1) + events[:, turn], return_inverse=True)
        known = len(kinds)
    return torch.stack(columns, dim=1).masked_fill(~active, -1)


def prefix_baseline_advantages(
    returns_B_K: Tensor, prefix_ids_B_K: Tensor, num_turns_B: Tensor, group_ids_B: Tensor, *, prior: float = 0.0
) -> Tensor:
    """Returns of turns minus what the group's other rollouts got from the same prefix on.

        A[i,j] = R[i,j] - b[i,j], and 0 if i is alone in its group
        b[i,j] = (sum of R[k,j] over N + prior * b[i,j-1]) / (|N| + prior), and b[i,j-1] if both are 0
        b[i,1] = mean of R[k,1] over the other rollouts of i's group

    with N the other rollouts that share i's prefix at turn j. The baseline depends on other rollouts only, so it leaves
    the expected gradient as it is.

    Source: ours [O]; states of other rollouts as baselines as in GiGPO (Feng et al. 2025, arXiv 2505.10978) and RTMC
    (Wang et al. 2026, arXiv 2604.11037).

    Args:
        returns_B_K: float, one return per turn. Padding is ignored.
        prefix_ids_B_K: integer, of `prefix_ids`.
        num_turns_B: integer, 1..K.
        group_ids_B: integer, equal within a group; any values, order and group sizes.
        prior: at least 0 and finite, rollouts that the baseline of the turn before counts for. A large one gives RLOO.

    Returns:
        advantages_B_K: in the dtype of `returns_B_K`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, a return is not finite, or `prior`
            is out of range.
    """
    if not (math.isfinite(prior) and prior >= 0):
        raise ValueError(f"prior must be finite and at least 0, got {prior}")
    returns, active = turn_values("returns_B_K", returns_B_K, num_turns_B)
    sums, counts = _over_prefixes(returns, prefix_ids_B_K, active)
    others_sums, others = sums - returns, counts - 1
    baseline = others_sums / others.clamp(min=1)
    for turn in range(1, returns.shape[1]):
        above, weight = baseline[:, turn - 1], others[:, turn] + prior
        mixed = (others_sums[:, turn] + prior * above) / weight.clamp(min=1e-12)
        baseline[:, turn] = torch.where(weight > 0, mixed, above)
    group_B, num_groups = number_groups(group_ids_B, len(returns))
    sizes = _sums(torch.ones_like(returns[:, 0]), group_B, num_groups)
    return (returns - baseline).masked_fill(~active | (sizes == 1)[:, None], 0).to(returns_B_K.dtype)


def prefix_value_advantages(outcomes_B: Tensor, prefix_ids_B_K: Tensor, num_turns_B: Tensor) -> Tensor:
    """What each turn changed of the value of its prefix, as the group's rollouts estimate it.

        A[i,j] = V[i,j+1] - V[i,j] if j < T_i, else outcome[i] - V[i,T_i]
        V[i,j] = mean outcome over the rollouts that share i's prefix at turn j, i's own included

    The advantages of a rollout add up to its outcome less the group's mean. A shift of a group's outcomes changes
    nothing and a factor is carried through: with GRPO's advantages as outcomes they have GRPO's scale.

    Source: after RTMC (Wang et al. 2026, arXiv 2604.11037), Q(s,a) - V(s) from rollouts that share a state, here with
    exact prefixes as states [O].

    Args:
        outcomes_B: float, one per rollout.
        prefix_ids_B_K: integer, of `prefix_ids`.
        num_turns_B: integer, 1..K.

    Returns:
        advantages_B_K: in the dtype of `outcomes_B`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, or an outcome is not finite.
    """
    check_shape("outcomes_B", outcomes_B, (None,))
    outcomes, active = turn_values("outcomes_B", outcomes_B[:, None].expand(prefix_ids_B_K.shape), num_turns_B)
    sums, counts = _over_prefixes(outcomes, prefix_ids_B_K, active)
    values = sums / counts.clamp(min=1)
    after = torch.where(active[:, 1:], values[:, 1:], outcomes[:, :1])
    return (torch.cat([after, outcomes[:, :1]], dim=1) - values).masked_fill(~active, 0).to(outcomes_B.dtype)


def gigpo_advantages(
    outcomes_B: Tensor,
    returns_B_K: Tensor,
    prefix_ids_B_K: Tensor,
    num_turns_B: Tensor,
    group_ids_B: Tensor,
    *,
    weight: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """GiGPO's advantage of every turn: that of the rollout, plus that of the turn among turns that begin alike.

        A[i,j] = A_rollout[i] + weight * A_step[i,j]

    A_rollout is GRPO's advantage of the outcome; A_step is the turn's return, normalised over the turns of the group
    that share its prefix.

    Source: Feng et al. 2025, arXiv 2505.10978, whose anchor states may also recur at other turns; exact prefixes as
    states are ours [O].

    Args:
        outcomes_B: float, one per rollout.
        returns_B_K: float, one return per turn. Padding is ignored.
        prefix_ids_B_K: integer, of `prefix_ids`.
        num_turns_B: integer, 1..K.
        group_ids_B: integer, equal within a group; any values, order and group sizes.
        weight: finite; the paper's omega, 1 there.
        eps: at least 0, added to deviations.

    Returns:
        advantages_B_K: in the dtype of `returns_B_K`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, a value is not finite, or `eps` is
            out of range.
    """
    if not math.isfinite(weight):
        raise ValueError(f"weight must be finite, got {weight}")
    returns, active = turn_values("returns_B_K", returns_B_K, num_turns_B)
    rollout = grpo_advantages(outcomes_B, group_ids_B, eps=eps).to(returns)
    step = torch.zeros_like(returns)
    step[active] = grpo_advantages(returns[active], prefix_ids_B_K[active], eps=eps)
    return (rollout[:, None] + weight * step).masked_fill(~active, 0).to(returns_B_K.dtype)


def _over_prefixes(values_B_K: Tensor, prefix_ids_B_K: Tensor, active_B_K: Tensor) -> tuple[Tensor, Tensor]:
    """For each turn the sum of the values of all turns with its prefix, and how many there are; 1 past the last."""
    check_shape("prefix_ids_B_K", prefix_ids_B_K, values_B_K.shape)
    check_integer("prefix_ids_B_K", prefix_ids_B_K)
    _, ids = torch.unique(prefix_ids_B_K[active_B_K], return_inverse=True)
    sums, counts = torch.zeros_like(values_B_K), torch.ones_like(values_B_K)
    values = values_B_K[active_B_K]
    sums[active_B_K] = _sums(values, ids, len(ids))
    counts[active_B_K] = _sums(torch.ones_like(values), ids, len(ids))
    return sums, counts


def _sums(values: Tensor, ids: Tensor, num_ids: int) -> Tensor:
    """For each value the sum of all values with its id."""
    return values.new_zeros(num_ids).index_add(0, ids, values)[ids]
