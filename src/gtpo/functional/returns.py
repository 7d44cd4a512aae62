"""Discounted returns over the turns of a rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from gtpo.functional._checks import turn_values


def discounted_returns(rewards_B_K: Tensor, num_turns_B: Tensor, *, gamma: float = 0.9) -> Tensor:
    """The return of every turn: the sum of the rewards from this turn on, discounted per turn.

        R[i,j] = sum over m = j..T_i of gamma^(m-j) * r[i,m]

    Source: return-based advantage [P], formula and gamma = 0.9 [T].

    Args:
        rewards_B_K: float, one reward per turn. Padding is ignored.
        num_turns_B: integer, 1..K, the T_i of the equation.
        gamma: 0..1, discount from one turn to the next; with 0, a turn's return is its own reward.

    Returns:
        returns_B_K: in the dtype of `rewards_B_K`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, a reward is not finite,
            or gamma lies outside 0..1.
    """
    return masked_returns(rewards_B_K, num_turns_B, gamma=gamma).to(rewards_B_K.dtype)


def gamma_for_turns(turns: int, *, first_share: float = 0.7) -> float:
    """The discount with which the first turn of a success of `turns` turns keeps this share of the reward.

        gamma = first_share^(1 / (turns - 1)), and 1 if there is one turn

    With a share above alpha, shaping gives no failure more than the first turn of a success without format penalties.

    Source: ours [O]; 0.7 by the exact bench (docs/results/tabular.md). At gamma 0.9 the first of 8 turns keeps 0.48,
    less than shaping can give a failure with the paper's alpha, 0.5.

    Args:
        turns: number of turns of the longest rollout, at least 1.
        first_share: the share, in (0, 1].

    Raises:
        ValueError: an argument is out of range.
    """
    if turns < 1 or not 0 < first_share <= 1:
        raise ValueError(f"needs turns >= 1 and first_share in (0, 1], got {turns} and {first_share}")
    return first_share ** (1 / (turns - 1)) if turns > 1 else 1.0


def masked_returns(rewards_B_K: Tensor, num_turns_B: Tensor, *, gamma: float) -> Tensor:
    """`discounted_returns` in the dtype in which it is computed."""
    rewards, _ = turn_values("rewards_B_K", rewards_B_K, num_turns_B)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in 0..1, got {gamma}")

    turns = torch.arange(rewards.shape[1], device=rewards.device)
    ahead = turns - turns[:, None]
    discount_K_K = torch.pow(gamma, ahead.clamp(min=0).to(rewards.dtype)).masked_fill(ahead < 0, 0)
    # Not a matmul: TF32 or autocast would round it, and its blocking may give equal rollouts unequal returns.
    return (rewards[:, None, :] * discount_K_K).sum(dim=2)
