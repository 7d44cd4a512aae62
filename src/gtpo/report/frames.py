"""A run as tidy data frames, for notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtpo.run_directory import RunFiles

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunFrames:
    """A run as data frames.

    Attributes:
        settings: settings of the algorithm, and a few more.
        metrics: one row per logged step and one column per metric, indexed by step.
        rollouts: one row per recorded rollout: step, rollout, group, the problem, outcome, stop reason; and
            `num_turns`, `num_calls`, `num_invalid`, `tokens`, `reward` (sum over turns), `min_advantage`,
            `max_advantage`, `similarity` (mean over the group's successes; NaN if it was not compared).
        turns: one row per turn: step, rollout, group, turn (from 0), and every field of a recorded turn.
    """

    settings: dict[str, Any]
    metrics: pd.DataFrame
    rollouts: pd.DataFrame
    turns: pd.DataFrame


def load(run: str | Path, *, steps: list[int] | None = None) -> RunFrames:
    """Read a run's directory. Lone surrogates, which pandas does not accept, become U+FFFD.

    Args:
        run: the directory.
        steps: the recorded steps to read; None reads all.

    Raises:
        DataError: it is not a run's directory, or one of its files can't be read.
    """
    import pandas as pd

    files = RunFiles(run)
    rollouts: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for step in files.steps() if steps is None else steps:
        for row in files.rollouts(step):
            place = {"step": step, "rollout": row["rollout"], "group": row["group"]}
            rollouts.append({**place, **_whole(_rollout_row(row))})
            turns += [{**place, "turn": number, **_whole(turn)} for number, turn in enumerate(row["turns"])]
    metrics = pd.DataFrame(files.metrics())
    return RunFrames(
        settings=files.settings(),
        metrics=metrics.set_index("step") if len(metrics) else metrics,
        rollouts=pd.DataFrame(rollouts),
        turns=pd.DataFrame(turns),
    )


def _rollout_row(row: dict[str, Any]) -> dict[str, Any]:
    turns, alike = row["turns"], list(row["similarities"].values())
    plain = {name: value for name, value in row.items() if name not in ("turns", "similarities", "schema", "step")}
    calls = [call for turn in turns for call in turn["calls"]]
    advantages = [turn["advantage"] for turn in turns]
    return {
        **plain,
        "num_turns": len(turns),
        "num_calls": len(calls),
        "num_invalid": sum("invalid" in call for call in calls),
        "tokens": sum(turn["tokens"] for turn in turns),
        "reward": sum(turn["reward"] for turn in turns),
        "min_advantage": min(advantages),
        "max_advantage": max(advantages),
        "similarity": sum(alike) / len(alike) if alike else float("nan"),
    }


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _mended(value) if isinstance(value, str) else value for name, value in row.items()}


def _mended(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
