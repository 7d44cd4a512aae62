"""The families of problems that the tiny model can learn, by name."""

from __future__ import annotations

from gtpo.errors import ConfigError
from gtpo.lab.tiny.desks import DeskHops
from gtpo.lab.tiny.flaky import FlakyHops
from gtpo.lab.tiny.hops import Hops
from gtpo.lab.tiny.programs import Programs
from gtpo.lab.tiny.steps import Steps
from gtpo.traces.mixed import Family

FAMILIES: dict[str, type[Steps] | type[Programs] | type[Hops]] = {
    kind.name: kind for kind in (Steps, Programs, Hops, FlakyHops, DeskHops)
}


def get_family(name: str, steps: int | None = None) -> Family:
    """The family of that name.

    Args:
        name: a key of `FAMILIES`.
        steps: number of calls that each problem takes, for families with that choice; by default a mixture.

    Raises:
        ConfigError: there is no such family, `steps` is below 1, or the family does not let it be chosen.
    """
    if name not in FAMILIES:
        raise ConfigError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    kind = FAMILIES[name]
    if steps is None:
        return kind()
    if issubclass(kind, Programs) or steps < 1:
        raise ConfigError(
            f"problem_steps: {steps}: must be at least 1, and can't be set for the family {Programs.name!r}"
        )
    return kind(steps, steps)
