"""One JSON object per rollout, as the recorder writes it; `docs/run-directory.md` documents the fields."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from gtpo.credit_assignment import PARTS
from gtpo.credit_table import turn_parts
from gtpo.rollout.token_offsets import TokenPieces
from gtpo.training.batch import Batch
from gtpo.types import InvalidCall, Turn


def recorded_groups(groups: Sequence[int], tokens: Sequence[int], max_tokens: int) -> set[int]:
    """The first groups of a batch that together have at most about `max_tokens` completion tokens; at least one group.

    Args:
        groups, tokens: for each rollout, its group and its number of completion tokens.
        max_tokens: the limit; 0: all groups.
    """
    sizes: dict[int, int] = {}
    for group, count in zip(groups, tokens, strict=True):
        sizes[group] = sizes.get(group, 0) + count
    kept: set[int] = set()
    total = 0
    for group, size in sizes.items():
        total += size
        if kept and max_tokens and total > max_tokens:
            break
        kept.add(group)
    return kept


def rollout_rows(
    batch: Batch, pieces: TokenPieces, groups: Container[int], weights_steps: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Describe the finished rollouts of this process with their credit.

    Args:
        batch: the rollouts.
        pieces: splits the texts of turns at token boundaries.
        groups: the groups to describe.
        weights_steps: for each rollout of this process, the step of its weights, if known.
    """
    values = {name: getattr(batch.credit, name).tolist() for name in PARTS}  # entries of a tensor are slow
    group_of = batch.credit.group_B.tolist()
    described = enumerate(zip(batch.trajectories, batch.problems, batch.verdicts, strict=True), start=batch.first)
    return [
        {
            "rollout": i,
            "group": group_of[i],
            "problem_id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "passed": verdict.passed,
            "score": verdict.score,
            "verdict": verdict.reason,
            "extracted": verdict.extracted,
            "has_answer": batch.has_answer[i - batch.first],
            "stop_reason": trajectory.stop_reason.value,
            "failure": failure.kind if (failure := batch.failures[i]) else None,
            "masked": batch.inputs[i].masked,
            "prompt_tokens": len(trajectory.prompt_ids),
            "outcome_reward": values["outcome_B"][i],
            "similarities": {str(p): round(value, 6) for p, value in batch.credit.similarities.get(i, {}).items()},
            "turns": [
                {
                    **_turn_text(turn, pieces),
                    "invalid": batch.inputs[i].invalid_turns[j],
                    "turn_rewards": {name: own[j] for name, own in batch.inputs[i].turn_rewards.items()},
                    **turn_parts(values, i, j, len(trajectory.turns)),
                }
                for j, turn in enumerate(trajectory.turns)
            ],
            **({"weights_step": weights_steps[i - batch.first]} if weights_steps else {}),
        }
        for i, (trajectory, problem, verdict) in described
        if group_of[i] in groups
    ]


def _turn_text(turn: Turn, pieces: TokenPieces) -> dict[str, Any]:
    observation = turn.observation
    return {
        "text": turn.text,
        "calls": [
            {"invalid": call.reason} if isinstance(call, InvalidCall) else {"code": call.code} for call in turn.calls
        ],
        "tokens": len(turn.token_ids),
        "token_chars": pieces.chars(turn.token_ids, turn.text),
        "logprobs": None if turn.logprobs is None else [round(value, 3) for value in turn.logprobs],
        "observation": observation.text if observation else None,
        "observation_tokens": len(observation.token_ids) if observation else 0,
        "statuses": list(observation.statuses) if observation else [],
        "tool_wall_s": round(observation.wall_s, 4) if observation else 0.0,
    }
