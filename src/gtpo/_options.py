"""Numbers among the settings of a dataclass, checked in one place."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from gtpo.errors import ConfigError

_MAX_INT = 1 << 63


def check_numbers(options: Any) -> None:
    """Refuse NaN, infinity and integers of more than 64 bits, alone or in a list.

    Args:
        options: a dataclass. A field whose default is infinite may be infinite.

    Raises:
        ConfigError: names the field.
    """
    for item in fields(options):
        value = getattr(options, item.name)
        if isinstance(item.default, float) and not math.isfinite(item.default):
            continue
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{item.name} must be finite, got {value}")
            if isinstance(number, int) and abs(number) >= _MAX_INT:
                raise ConfigError(f"{item.name}: an integer of more than 64 bits; make it smaller")
