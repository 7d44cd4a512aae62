"""One JSON object a rollout, as the recorder writes it; `docs/run-directory.md` documents the fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gtpo.credit import Credit, CreditInputs
from gtpo.rollout.token_offsets import TokenPieces
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict
from gtpo.types import InvalidCall, Trajectory, Turn


def rollout_rows(
    trajectories: Sequence[Trajectory],
    problems: Sequence[Problem],
    verdicts: Sequence[Verdict],
    credit: Credit,
    first: int,
    pieces: TokenPieces,
    facts: Sequence[CreditInputs],
) -> list[dict[str, Any]]:
    """Describe finished rollouts with their credit.

    Args:
        trajectories, problems, verdicts: of this process, in the same order.
        credit: of the whole batch.
        first: place of the first of these rollouts in `credit`.
        pieces: cuts the texts of turns at their tokens.
        facts: what credit knows of the rollouts of the whole batch.
    """
    values = {name: getattr(credit, name).tolist() for name in _OF_CREDIT}  # one by one a tensor's entries are slow
    groups = credit.group_B.tolist()
    return [
        {
            "rollout": first + i,
            "group": groups[first + i],
            "problem_id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "passed": verdict.passed,
            "verdict": verdict.reason,
            "extracted": verdict.extracted,
            "stop_reason": trajectory.stop_reason.value,
            "masked": facts[first + i].masked,
            "prompt_tokens": len(trajectory.prompt_ids),
            "outcome_reward": values["outcome_B"][first + i],
            "similarities": {str(p): round(value, 6) for p, value in credit.similarities.get(first + i, {}).items()},
            "turns": [
                {
                    **_turn_text(turn, pieces),
                    "invalid": facts[first + i].invalid_turns[j],
                    **_turn_credit(values, first + i, j, len(trajectory.turns)),
                }
                for j, turn in enumerate(trajectory.turns)
            ],
        }
        for i, (trajectory, problem, verdict) in enumerate(zip(trajectories, problems, verdicts, strict=True))
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


_OF_CREDIT = ("accuracy_B", "shaped_B", "format_B_K", "rewards_B_K", "returns_B_K", "advantages_B_K", "outcome_B")


def _turn_credit(values: dict[str, list[Any]], row: int, turn: int, num_turns: int) -> dict[str, float]:
    last = turn == num_turns - 1
    return {
        "r_acc": values["accuracy_B"][row] if last else 0.0,
        "r_shaped": values["shaped_B"][row] if last else 0.0,
        "r_format": values["format_B_K"][row][turn],
        "reward": values["rewards_B_K"][row][turn],
        "return": values["returns_B_K"][row][turn],
        "advantage": values["advantages_B_K"][row][turn],
    }
