"""Discounted returns over the turns of a rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from gtpo.functional._checks import turn_values


def discounted_returns(rewards_B_K: Tensor, num_turns_B: Tensor, *, gamma: float = 0.9) -> Tensor:
    """What a rollout earns from a turn on, discounted by turns.

        R[i,j] = sum over m = j..T_i of gamma^(m-j) * r[i,m]

    Source: return-based advantage [P], formula and gamma = 0.9 [T].

    Args:
        rewards_B_K: float, one reward a turn. Padding is ignored.
        num_turns_B: integer, 1..K, the T_i of the equation.
        gamma: 0..1, discount from one turn to the next; 0 leaves each turn its own reward.

    Returns:
        returns_B_K: in the dtype of `rewards_B_K`. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, a reward is not finite,
            or gamma lies outside 0..1.
    """
    return masked_returns(rewards_B_K, num_turns_B, gamma=gamma).to(rewards_B_K.dtype)


def masked_returns(rewards_B_K: Tensor, num_turns_B: Tensor, *, gamma: float) -> Tensor:
    """`discounted_returns` in the dtype it is computed in."""
    rewards, _ = turn_values("rewards_B_K", rewards_B_K, num_turns_B)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in 0..1, got {gamma}")

    turns = torch.arange(rewards.shape[1], device=rewards.device)
    ahead = turns - turns[:, None]
    discount_K_K = torch.pow(gamma, ahead.clamp(min=0).to(rewards.dtype)).masked_fill(ahead < 0, 0)
    # Not a matmul: TF32 or autocast would round it, and its blocking may give equal rollouts unequal returns.
    return (rewards[:, None, :] * discount_K_K).sum(dim=2)
