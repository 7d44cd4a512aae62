"""Verifiers: one a domain, each behind the `Verifier` protocol."""

from __future__ import annotations

from gtpo.errors import ConfigError
from gtpo.tasks.verifiers.base import Verdict, Verifier

__all__ = ["Verdict", "Verifier", "get_verifier"]


def get_verifier(name: str) -> Verifier:
    """A new verifier by its name, which is the domain of the problems that it checks.

    Raises:
        ConfigError: there is no such verifier; the message lists those there are.
    """
    if name == "math":
        from gtpo.tasks.verifiers.math import MathVerifier

        return MathVerifier()
    if name == "code":
        from gtpo.tasks.verifiers.code import CodeVerifier

        return CodeVerifier()
    raise ConfigError(f"no verifier for {name!r}; there are: math, code")
