"""The metrics that a step logs about its rollouts and its time; `docs/metrics.md` explains each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gtpo.training.groups import Counts
from gtpo.types import StopReason, Trajectory


def rollout_counts(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Sums over rollouts; the sums of several processes can be added (see `rollout_metrics`)."""
    counts = {
        "rollouts": float(len(trajectories)),
        "turns": float(sum(len(t.turns) for t in trajectories)),
        "calls": float(sum(t.num_calls for t in trajectories)),
        "invalid_calls": float(sum(t.num_invalid_calls for t in trajectories)),
        "no_call": float(sum(t.num_calls == 0 for t in trajectories)),
    }
    for reason in StopReason:
        counts[f"stop/{reason.value}"] = float(sum(t.stop_reason is reason for t in trajectories))
    for t in trajectories:
        for turn in t.turns:
            for status in turn.observation.statuses if turn.observation else ():
                counts[f"tool/{status}"] = counts.get(f"tool/{status}", 0.0) + 1
    return counts


def rollout_metrics(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means per rollout, given the counts of every process."""
    total: dict[str, float] = {}
    for part in counts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    rollouts = max(total.pop("rollouts", 0.0), 1.0)
    names = {"no_call": "rollouts/frac_no_call", "turns": "turns", "calls": "calls", "invalid_calls": "invalid_calls"}
    return {names.get(name, name): value / rollouts for name, value in total.items()}


def resample_metrics(counts: Sequence[Counts]) -> dict[str, float]:
    """The cost of replacing uniform groups by other problems, given the counts of every process.

    Empty without counts of groups, as before a batch in progress has ended.
    """
    total = sum(counts, Counts())
    if not total.drawn:
        return {}
    kept = max(total.drawn - total.replaced, 1)
    return {
        "resample/drawn_per_group": total.drawn / kept,
        "resample/frac_uniform": total.uniform / total.drawn,
        "resample/pass_rate": total.passed / max(total.scored, 1),
    }


def time_metrics(seconds: Mapping[str, float], step_s: float) -> dict[str, float]:
    """Seconds per phase, and their shares of the steps since the last log.

    Args:
        seconds: wall seconds of rollout (which includes tools), tools, scoring, verify, credit and record.
        step_s: wall seconds of the training steps as a whole; the time outside these phases is the update.
    """
    spent = {name: seconds.get(name, 0.0) for name in ("rollout", "tools", "scoring", "verify", "credit", "record")}
    accounted = sum(spent.values()) - spent["tools"]
    spent["update"] = max(step_s - accounted, 0.0)
    shares = {f"time/{name}_share": value / step_s for name, value in spent.items()} if step_s > 0 else {}
    return {**{f"time/{name}_s": value for name, value in spent.items()}, **shares}
