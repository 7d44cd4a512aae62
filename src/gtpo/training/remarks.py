"""Warnings of the trainer, each given once, when a run can't learn what it should."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from gtpo.advice import where_success_is_rare
from gtpo.types import InvalidCall, Trajectory

STEPS = 5
"""Steps over which the share of groups without a success is averaged."""
SHARE = 0.5


class Remarks:
    """Checks each step.

    Args:
        settings: settings of the algorithm, see `gtpo.advice.where_success_is_rare`.
        tools: names of the tools that rollouts may call.
        pass_or_fail: whether the verifier alone rewards, and nothing between 0 and 1.
    """

    def __init__(self, settings: Mapping[str, Any], tools: Sequence[str] = (), pass_or_fail: bool = False) -> None:
        self._advice = where_success_is_rare(settings)
        self._tools = ", ".join(tools)
        self._pass_or_fail = pass_or_fail
        self._all_failed: deque[float] = deque(maxlen=STEPS)
        self._said: set[str] = set()

    def of(self, metrics: Mapping[str, float], trajectories: Sequence[Trajectory] = ()) -> list[str]:
        """The warnings to print after a step.

        Args:
            metrics: the logged metrics of its rollouts.
            trajectories: the rollouts of this process.
        """
        checks = {"calls": self._calls, "scores": self._scores, "rare success": self._rare_success}
        said = {name: check(metrics, trajectories) for name, check in checks.items()}
        new = {name: text for name, text in said.items() if text and name not in self._said}
        self._said.update(new)
        return list(new.values())

    def _calls(self, metrics: Mapping[str, float], trajectories: Sequence[Trajectory]) -> str:
        calls = metrics.get("calls")
        if calls is None or not self._tools or metrics["invalid_calls"] < calls:
            return ""
        teach = "a cold start teaches it (gtpo sft)."
        if not calls:
            return f"no rollout called a tool ({self._tools}). If the model does not know how, {teach}"
        turns = [turn for trajectory in trajectories for turn in trajectory.turns]
        reasons = Counter(call.reason for turn in turns for call in turn.calls if isinstance(call, InvalidCall))
        usual = "".join(f" (most often: {reason})" for reason, _ in reasons.most_common(1))
        return (
            f"no call could be carried out{usual} in this step. If the model does not know the tools ({self._tools}), "
            f"{teach}"
        )

    def _scores(self, metrics: Mapping[str, float], trajectories: Sequence[Trajectory]) -> str:
        if not (self._pass_or_fail and "score" in metrics):
            return ""
        return (
            "the verifier gave scores between 0 and 1: they are recorded, but only a score of 1 is rewarded "
            "(--graded true rewards them all)."
        )

    def _rare_success(self, metrics: Mapping[str, float], trajectories: Sequence[Trajectory]) -> str:
        self._all_failed.append(metrics["groups/frac_all_failed"])
        mean = sum(self._all_failed) / len(self._all_failed)
        if self._advice is None or len(self._all_failed) < STEPS or mean <= SHARE:
            return ""
        return (
            f"in the last {STEPS} steps every rollout failed in {mean:.0%} of the groups. Easier problems, more "
            f"rollouts per problem or a longer cold start help. So do other settings: {self._advice}"
        )
