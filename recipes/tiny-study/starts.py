"""Starting points of the studies: a family of problems and the behaviour that its cold start teaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LOOKUP, _CALCULATOR = "gtpo.lab.tiny.hops:LookupTool", "gtpo.lab.tiny.steps:Calculator"
_DESKS = "gtpo.lab.tiny.desks:DeskLookupTool"


@dataclass(frozen=True)
class Start:
    """A cold start and the limits of its rollouts.

    Attributes:
        demo: options of `gtpo demo` that define the problems and the cold start.
        tools: value of `gtpo train --tools`.
        max_turns, max_completion_length: limits per rollout; the length is in tokens.
        thresholds: training pass rates; the first step that reaches each is reported.
        batches: batches of 128 rollouts per run of `select` and `report`.
    """

    demo: Mapping[str, Any]
    tools: str
    max_turns: int = 8
    max_completion_length: int = 192
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.8)
    batches: int = 24


def _hops(steps: int, wrong: float, guess: float, tokens: int) -> dict[str, Any]:
    return {
        "family": "hops",
        "problem_steps": steps,
        "malformed": 0.4,
        "wrong": wrong,
        "guess": guess,
        "max_trace_tokens": tokens,
    }


def _long(family: str, steps: int, malformed: float, wrong: float, guess: float, tokens: int) -> dict[str, Any]:
    return {
        "family": family,
        "problem_steps": steps,
        "malformed": malformed,
        "wrong": wrong,
        "guess": guess,
        "max_trace_tokens": tokens,
        "cold_start_steps": 400,
    }


_HARDER = (0.3, 0.5, 0.7)

STARTS = {
    # pass rates at the start: 0.39, 0.46, 0.33
    "steps": Start({"family": "steps"}, _CALCULATOR),
    "programs": Start({"family": "programs"}, _CALCULATOR, batches=8),
    "hops": Start({"family": "hops"}, _LOOKUP, batches=8),
    # harder: a tool that fails, calls that must be corrected, successes of six to nine turns;
    # pass rates at the start: 0.02, 0.005, 0.32
    "flaky": Start(_long("flaky", 6, 0.2, 0.12, 0.14, 256), "gtpo.lab.tiny.flaky:FlakyLookupTool", 14, 320, _HARDER),
    "desks": Start(_long("desks", 5, 0.2, 0.25, 0.12, 256), _DESKS, 14, 320, _HARDER),
    "desks-short": Start(_long("desks", 3, 0.2, 0.15, 0.08, 192), _DESKS, 10, 256, batches=12),
    # pass rates at the start: 0.02 and 0.1 with four turns; 0.02 with eight turns
    "hops-rare": Start(_hops(3, 0.5, 0.4, 160), _LOOKUP, thresholds=(0.1, 0.3, 0.5, 0.8), batches=12),
    "hops-some": Start(_hops(3, 0.32, 0.3, 160), _LOOKUP, thresholds=(0.1, 0.3, 0.5, 0.8), batches=8),
    "hops-rare-long": Start(_hops(7, 0.25, 0.22, 288), _LOOKUP, 12, 320, thresholds=(0.1, 0.3, 0.5, 0.8)),
}
