"""The starting points of the studies: a family of problems, and the behaviour that its cold start teaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LOOKUP, _CALCULATOR = "gtpo.lab.tiny.hops:LookupTool", "gtpo.lab.tiny.steps:Calculator"


@dataclass(frozen=True)
class Start:
    """A cold start and the limits of its rollouts.

    Attributes:
        demo: options of `gtpo demo` that decide the problems and the cold start.
        tools: as `gtpo train --tools` takes it.
        max_turns, max_completion_length: per rollout; the length in tokens.
        thresholds: training pass rates whose first step is reported.
    """

    demo: Mapping[str, Any]
    tools: str
    max_turns: int = 8
    max_completion_length: int = 192
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.8)


def _hops(steps: int, wrong: float, guess: float, tokens: int) -> dict[str, Any]:
    return {
        "family": "hops",
        "problem_steps": steps,
        "malformed": 0.4,
        "wrong": wrong,
        "guess": guess,
        "max_trace_tokens": tokens,
    }


STARTS = {
    # pass rates at the start: 0.39, 0.46, 0.33
    "steps": Start({"family": "steps"}, _CALCULATOR),
    "programs": Start({"family": "programs"}, _CALCULATOR),
    "hops": Start({"family": "hops"}, _LOOKUP),
    # harder: a tool that fails, calls to be mended, more operations; nine to ten turns of a success
    "flaky": Start(
        {
            "family": "flaky",
            "problem_steps": 6,
            "malformed": 0.2,
            "wrong": 0.12,
            "guess": 0.14,
            "max_trace_tokens": 256,
        },
        "gtpo.lab.tiny.flaky:FlakyLookupTool",
        14,
        320,
        (0.3, 0.5, 0.7),
    ),
    "desks": Start(
        {
            "family": "desks",
            "problem_steps": 5,
            "malformed": 0.2,
            "wrong": 0.25,
            "guess": 0.12,
            "max_trace_tokens": 256,
        },
        "gtpo.lab.tiny.desks:DeskLookupTool",
        14,
        320,
        (0.3, 0.5, 0.7),
    ),
    "steps-long": Start(
        {"family": "steps", "problem_steps": 8, "malformed": 0.15, "wrong": 0.1, "guess": 0.1, "max_trace_tokens": 288},
        _CALCULATOR,
        14,
        352,
        (0.3, 0.5, 0.7),
    ),
    # 0.02 and 0.1, four turns; 0.02, eight turns
    "hops-rare": Start(_hops(3, 0.5, 0.4, 160), _LOOKUP, thresholds=(0.1, 0.3, 0.5, 0.8)),
    "hops-some": Start(_hops(3, 0.32, 0.3, 160), _LOOKUP, thresholds=(0.1, 0.3, 0.5, 0.8)),
    "hops-rare-long": Start(_hops(7, 0.25, 0.22, 288), _LOOKUP, 12, 320, thresholds=(0.1, 0.3, 0.5, 0.8)),
}
