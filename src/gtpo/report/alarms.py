"""Checks of a run's metrics for known problems. Each alarm says what was observed and what it means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gtpo.advice import where_success_is_rare

Metrics = Sequence[Mapping[str, float]]
"""One mapping per step."""


@dataclass(frozen=True)
class Alarm:
    """An observation that needs attention.

    Attributes:
        name: a short name.
        sentence: what was observed, and what it means.
        metric: the metric that shows it.
    """

    name: str
    sentence: str
    metric: str


def alarms(metrics: Metrics, settings: Mapping[str, Any], void_share: float | None = None) -> list[Alarm]:
    """The alarms of a run.

    Args:
        metrics: the metrics of its steps.
        settings: the settings of its algorithm.
        void_share: share of the last recorded rollouts that ended with neither a call nor an answer; None if unknown.
    """
    found = [alarm for check in _CHECKS for alarm in check(metrics, settings)]
    if void_share is not None and void_share > 0.1:
        found.append(
            Alarm(
                "turns without an answer",
                f"{void_share:.0%} of the rollouts of the last recorded steps end with a turn that holds neither a "
                "call nor an answer. Training on them is known to end in collapse; consider no_answer_rollouts: mask.",
                "stop/answer",
            )
        )
    return found


def _ends(metrics: Metrics, name: str) -> tuple[float, float] | None:
    """Means over the first and the last third of the steps; None with fewer than six."""
    values = [row[name] for row in metrics if name in row]
    third = len(values) // 3
    return (fmean(values[:third]), fmean(values[-third:])) if third >= 2 else None


def _last(metrics: Metrics, name: str, steps: int = 5) -> float | None:
    values = [row[name] for row in metrics if name in row][-steps:]
    return fmean(values) if values else None


def _calls_fall(metrics: Metrics, settings: Mapping[str, Any]) -> Iterator[Alarm]:
    calls, reward, passed = (_ends(metrics, name) for name in ("calls", "reward/total", "pass_rate"))
    if not (calls and reward and passed):
        return
    if calls[1] < 0.7 * calls[0] and reward[1] > reward[0] and passed[1] < passed[0] + 0.05:
        yield Alarm(
            "fewer calls, more reward",
            f"Calls per rollout fell from {calls[0]:.2f} to {calls[1]:.2f} while the reward rose and the pass rate did "
            "not (first and last third of the steps). The model may avoid penalties by giving up the tool.",
            "calls",
        )


def _similarity_rises(metrics: Metrics, settings: Mapping[str, Any]) -> Iterator[Alarm]:
    alpha = settings.get("alpha") or 0
    if not alpha:
        return
    rows = []
    for row in metrics:
        mixed = 1 - row.get("pass_rate", 1) - row.get("groups/frac_all_failed", 0)
        if "reward/shaped" in row and mixed > 0.02:
            rows.append({"similarity": row["reward/shaped"] / alpha / mixed, "pass_rate": row["pass_rate"]})
    similar, passed = _ends(rows, "similarity"), _ends(rows, "pass_rate")
    if similar and passed and similar[1] > similar[0] + 0.1 and passed[1] < passed[0] + 0.02:
        yield Alarm(
            "similarity without success",
            f"Failures resemble successes more and more ({similar[0]:.2f} to {similar[1]:.2f}), but the pass rate does "
            "not rise: the model may earn the shaped reward with code that only resembles a success. A lower alpha "
            "removes this incentive.",
            "reward/shaped",
        )


def _negative_on_success(metrics: Metrics, settings: Mapping[str, Any]) -> Iterator[Alarm]:
    name = "advantage/frac_negative_on_success"
    ends = _ends(metrics, name)
    if ends and ends[1] > 0.15 and ends[1] > ends[0] + 0.05:
        yield Alarm(
            "successes are punished",
            f"{ends[1]:.0%} of the turns of successes have a negative advantage, up from {ends[0]:.0%}. "
            "With normalize_over all_turns the first turns of successes become negative once most of a group succeeds, "
            "earlier for long rollouts.",
            name,
        )


def _above(name: str, bound: float, title: str, meaning: str) -> Callable[..., Iterator[Alarm]]:
    def check(metrics: Metrics, settings: Mapping[str, Any]) -> Iterator[Alarm]:
        value = _last(metrics, name)
        if value is not None and value > bound:
            yield Alarm(title, f"{value:.1%} in the last steps. {meaning}", name)

    return check


def _all_fail(metrics: Metrics, settings: Mapping[str, Any]) -> Iterator[Alarm]:
    share = _last(metrics, "groups/frac_all_failed")
    if share is not None and share > 0.5:
        meaning = (
            where_success_is_rare(settings) or "They do not change the model; easier problems or larger groups help."
        )
        yield Alarm(
            "most groups fail altogether", f"{share:.0%} of the groups in the last steps. {meaning}", "pass_rate"
        )


def _entropy_falls(metrics: Metrics, settings: Mapping[str, Any]) -> Iterator[Alarm]:
    ends = _ends(metrics, "entropy")
    if ends and ends[0] > 0 and ends[1] < 0.1 * ends[0]:
        yield Alarm(
            "entropy collapsed",
            f"From {ends[0]:.3f} to {ends[1]:.3f} (first and last third of the steps): the rollouts of a group have "
            "become alike, and groups without differences in reward do not change the model.",
            "entropy",
        )


_FAILING = {
    "tool": "a tool or the sandbox",
    "environment": "the environment",
    "model_server": "the model server",
    "verifier": "the verifier",
    "similarity": "the code similarity",
}
"""What fails, by kind of `gtpo.failures`. Prompts that are too long and stale rollouts are no such failures."""

_CHECKS: tuple[Callable[[Metrics, Mapping[str, Any]], Iterator[Alarm]], ...] = (
    _calls_fall,
    _similarity_rises,
    _negative_on_success,
    _all_fail,
    _entropy_falls,
    _above(
        "stop/repetition",
        0.02,
        "turns repeat themselves",
        "Rollouts end because a turn repeats the same few tokens, often after an observation: an early sign of "
        "collapse.",
    ),
    *(
        _above(
            f"failures/{kind}",
            0.01,
            f"{what} fails",
            "So many rollouts failed because of it and are excluded from the loss. Check it before anything else.",
        )
        for kind, what in _FAILING.items()
    ),
)
