"""Guards against collapse: how the loss treats rollouts without an answer, and rollouts whose weights are too old.

Two kinds of rollouts have an option each: those that end with a turn that holds neither a call nor an answer, and those
that end at a limit or because they repeat themselves. SimpleTIR (arXiv 2509.02479) excludes the former from the loss;
the GTPO paper excludes neither, so both options are `keep` by default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from gtpo.failures import Failure
from gtpo.types import StopReason, Trajectory

LossPolicy = Literal["keep", "mask", "drop"]
"""keep: like any other. mask: its tokens are not in the loss, its rewards count in its group. drop: neither."""

_TRUNCATED = {
    StopReason.TURN_TOKENS,
    StopReason.TOTAL_TOKENS,
    StopReason.CONTEXT,
    StopReason.TURNS,
    StopReason.REPETITION,
    StopReason.TIME,
}


def loss_policy_of(
    trajectory: Trajectory, *, has_answer: bool, no_answer: LossPolicy, truncated: LossPolicy
) -> LossPolicy:
    """The policy for a rollout; one that failed is always dropped.

    Args:
        trajectory: the rollout.
        has_answer: whether its last turn holds an answer, right or wrong.
        no_answer: for rollouts that end with a turn without call and answer.
        truncated: for rollouts that end at a limit or by repetition.
    """
    if trajectory.stop_reason.is_failure:
        return "drop"
    if trajectory.stop_reason in _TRUNCATED:
        return truncated
    return "keep" if has_answer else no_answer


def stale(weights_steps: Sequence[int], last_update: int, max_staleness: int | None) -> list[Failure | None]:
    """For each rollout, a failure if its weights are too old to train on it.

    Args:
        weights_steps: optimizer steps after which the rollouts' weights were taken.
        last_update: optimizer steps done before the last update that uses them.
        max_staleness: maximum number of steps between the two; None: no limit.
    """
    allowed = math.inf if max_staleness is None else max_staleness
    return [
        Failure("stale", f"weights of step {step}, more than max_staleness {max_staleness} before step {last_update}")
        if last_update - step > allowed
        else None
        for step in weights_steps
    ]
