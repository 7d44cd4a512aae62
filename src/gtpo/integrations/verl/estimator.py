"""The advantage estimator `gtpo`: from rewards on tokens to normalised discounted returns of turns.

verl hands an estimator the rewards of tokens, the mask of sampled tokens, the group of each row and the configuration;
not which rollout passed, and no turns. The turns are the runs of the mask, unless `turns_known` says what they are: the
mask may have lost tokens since (verl's rollout correction rejects some), and a run in two pieces is still one turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from gtpo import functional as F
from gtpo.errors import ConfigError
from gtpo.integrations.verl.settings import AlgorithmOptions

_KNOWN: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("gtpo_turns", default=None)


@contextmanager
def turns_known(turn_ids_B_T: Tensor, passed_B: Tensor) -> Iterator[None]:
    """Tell the estimator, for as long as the block lasts, what verl does not pass on.

    Args:
        turn_ids_B_T: integer, the turn of each sampled token, -1 elsewhere; -1 throughout for rows that are not scored.
        passed_B: bool, whether the row's rollout passed.
    """
    token = _KNOWN.set((turn_ids_B_T, passed_B))
    try:
        yield
    finally:
        _KNOWN.reset(token)


@register_adv_est("gtpo")
def gtpo_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray,
    config: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """GTPO's advantages and returns of tokens.

    Args:
        token_level_rewards: (B, T) float; a turn's reward is the sum over its tokens.
        response_mask: (B, T), 1 on sampled tokens. Rows without any (padding, rollouts that are not scored) are left
            out of their group and get 0.
        index: (B,), equal within a group.
        config: verl's `config.algorithm`; its `gtpo` holds gamma, normalize_over and the rule for uniform groups.

    Returns:
        advantages (B, T) and discounted returns (B, T), both 0 outside of sampled tokens.

    Raises:
        ConfigError: `zero_uniform_groups` is true, and nobody said which rollouts passed.
    """
    settings = AlgorithmOptions.of(config or {}).credit
    known = _KNOWN.get()
    if known is None and settings.zero_uniform_groups:
        raise ConfigError(
            "algorithm.gtpo.zero_uniform_groups=true needs to know which rollouts passed: use "
            "trainer.v1.trainer_mode=gtpo_sync, or +algorithm.gtpo.zero_uniform_groups=false"
        )
    with torch.no_grad():
        turn_ids_B_T = F.turn_ids_from_mask(response_mask) if known is None else known[0].to(response_mask.device)
        scored_B = turn_ids_B_T.ge(0).any(dim=1)
        advantages_B_T = torch.zeros_like(token_level_rewards)
        returns_B_T = torch.zeros_like(token_level_rewards)
        if scored_B.any():
            ids = turn_ids_B_T[scored_B]
            rewards = F.sum_over_turns(token_level_rewards[scored_B], ids)
            num_turns = ids.max(dim=1).values + 1
            groups = torch.as_tensor(np.unique(index, return_inverse=True)[1], device=scored_B.device)[scored_B]
            returns = F.discounted_returns(rewards, num_turns, gamma=settings.gamma)
            advantages = F.group_advantages(
                returns,
                num_turns,
                groups,
                passed_B=None if known is None else known[1].to(scored_B.device)[scored_B],
                normalize_over=settings.normalize_over,
                zero_uniform_groups=settings.zero_uniform_groups,
                advantage_clip=settings.advantage_clip,
            )
            advantages_B_T[scored_B] = F.spread_to_tokens(advantages, ids)
            returns_B_T[scored_B] = F.spread_to_tokens(returns, ids)
        return advantages_B_T * response_mask, returns_B_T * response_mask
