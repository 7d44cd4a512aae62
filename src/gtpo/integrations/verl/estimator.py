"""The advantage estimator `gtpo`: from rewards on tokens to normalised discounted returns of turns.

verl gives an estimator the token rewards, the mask of sampled tokens, the group of each row and the configuration, but
neither the turns nor which rollouts passed. The turns are the contiguous runs of the mask, unless `turns_known` gives
them: the mask may have lost tokens since (verl's rollout correction rejects some), and a run in two pieces is still one
turn.
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

from gtpo.integrations.verl.facts import Known, token_advantages
from gtpo.integrations.verl.settings import AlgorithmOptions

_KNOWN: ContextVar[Known | None] = ContextVar("gtpo_turns", default=None)


@contextmanager
def turns_known(turn_ids_B_T: Tensor, passed_B: Tensor, own_B_K: Tensor | None = None) -> Iterator[None]:
    """Give the estimator, for as long as the block lasts, what verl does not pass on; see `Known`."""
    token = _KNOWN.set(Known(turn_ids_B_T, passed_B, own_B_K))
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
    """GTPO's advantages and returns per token.

    Args:
        token_level_rewards: (B, T) float; a turn's reward is the sum over its tokens.
        response_mask: (B, T), 1 on sampled tokens. Rows without any (padding, rollouts that are not scored) are left
            out of their group, and their advantages and returns are 0.
        index: (B,), equal within a group.
        config: verl's `config.algorithm`; its `gtpo` holds gamma, normalize_over and the rule for uniform groups.

    Returns:
        advantages (B, T) and discounted returns (B, T), both 0 outside of sampled tokens.

    Raises:
        ConfigError: `zero_uniform_groups` is true, and it is not known which rollouts passed.
    """
    settings = AlgorithmOptions.of(config or {}).credit
    groups_B = torch.as_tensor(np.unique(index, return_inverse=True)[1])
    with torch.no_grad():
        return token_advantages(token_level_rewards, response_mask, groups_B, settings, _KNOWN.get())
