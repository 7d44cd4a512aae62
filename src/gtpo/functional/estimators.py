"""Other estimators of the advantage, for comparison only: none of them is GTPO.

They take the same inputs as GTPO and GRPO and return the same kind of result, so that training runs differ in nothing
else. The surrogate objective is not included: Dr. GRPO, for one, also changes how the loss is averaged over tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gtpo.functional._checks import active_turns, check_finite, check_floating, check_shape, turn_values, widen
from gtpo.functional.advantages import group_advantages, grpo_advantages, number_groups


def dr_grpo_advantages(rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Dr. GRPO's advantage of every rollout: GRPO's without the division by the deviation.

        A[i] = r[i] - mean(S)

    with S the rewards of i's group, i's own included.

    Source: Liu et al. 2025, arXiv 2503.20783.

    Args:
        rewards_B: float, one reward per rollout.
        group_ids_B: integer, equal within a group; any values, order and group sizes.

    Returns:
        advantages_B: in the dtype of `rewards_B`. 0 in a group of one.

    Raises:
        ValueError: shapes or dtypes don't fit, or a reward is not finite.
    """
    rewards, sums, counts = _groups(rewards_B, group_ids_B)
    return (rewards - sums / counts).to(rewards_B.dtype)


def rloo_advantages(rewards_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """RLOO's advantage of every rollout: its reward minus the mean of the others.

        A[i] = r[i] - mean(S without i), and 0 if i is alone

    Unbiased: the baseline does not depend on rollout i.

    Source: Kool et al. 2019 (openreview r1lgTGL5DE); Ahmadian et al. 2024, arXiv 2402.14740.

    Args:
        rewards_B: float, one reward per rollout.
        group_ids_B: integer, equal within a group; any values, order and group sizes.

    Returns:
        advantages_B: in the dtype of `rewards_B`.

    Raises:
        ValueError: shapes or dtypes don't fit, or a reward is not finite.
    """
    rewards, sums, counts = _groups(rewards_B, group_ids_B)
    others = (sums - rewards) / (counts - 1).clamp(min=1)
    return (rewards - others).masked_fill(counts == 1, 0).to(rewards_B.dtype)


def mt_grpo_advantages(
    turn_rewards_B_K: Tensor,
    outcomes_B: Tensor,
    num_turns_B: Tensor,
    group_ids_B: Tensor,
    *,
    weight: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """MT-GRPO's advantage of every turn: that of the turn's own reward plus that of the outcome.

        A[i,j] = A_turn[i,j] + weight * A_outcome[i] if j is not i's last turn, else A_outcome[i]

    A_outcome is GRPO's advantage of the outcome; A_turn is the turn's own reward, not its return, normalised over
    those rollouts of the group that reach turn j.

    Source: Zeng et al. 2025, arXiv 2505.11821, which has two turns: one that calls a tool, and the answer. More than
    two turns are our extension [O].

    Args:
        turn_rewards_B_K: float, rewards of turns without the outcome. Padding is ignored.
        outcomes_B: float, one reward per rollout.
        num_turns_B: integer, 1..K.
        group_ids_B: integer, equal within a group; any values, order and group sizes.
        weight: finite; the paper's lambda.
        eps: at least 0, added to deviations.

    Returns:
        advantages_B_K: in the dtype of `turn_rewards_B_K`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, a value is not finite, or `eps` is
            out of range.
    """
    if not math.isfinite(weight):
        raise ValueError(f"weight must be finite, got {weight}")
    turn = group_advantages(
        turn_rewards_B_K,
        num_turns_B,
        group_ids_B,
        normalize_over="same_turn",
        zero_uniform_groups=False,
        advantage_clip=0,
        eps=eps,
    )
    outcome_B_1 = grpo_advantages(outcomes_B, group_ids_B, eps=eps).to(turn.dtype)[:, None]
    active = active_turns(num_turns_B, *turn.shape)
    last = torch.arange(turn.shape[1], device=turn.device) == num_turns_B[:, None] - 1
    return torch.where(last, outcome_B_1, turn + weight * outcome_B_1).masked_fill(~active, 0)


def leave_one_out_advantages(returns_B_K: Tensor, num_turns_B: Tensor, group_ids_B: Tensor) -> Tensor:
    """Returns of turns minus a baseline that does not include the rollout itself.

        A[i,j] = R[i,j] - b[i,j], and 0 if i is alone in its group
        b[i,j] = mean of R[k,j] over the other rollouts k of i's group that reach turn j
                 mean of R[k,T_k] over all others, if none of them does

    If returns depend only on their own rollout (no shaping, alpha 0), the baseline does not depend on i. So it does not
    change the expected gradient, even if the policy chooses when to stop. A mean that includes i does: it gives less
    weight to a turn that few rollouts reach. There is no division by a deviation, which also biases.

    Source: ours [O]; the leave-one-out baseline is RLOO's, per turn.

    Args:
        returns_B_K: float, one return per turn. Padding is ignored.
        num_turns_B: integer, 1..K.
        group_ids_B: integer, equal within a group; any values, order and group sizes.

    Returns:
        advantages_B_K: in the dtype of `returns_B_K`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, or a return is not finite.
    """
    returns, active = turn_values("returns_B_K", returns_B_K, num_turns_B)
    last_B = returns.gather(1, num_turns_B.long()[:, None] - 1)[:, 0]
    last, last_sums, sizes = _groups(last_B, group_ids_B)
    elsewhere_B_1 = ((last_sums - last) / (sizes - 1).clamp(min=1))[:, None]

    group_B, num_groups = number_groups(group_ids_B, len(returns))
    sums = returns.new_zeros(num_groups, returns.shape[1]).index_add(0, group_B, returns)[group_B]
    counts = returns.new_zeros(num_groups, returns.shape[1]).index_add(0, group_B, active.to(returns))[group_B]
    others = counts - active.to(returns)
    baseline = torch.where(others > 0, (sums - returns) / others.clamp(min=1), elsewhere_B_1)
    return (returns - baseline).masked_fill(~active | (sizes == 1)[:, None], 0).to(returns_B_K.dtype)


def _groups(values_B: Tensor, group_ids_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values in the dtype for computing, and for each of them the sum and the size of its group."""
    check_shape("rewards_B", values_B, (None,))
    check_floating("rewards_B", values_B)
    check_finite("rewards_B", values_B)
    values = widen(values_B)
    group_B, num_groups = number_groups(group_ids_B, len(values))
    zeros = values.new_zeros(num_groups)
    sums = zeros.index_add(0, group_B, values)[group_B]
    return values, sums, zeros.index_add(0, group_B, torch.ones_like(values))[group_B]
