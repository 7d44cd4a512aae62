"""Group Turn Policy Optimization (arXiv 2511.14846) for multi-turn tool-integrated reasoning.

`from gtpo import functional as F` gives the algorithm alone, in pure torch. `evaluate`, `train` and `credit` are for
notebooks, `GTPOTrainer` and `GTPOConfig` for scripts that use TRL. All names are imported lazily, so using one part
does not load the others.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gtpo import functional
    from gtpo.credit_table import credit
    from gtpo.notebook import evaluate, train
    from gtpo.training.config import GTPOConfig
    from gtpo.training.trainer import GTPOTrainer

try:
    __version__ = version("gtpo")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["GTPOConfig", "GTPOTrainer", "__version__", "credit", "evaluate", "functional", "train"]

_LAZY = {
    "GTPOTrainer": "gtpo.training.trainer",
    "GTPOConfig": "gtpo.training.config",
    "credit": "gtpo.credit_table",
    "evaluate": "gtpo.notebook",
    "train": "gtpo.notebook",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "functional":
        return importlib.import_module("gtpo.functional")
    raise AttributeError(f"module 'gtpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
