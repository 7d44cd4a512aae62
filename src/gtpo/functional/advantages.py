"""Advantages: returns normalised within a group, for turns (GTPO) or for rollouts (GRPO)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from gtpo.functional._checks import (
    as_flags,
    check_finite,
    check_floating,
    check_integer,
    check_shape,
    turn_values,
    widen,
)
from gtpo.functional.returns import masked_returns
from gtpo.functional.segments import spread_to_tokens

NORMALIZE_OVER = ("all_turns", "first_turns", "same_turn")
"""The sets over which returns can be normalised; see `group_advantages`."""

PAPER: Mapping[str, str | bool | float] = MappingProxyType(
    {"normalize_over": "all_turns", "zero_uniform_groups": False, "advantage_clip": 0.0}
)
"""Options for the unmodified formulas: `F.gtpo_advantages(..., **F.PAPER)`.

The paper names none of the three [O]: all turns are normalised together, no group is zeroed, nothing is clipped.
"""

MIN_DEVIATION = 1e-8
"""A set with a smaller sample deviation (a single member's is 0) has no spread: its advantages are 0."""


def group_advantages(
    returns_B_K: Tensor,
    num_turns_B: Tensor,
    group_ids_B: Tensor,
    *,
    passed_B: Tensor | None = None,
    own_returns_B_K: Tensor | None = None,
    normalize_over: str = "first_turns",
    zero_uniform_groups: bool = True,
    advantage_clip: float = 10.0,
    eps: float = 1e-4,
) -> Tensor:
    """Returns normalised within their group.

        A[i,j] = clip((R[i,j] - mean(S)) / (std(S) + eps), -c, c), and 0 if S has one member or std(S) < 1e-8

    with std the sample deviation (divisor |S| - 1), c = advantage_clip and S, by normalize_over,

        all_turns    the returns of all turns of all rollouts of i's group
        first_turns  the returns R[k,1] of all rollouts k of i's group
        same_turn    the returns R[k,j] of those rollouts k of i's group that reach turn j

    Under `zero_uniform_groups`, groups whose rollouts all passed or all failed keep only `own_returns_B_K`, the part of
    their returns that comes from user-defined turn rewards. It is centred and not scaled,
    A[i,j] = clip(R_own[i,j] - mean(S), -c, c): divided by their deviation, the smallest rewards would count as much as
    success does elsewhere, whatever their weight. Without such rewards, A is 0 in these groups.

    Source: normalised over the group [P]; over which set is unknown, the three are readings by third parties
    [T]. Sample deviation, eps (that of TRL's GRPO), the guard, zeroing uniform groups, the clip and the
    defaults are ours [O], by the evidence in docs/results.md. `PAPER` has the unmodified formulas.

    Known problems: `all_turns` makes the first turn of a success negative once a group's success rate exceeds
    gamma^(T-1) / mean_k gamma^k, and long rollouts weigh more. `first_turns` has no spread in a group of successes of
    equal length, and divides later turns' returns by the spread of first turns; the clip bounds the result. Under
    `same_turn`, late turns are singletons. In a group of failures the format penalty is the only signal, and the
    division by the deviation scales it to full size: hence `zero_uniform_groups`.

    Args:
        returns_B_K: float, one return per turn. Padding is ignored.
        num_turns_B: integer, 1..K.
        group_ids_B: integer, equal within a group; any values, order and group sizes.
        passed_B: bool, True iff the rollout's final answer is verified. Needed for `zero_uniform_groups`.
        own_returns_B_K: float, the part of the returns that comes from user-defined turn rewards. Padding is ignored.
        normalize_over: "all_turns", "first_turns" or "same_turn".
        zero_uniform_groups: whether to ignore outcome, shaping and format in groups that all passed or all failed.
        advantage_clip: at least 0, largest magnitude of an advantage; 0: no bound.
        eps: at least 0, added to the deviation.

    Returns:
        advantages_B_K: in the dtype of `returns_B_K`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, a return is not finite,
            an option is unknown or out of range, or `zero_uniform_groups` is given without `passed_B`.
    """
    returns, active = turn_values("returns_B_K", returns_B_K, num_turns_B)
    if not (math.isfinite(advantage_clip) and advantage_clip >= 0):
        raise ValueError(f"advantage_clip must be finite and at least 0 (0: no bound), got {advantage_clip}")
    group_B, num_groups = number_groups(group_ids_B, returns.shape[0])
    silenced_B = torch.zeros_like(group_B, dtype=torch.bool)
    if passed_B is not None:
        passed = as_flags("passed_B", passed_B, (returns.shape[0],))
        if zero_uniform_groups:
            own = torch.zeros_like(returns)
            if own_returns_B_K is not None:
                check_shape("own_returns_B_K", own_returns_B_K, tuple(returns.shape))
                check_floating("own_returns_B_K", own_returns_B_K)
                own = own_returns_B_K.to(returns.dtype).masked_fill(~active, 0)
                check_finite("own_returns_B_K", own)
            silenced_B = _has_uniform_outcome(passed, group_B, num_groups)
            returns = torch.where(silenced_B[:, None], own, returns)
    elif zero_uniform_groups:
        raise ValueError(
            "zero_uniform_groups=True needs passed_B, which says which rollouts passed; or set it to False"
        )
    advantages = normalised(returns, active, group_B, num_groups, normalize_over, eps, centred_B=silenced_B)
    if advantage_clip:
        advantages = advantages.clamp(-advantage_clip, advantage_clip)
    return advantages.to(returns_B_K.dtype)


def gtpo_advantages(
    rewards_B_K: Tensor,
    num_turns_B: Tensor,
    turn_ids_B_T: Tensor,
    group_ids_B: Tensor,
    *,
    passed_B: Tensor | None = None,
    gamma: float = 0.9,
    normalize_over: str = "first_turns",
    zero_uniform_groups: bool = True,
    advantage_clip: float = 10.0,
    eps: float = 1e-4,
) -> Tensor:
    """GTPO's advantage of every token: returns, advantages and spreading in one call.

        A[i,t] = A[i, turn_ids[i,t]] if turn_ids[i,t] >= 0, else 0

    with A[i,j] from `group_advantages` of `discounted_returns`.

    Source: return-based advantage [P], formulas [T]; these functions say what is ours.

    Args:
        rewards_B_K: float, one reward per turn (`turn_rewards`). Padding is ignored.
        num_turns_B: integer, 1..K.
        turn_ids_B_T: integer, -1..K-1.
        group_ids_B: integer, equal within a group; any values, order and group sizes.
        passed_B: bool, True iff the rollout's final answer is verified. Needed for `zero_uniform_groups`.
        gamma: 0..1, see `discounted_returns`.
        normalize_over, zero_uniform_groups, advantage_clip, eps: see `group_advantages`.

    Returns:
        advantages_B_T: in the dtype of `rewards_B_K`. Exactly 0 where `turn_ids_B_T` is -1.

    Raises:
        ValueError: as `discounted_returns`, `group_advantages` and `spread_to_tokens` do.
    """
    advantages = group_advantages(
        masked_returns(rewards_B_K, num_turns_B, gamma=gamma),
        num_turns_B,
        group_ids_B,
        passed_B=passed_B,
        normalize_over=normalize_over,
        zero_uniform_groups=zero_uniform_groups,
        advantage_clip=advantage_clip,
        eps=eps,
    )
    return spread_to_tokens(advantages.to(rewards_B_K.dtype), turn_ids_B_T)


def grpo_advantages(rewards_B: Tensor, group_ids_B: Tensor, *, eps: float = 1e-4) -> Tensor:
    """GRPO's advantage of every rollout, for comparison.

        A[i] = (r[i] - mean(S)) / (std(S) + eps), and 0 if S has one member or std(S) < 1e-8

    with S the rewards of i's group and std the sample deviation.

    Source: GRPO (arXiv 2402.03300), the paper's baseline [P]; sample deviation, eps (TRL's) and guard are
    ours [O].

    Args:
        rewards_B: float, one reward per rollout.
        group_ids_B: integer, equal within a group; any values, order and group sizes.
        eps: at least 0, added to the deviation.

    Returns:
        advantages_B: in the dtype of `rewards_B`.

    Raises:
        ValueError: shapes or dtypes don't fit, a reward is not finite, or `eps` is out of range.
    """
    check_shape("rewards_B", rewards_B, (None,))
    check_floating("rewards_B", rewards_B)
    check_finite("rewards_B", rewards_B)
    group_B, num_groups = number_groups(group_ids_B, rewards_B.shape[0])
    rewards_B_1 = widen(rewards_B)[:, None]
    active = torch.ones_like(rewards_B_1, dtype=torch.bool)
    return normalised(rewards_B_1, active, group_B, num_groups, "first_turns", eps)[:, 0].to(rewards_B.dtype)


def number_groups(group_ids_B: Tensor, num_rollouts: int) -> tuple[Tensor, int]:
    """Each rollout's group as an index from 0, and the number of groups."""
    check_shape("group_ids_B", group_ids_B, (num_rollouts,))
    check_integer("group_ids_B", group_ids_B)
    groups, group_B = torch.unique(group_ids_B, return_inverse=True)
    return group_B, len(groups)


def normalised(
    returns: Tensor,
    active: Tensor,
    group_B: Tensor,
    num_groups: int,
    normalize_over: str,
    eps: float,
    *,
    centred_B: Tensor | None = None,
) -> Tensor:
    """Centre and scale each return by the set it belongs to; returns of rollouts in `centred_B` are only centred."""
    if normalize_over not in NORMALIZE_OVER:
        raise ValueError(f"normalize_over must be one of {NORMALIZE_OVER}, got {normalize_over!r}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    max_turns = returns.shape[1]
    turns = torch.arange(max_turns, device=returns.device)
    set_ids, num_sets = group_B[:, None].expand(returns.shape), num_groups
    if normalize_over == "same_turn":
        set_ids, num_sets = set_ids * max_turns + turns, num_groups * max_turns
    members = active & (turns == 0) if normalize_over == "first_turns" else active

    ids, values = set_ids[members], returns[members]
    zeros = returns.new_zeros(num_sets)
    counts = zeros.index_add(0, ids, torch.ones_like(values))
    # Measured from a member of the set, equal returns are exactly 0 apart, so that rounding of the mean can't
    # lift their deviation over the guard.
    origin = zeros.scatter_reduce(0, ids, values, "amin", include_self=False)
    mean = zeros.index_add(0, ids, values - origin[ids]) / counts.clamp(min=1)
    squares = zeros.index_add(0, ids, (values - origin[ids] - mean[ids]).square())
    deviation = (squares / (counts - 1).clamp(min=1)).sqrt()

    flat = deviation < MIN_DEVIATION
    scale = (deviation + eps)[set_ids]
    if centred_B is not None:
        scale = scale.masked_fill(centred_B[:, None], 1)
    advantages = (returns - origin[set_ids] - mean[set_ids]) / scale
    return advantages.masked_fill(flat[set_ids] | ~active, 0)


def _has_uniform_outcome(passed: Tensor, group_B: Tensor, num_groups: int) -> Tensor:
    """Mask_B, True on rollouts of groups in which every rollout passed or every one failed."""
    zeros = torch.zeros(num_groups, dtype=torch.long, device=passed.device)
    sizes = zeros.index_add(0, group_B, torch.ones_like(group_B))
    passes = zeros.index_add(0, group_B, passed.long())
    return ((passes == 0) | (passes == sizes))[group_B]
