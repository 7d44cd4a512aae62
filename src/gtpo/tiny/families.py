"""The families of problems that the tiny model can learn, by name."""

from __future__ import annotations

from gtpo.errors import ConfigError
from gtpo.tiny.hops import Hops
from gtpo.tiny.programs import Programs
from gtpo.tiny.steps import Steps
from gtpo.tiny.traces import Family

FAMILIES: dict[str, type[Steps] | type[Programs] | type[Hops]] = {kind.name: kind for kind in (Steps, Programs, Hops)}


def get_family(name: str) -> Family:
    """The family of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FAMILIES:
        raise ConfigError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]()
