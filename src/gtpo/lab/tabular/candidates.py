"""Candidates for credit that is never worse than GRPO's, as pure functions in the style of `gtpo.functional`.

No trainer uses them: a candidate that wins on the exact bench and in studies moves to `gtpo.functional`, as
`gamma_for_turns` did, and the others are removed; docs/log.md has their results.
Glossary, marks and conventions are those of `gtpo.functional`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gtpo.functional import grpo_advantages
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
    """Shaped accuracy, scaled so that no failure gets more than the first turn of any success in its group.

        shaped'[i] = shaped[i] * clip(min over passing k of i's group of R[k,1], 0, 1), and 0 if none passes

    Source: ours [O].

    Args:
        shaped_B: float in [0, 1], 0 for rollouts that passed (`shaped_accuracy`).
        first_returns_B: float, returns of first turns; only those of rollouts that passed are used.
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


def prefix_ids(events_B_K: Tensor, num_turns_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Number the prefixes of turns: the calls and results of all turns before a turn.

    Two turns get the same number if and only if they have the same index and belong to rollouts of one group whose
    events up to that turn are equal. All first turns of a group share one number.

    Args:
        events_B_K: integer, equal if the turns' calls and results are equal. Padding is ignored.
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
    """GiGPO's advantage of every turn: that of the rollout, plus that of the turn among turns with the same prefix.

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
