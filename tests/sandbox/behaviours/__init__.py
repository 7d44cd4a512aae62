"""A hundred behaviours that a code sandbox owes its trainer, each a small program and what must come of it.

In a plain `python -c` every program would do its deed, so that the list detects a sandbox which does not hold.
`BEHAVIOURS` is in a fixed order; names are unique. `SECOND_ROUND` holds the programs that got through a sandbox which
held the hundred: what passes from one rollout to another, and what limits miss. `ALL` is both.
"""

from __future__ import annotations

from behaviours import (
    abuse,
    crash,
    crossing,
    filesystem,
    introspection,
    network,
    output,
    process,
    resource,
    results,
    syntax,
)
from behaviours.entry import Behaviour, Facts, Outcome

AREAS = (resource, filesystem, network, process, introspection, crash, output, syntax, results)
BEHAVIOURS: tuple[Behaviour, ...] = tuple(behaviour for area in AREAS for behaviour in area.BEHAVIOURS)
SECOND_ROUND: tuple[Behaviour, ...] = (*crossing.BEHAVIOURS, *abuse.BEHAVIOURS)
ALL = (*BEHAVIOURS, *SECOND_ROUND)

__all__ = ["ALL", "AREAS", "BEHAVIOURS", "SECOND_ROUND", "Behaviour", "Facts", "Outcome"]
