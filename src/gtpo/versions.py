"""Versions of the software that affects a run, for its record."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("gtpo", "torch", "transformers", "trl", "accelerate", "datasets", "peft", "math-verify")


def installed_versions() -> dict[str, str | None]:
    """Version of Python and of each package in `PACKAGES`, None where it is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
