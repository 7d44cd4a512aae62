"""Objects of the user's own, by import path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from gtpo.errors import ConfigError


def imported(path: str, option: str) -> Callable[..., Any]:
    """What `package.module:name` names; modules of the current folder are found too.

    Args:
        path: the import path.
        option: which option it was given to, for messages.

    Raises:
        ConfigError: it can't be imported, or is not callable.
    """
    module, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{option} {path!r}: can't be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"{option} {path!r}: is not callable")
    result: Callable[..., Any] = found
    return result
