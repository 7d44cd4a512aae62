"""Group Turn Policy Optimization (arXiv 2511.14846) for multi-turn tool-integrated reasoning.

`from gtpo import functional as F` gives the algorithm alone, in pure torch. Everything else is imported from
its own module, so that using a part does not load the rest.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gtpo")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
