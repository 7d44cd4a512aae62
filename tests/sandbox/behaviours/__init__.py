"""A hundred behaviours that a code sandbox owes its trainer, each a small program and what must come of it.

In a plain `python -c` every program would do its deed, so that the list detects a sandbox which does not hold.
`BEHAVIOURS` is in a fixed order; names are unique.
"""

from __future__ import annotations

from behaviours import crash, filesystem, introspection, network, output, process, resource, results, syntax
from behaviours.entry import Behaviour, Facts, Outcome

AREAS = (resource, filesystem, network, process, introspection, crash, output, syntax, results)
BEHAVIOURS: tuple[Behaviour, ...] = tuple(behaviour for area in AREAS for behaviour in area.BEHAVIOURS)

__all__ = ["AREAS", "BEHAVIOURS", "Behaviour", "Facts", "Outcome"]
