"""The ablations at a learning rate of 1e-4: options of `gtpo train` per variant, on top of the unmodified formulas."""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

PAPER: Options = {"normalize_over": "all_turns", "zero_uniform_groups": False, "advantage_clip": 0.0}
"""The unmodified formulas."""
_FIRST, _ZERO = {"normalize_over": "first_turns"}, {"zero_uniform_groups": True}

_SIDES: dict[str, Options] = {"grpo": {"algorithm": "grpo"}, "gtpo": {}}
_PARTS: dict[str, Options] = {
    "defaults": {**_FIRST, **_ZERO},
    # one part removed
    "no_turn_rewards": {"turn_rewards": False},
    "no_turn_returns": {"turn_returns": False},
    "no_shaping": {"alpha": 0.0},
    # other choices of normalize_over
    "normalize_initial": _FIRST,
    "normalize_turn": {"normalize_over": "same_turn"},
}
_RATES: dict[str, Options] = {
    f"{side}_lr_{rate}": {**options, "learning_rate": float(rate)}
    for rate in ("3e-5", "3e-4")
    for side, options in _SIDES.items()
}
_OPTIONS: dict[str, Options] = {
    "initial_lr_3e-4": {**_FIRST, "learning_rate": 3e-4},
    # where the gain of normalize_over first_turns comes from
    "initial_gamma_1": {**_FIRST, "gamma": 1.0},
    "initial_no_shaping": {**_FIRST, "alpha": 0.0},
    # sweeps
    "gamma_0": {"gamma": 0.0},
    "gamma_0.5": {"gamma": 0.5},
    "gamma_1": {"gamma": 1.0},
    "alpha_0.25": {"alpha": 0.25},
    "alpha_1": {"alpha": 1.0},
    "uniform_zero": _ZERO,
    "random_similarity": {"similarity": "random"},
    # other estimators
    **{name: {"algorithm": name} for name in ("dr_grpo", "rloo", "mt_grpo", "turn_loo")},
}
_RARE: dict[str, Options] = {"uniform_zero": _ZERO, "no_shaping": {"alpha": 0.0}}
_RARE_MORE: dict[str, Options] = {
    "zero_gamma_1": {**_ZERO, "gamma": 1.0},
    "zero_no_shaping": {**_ZERO, "alpha": 0.0},
    "zero_initial": {**_ZERO, **_FIRST},
}


def _study(five: dict[str, Options], three: dict[str, Options]) -> tuple[dict[str, Options], list[int], dict[str, Any]]:
    """Variants, seeds, and the seeds of the variants that use different ones."""
    variants = {
        name: {**(PAPER if "algorithm" not in options else {}), **options}
        for name, options in {**five, **three}.items()
    }
    return variants, [1, 2, 3, 4, 5], {name: [1, 2, 3] for name in three}


ABLATIONS = {
    "steps": _study({**_SIDES, **_PARTS}, {**_RATES, **_OPTIONS}),
    "hops": _study({**_SIDES, **_PARTS}, _RATES),
    "programs": _study({**_SIDES, **_PARTS}, _RATES),
    "hops-rare": _study({}, {**_SIDES, **_RARE, **_RARE_MORE}),
    "hops-some": _study({}, {**_SIDES, **_RARE}),
    "hops-rare-long": _study({}, {**_SIDES, **_RARE, **_RARE_MORE}),
}
"""By start: variants, seeds, and the seeds of the variants that use different ones."""
