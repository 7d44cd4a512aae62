"""Group Turn Policy Optimization (arXiv 2511.14846) for multi-turn tool-integrated reasoning.

`from gtpo import functional as F` gives the algorithm alone, in pure torch. Everything else is imported from
its own module, so that using a part does not load the rest.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("gtpo")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["GTPOConfig", "GTPOTrainer", "__version__"]

_LAZY = {"GTPOTrainer": "gtpo.training.trainer", "GTPOConfig": "gtpo.training.config"}


def __getattr__(name: str) -> Any:
    """The names that need a training framework, imported when they are asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'gtpo' has no attribute {name!r}")
