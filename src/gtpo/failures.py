"""One policy for failures around the model: what a failing tool, verifier, similarity or model server means for a run.

`docs/failures.md` has it as a table. In short: the caller of a failing part retries with growing waits where that can
help. If the part still fails, the affected rollouts are masked (no reward, no advantage, no token in the loss, not
counted in their group) and counted by kind. A run whose batches lose too many rollouts ends, with an error that says
what failed and a checkpoint to resume from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gtpo.errors import ConfigError, TooManyFailuresError
from gtpo.types import StopReason, Trajectory

KINDS = ("tool", "environment", "model_server", "prompt_too_long", "verifier", "similarity", "stale")
"""What can fail. Each is logged as `failures/KIND`, the share of the step's rollouts that it masked."""
_BY_STOP_REASON = {
    StopReason.TOOL_FAILURE: "tool",
    StopReason.ENVIRONMENT_FAILURE: "environment",
    StopReason.MODEL_FAILURE: "model_server",
    StopReason.PROMPT_TOO_LONG: "prompt_too_long",
}


@dataclass(frozen=True)
class Failure:
    """The reason why a rollout is masked.

    Attributes:
        kind: one of `KINDS`.
        note: what failed, as readable text.
    """

    kind: str
    note: str = ""


def failure_of(trajectory: Trajectory) -> Failure | None:
    """The failure of a rollout; None if nothing failed."""
    kind = _BY_STOP_REASON.get(trajectory.stop_reason)
    return Failure(kind, trajectory.note) if kind else None


@dataclass
class FailurePolicy:
    """Decides when a run has lost too many rollouts.

    A batch is lost if more than `max_failed_fraction` of its rollouts failed; the run ends with the
    `max_failed_batches`-th lost batch in a row. All processes of a run record the same failures and decide alike.

    Attributes:
        max_failed_fraction: in [0, 1]; 0: a batch with any failure is lost.
        max_failed_batches: at least 1.

    Raises:
        ConfigError: one of the two is out of range.
    """

    max_failed_fraction: float = 0.5
    max_failed_batches: int = 1
    _lost: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.max_failed_fraction <= 1:
            raise ConfigError(f"max_failed_fraction must be in [0, 1], got {self.max_failed_fraction}")
        if self.max_failed_batches < 1:
            raise ConfigError(f"max_failed_batches must be at least 1, got {self.max_failed_batches}")

    def note(self, failures: Sequence[Failure | None], step: int) -> dict[str, float]:
        """Record a batch: one entry per rollout, None for those that did not fail.

        Returns:
            The share of rollouts that each kind masked, as `failures/KIND`.

        Raises:
            TooManyFailuresError: the run has lost too many rollouts.
        """
        counts = Counter(failure.kind for failure in failures if failure)
        share = sum(counts.values()) / max(len(failures), 1)
        self._lost = self._lost + 1 if share > self.max_failed_fraction or share == 1 else 0
        if self._lost >= self.max_failed_batches:
            raise TooManyFailuresError(self._sentence(failures, counts, step))
        return {f"failures/{kind}": counts[kind] / max(len(failures), 1) for kind in KINDS}

    def _sentence(self, failures: Sequence[Failure | None], counts: Mapping[str, int], step: int) -> str:
        notes = {failure.kind: failure.note for failure in failures if failure and failure.note}
        said = [
            f"{kind} {count}" + (f" (such as: {notes[kind]})" if kind in notes else "")
            for kind, count in counts.items()
        ]
        batches = f" in each of the last {self._lost} batches" if self._lost > 1 else ""
        return (
            f"step {step}: {sum(counts.values())} of {len(failures)} rollouts failed, more than max_failed_fraction "
            f"{self.max_failed_fraction:g} allows{batches}: {'; '.join(said)}. Fix what failed, then resume with "
            "--resume true"
        )
