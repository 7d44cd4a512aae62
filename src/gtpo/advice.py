"""Advice on options for the circumstances that a run meets; measured in docs/results.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DEFAULT_SHARE = 0.7
"""The advised `first_turn_share`: share of its reward that the first turn of the longest success keeps."""
SMALL_GROUP = 4
"""Group size from which `first_turns` has at least the signal of the other choices (docs/results/tabular.md)."""


def where_success_is_rare(settings: Mapping[str, Any]) -> str | None:
    """What these settings teach when in most groups every rollout fails, and what to set instead.

    Args:
        settings: `algorithm`, `max_turns` and the fields of `gtpo.credit_assignment.CreditSettings`, as far as they are
            known.

    Returns:
        Sentences; None if nothing is known against the settings.
    """
    if settings.get("algorithm") != "gtpo":
        return None
    said = []
    if (
        not settings.get("zero_uniform_groups", True)
        and settings.get("turn_rewards")
        and settings.get("format_penalty")
    ):
        said.append(
            "With zero_uniform_groups false, the format penalty is the only signal in such groups, and the model can "
            "unlearn what it already does right: set zero_uniform_groups true."
        )
    gamma, alpha, turns = (_number(settings.get(name)) for name in ("gamma", "alpha", "max_turns"))
    if settings.get("turn_returns") and alpha > (first := gamma ** (turns - 1)):
        said.append(
            f"A failed rollout with one call earns up to alpha = {alpha:g} for code that resembles a success. The "
            f"return of the first turn of a success of {turns:g} turns is only gamma^{turns - 1:g} = {first:.2g}, so "
            f"the model can unlearn long rollouts: set {_higher_gamma(alpha)}."
        )
    return " ".join(said) or None


def where_groups_are_small(settings: Mapping[str, Any], group_size: int) -> str | None:
    """What these settings do in groups of this size, and what to set instead; None if nothing is known."""
    by_first_turns = settings.get("algorithm") == "gtpo" and settings.get("normalize_over") == "first_turns"
    if not by_first_turns or group_size >= SMALL_GROUP:
        return None
    return (
        f"groups of {group_size} rollouts are small: the returns of their first turns may hardly differ, and "
        f"normalize_over first_turns divides by their deviation. Set normalize_over all_turns, or num_generations "
        f"{SMALL_GROUP} or more."
    )


def _higher_gamma(alpha: float) -> str:
    """A discount under which no failure is shaped to more than the first turn of a success."""
    return f"first_turn_share {DEFAULT_SHARE} (gamma by max_turns), or gamma 1" if alpha <= DEFAULT_SHARE else "gamma 1"


def _number(value: Any) -> float:
    """NaN if not a number, so that every comparison is false."""
    return float(value) if isinstance(value, int | float) else math.nan
