"""What options do in circumstances that a run turns out to be in; measured in docs/results.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SMALL_GROUP = 4
"""From here on `initial` has at least the signal of the other scopes (docs/results/tabular.md)."""


def where_success_is_rare(settings: Mapping[str, Any]) -> str | None:
    """What these settings teach where most groups fail altogether, and what to set in their place.

    Args:
        settings: `algorithm`, `max_turns` and the fields of `gtpo.credit.CreditSettings`, as far as they are known.

    Returns:
        Sentences; None if nothing is known against the settings.
    """
    if settings.get("algorithm") != "gtpo":
        return None
    said = []
    if settings.get("on_uniform_outcome") == "keep" and settings.get("turn_rewards") and settings.get("format_penalty"):
        said.append(
            "With on_uniform_outcome keep the format penalty is the only signal of such groups, at full size, and "
            "success may be unlearnt: use on_uniform_outcome zero."
        )
    gamma, alpha, turns = (_number(settings.get(name)) for name in ("gamma", "alpha", "max_turns"))
    if settings.get("turn_returns") and alpha > (first := gamma ** (turns - 1)):
        said.append(
            f"A failure after one call is paid up to alpha = {alpha:g} for looking like a success, the first turn of a "
            f"success of {turns:g} turns gamma^{turns - 1:g} = {first:.2g}, and long rollouts may be unlearnt: use "
            "gamma 1."
        )
    return " ".join(said) or None


def where_groups_are_small(settings: Mapping[str, Any], group_size: int) -> str | None:
    """What these settings do in groups of this size, and what to set in their place; None if nothing is known."""
    if settings.get("algorithm") != "gtpo" or settings.get("scope") != "initial" or group_size >= SMALL_GROUP:
        return None
    return (
        f"in groups of {group_size} the first turns' returns may hardly differ, and scope initial divides by how much "
        "they do: use scope pooled, or larger groups."
    )


def _number(value: Any) -> float:
    """NaN, of which nothing is true, if it is none."""
    return float(value) if isinstance(value, int | float) else math.nan
