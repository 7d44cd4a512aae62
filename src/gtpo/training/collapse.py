"""Guards against collapse: what becomes of rollouts that went nowhere.

Two kinds, each with an option. A *void* rollout ends with a turn that holds neither a call nor an answer. A *cut* one
ends at a limit, or because it repeated itself. SimpleTIR (arXiv 2509.02479) leaves rollouts with void turns out of the
loss; the paper of GTPO does neither, so both options are `keep` by default.
"""

from __future__ import annotations

from typing import Literal

from gtpo.types import StopReason, Trajectory

Fate = Literal["keep", "mask", "drop"]
"""keep: as any other. mask: its tokens are out of the loss, its rewards count in its group. drop: neither."""

_CUT = {
    StopReason.TURN_TOKENS,
    StopReason.TOTAL_TOKENS,
    StopReason.CONTEXT,
    StopReason.TURNS,
    StopReason.REPETITION,
}


def fate_of(trajectory: Trajectory, *, has_answer: bool, void: Fate, cut: Fate) -> Fate:
    """What becomes of a rollout; one whose sandbox failed is always dropped.

    Args:
        trajectory: the rollout.
        has_answer: whether its last turn holds an answer, right or wrong.
        void: for rollouts that end with a turn without call and answer.
        cut: for rollouts that end at a limit or by repetition.
    """
    if trajectory.stop_reason is StopReason.INFRA:
        return "drop"
    if trajectory.stop_reason in _CUT:
        return cut
    return "keep" if has_answer else void
