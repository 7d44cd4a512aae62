"""What travels with a rollout through verl, and the credit that is computed from it. Does not need verl.

The agent loop passes on what it knows about a rollout (`told`), as plain values; the trainer makes `CreditInputs` from
the values of all agent loops (`facts_of`), and the estimator computes returns and advantages per token
(`token_advantages`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gtpo import functional as F
from gtpo.credit_assignment import CreditInputs, CreditSettings, credit_inputs
from gtpo.errors import ConfigError
from gtpo.scoring import Scored
from gtpo.types import Trajectory


def told(trajectory: Trajectory, scored: Scored, *, penalize_syntax_errors: bool = False) -> dict[str, Any]:
    """What the trainer needs to know about a rollout, as plain values that can travel through verl's queue.

    A rollout without an outcome reward, because its verifier failed or no reward function applies to it, is masked.
    """
    facts = credit_inputs(
        trajectory,
        passed=scored.passed,
        group_id=0,
        penalize_syntax_errors=penalize_syntax_errors,
        dropped=scored.failure is not None or scored.reward is None,
        outcome=scored.reward,
        turn_rewards=scored.turn_rewards,
    )
    return {
        "passed": facts.passed,
        "invalid_turns": list(facts.invalid_turns),
        "has_call": facts.has_call,
        "code": facts.code,
        "masked": facts.masked,
        "outcome": facts.outcome,
        "turn_rewards": {name: list(values) for name, values in facts.turn_rewards.items()},
        "stop_reason": trajectory.stop_reason.value,
        "turn_tokens": [len(turn.token_ids) for turn in trajectory.turns],
    }


def facts_of(uids: Sequence[str], said: Sequence[Mapping[str, Any] | None]) -> list[CreditInputs]:
    """The rollouts of a batch as `CreditInputs`; padding (None) is masked."""
    groups = {uid: number for number, uid in enumerate(dict.fromkeys(uids))}
    return [
        CreditInputs(
            group_id=groups[uid],
            passed=bool(row["passed"]),
            invalid_turns=tuple(map(bool, row["invalid_turns"])),
            has_call=bool(row["has_call"]),
            code=row["code"],
            masked=bool(row["masked"]),
            outcome=None if row["outcome"] is None else float(row["outcome"]),
            turn_rewards={name: tuple(map(float, values)) for name, values in row["turn_rewards"].items()},
        )
        if row is not None
        else CreditInputs(groups[uid], False, (False,), False, "", masked=True)
        for uid, row in zip(uids, said, strict=True)
    ]


def turn_ids_of(mask_T: Tensor, row: Mapping[str, Any] | None) -> Tensor:
    """The turn of each sampled token of one rollout, -1 elsewhere; -1 throughout if there is nothing to score.

    Raises:
        ValueError: the mask does not hold the tokens that were sampled.
    """
    if row is None:
        return torch.full_like(mask_T, -1, dtype=torch.int64)
    turns = torch.repeat_interleave(torch.arange(len(row["turn_tokens"])), torch.tensor(row["turn_tokens"]))
    sampled_T = mask_T.bool()
    if int(sampled_T.sum()) != len(turns):
        raise ValueError(f"{len(turns)} tokens were sampled, but the mask of the batch holds {int(sampled_T.sum())}")
    return torch.full(mask_T.shape, -1).masked_scatter(sampled_T, turns)


def on_last_tokens(rewards_K: Tensor, turn_ids_T: Tensor) -> Tensor:
    """Turn rewards as token rewards: each on the last token of its turn, 0 elsewhere."""
    rewards_T = torch.zeros(len(turn_ids_T))
    ends = (turn_ids_T >= 0) & (torch.cat([turn_ids_T[1:], turn_ids_T.new_full((1,), -1)]) != turn_ids_T)
    rewards_T[ends] = rewards_K[turn_ids_T[ends]]
    return rewards_T


@dataclass(frozen=True)
class Known:
    """What verl does not pass to an estimator.

    Attributes:
        turn_ids_B_T: integer, the turn of each sampled token, -1 elsewhere; -1 throughout for rows that are not scored.
        passed_B: bool, whether the row's rollout passed.
        own_B_K: float, the user's own turn rewards, which are part of the token rewards; None: there are none.
    """

    turn_ids_B_T: Tensor
    passed_B: Tensor
    own_B_K: Tensor | None = None


def token_advantages(
    rewards_B_T: Tensor, mask_B_T: Tensor, group_ids_B: Tensor, settings: CreditSettings, known: Known | None
) -> tuple[Tensor, Tensor]:
    """GTPO's advantages and returns per token.

    Args:
        rewards_B_T: float; a turn's reward is the sum over its tokens.
        mask_B_T: 1 on sampled tokens. Rows without any are left out of their group; their advantages and returns are 0.
        group_ids_B: integer, equal within a group.
        settings: gamma, what to normalise over, the rule for uniform groups, the clip.
        known: the turns, and which rollouts passed; None: the turns are the contiguous runs of the mask.

    Returns:
        advantages_B_T and discounted returns_B_T, both 0 outside of sampled tokens.

    Raises:
        ConfigError: `zero_uniform_groups` is true, and it is not known which rollouts passed.
    """
    if known is None and settings.zero_uniform_groups:
        raise ConfigError(
            "algorithm.gtpo.zero_uniform_groups=true needs to know which rollouts passed: use "
            "trainer.v1.trainer_mode=gtpo_sync, or +algorithm.gtpo.zero_uniform_groups=false"
        )
    device = mask_B_T.device
    turn_ids_B_T = F.turn_ids_from_mask(mask_B_T) if known is None else known.turn_ids_B_T.to(device)
    scored_B = turn_ids_B_T.ge(0).any(dim=1)
    advantages_B_T, returns_B_T = torch.zeros_like(rewards_B_T), torch.zeros_like(rewards_B_T)
    if scored_B.any():
        ids = turn_ids_B_T[scored_B]
        rewards = F.sum_over_turns(rewards_B_T[scored_B], ids)
        num_turns = ids.max(dim=1).values + 1
        returns = F.discounted_returns(rewards, num_turns, gamma=settings.gamma)
        own_returns = None
        if known is not None and known.own_B_K is not None:
            own = known.own_B_K.to(device=device, dtype=rewards.dtype)[scored_B][:, : rewards.shape[1]]
            own_returns = F.discounted_returns(own, num_turns, gamma=settings.gamma)
        advantages = F.group_advantages(
            returns,
            num_turns,
            group_ids_B.to(device)[scored_B],
            passed_B=None if known is None else known.passed_B.to(device)[scored_B],
            own_returns_B_K=own_returns,
            normalize_over=settings.normalize_over,
            zero_uniform_groups=settings.zero_uniform_groups,
            advantage_clip=settings.advantage_clip,
        )
        advantages_B_T[scored_B] = F.spread_to_tokens(advantages, ids)
        returns_B_T[scored_B] = F.spread_to_tokens(returns, ids)
    return advantages_B_T * mask_B_T, returns_B_T * mask_B_T
