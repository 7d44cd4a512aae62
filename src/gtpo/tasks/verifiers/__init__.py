"""Verifiers: they check final answers. Each is behind the `Verifier` protocol and is chosen by name.

`auto`
    By problem: its field `verifier`, or else its domain (`gtpo.tasks.answer_types`).
`math`, `choice`, `qa`, `code`, `reasoning_gym`
    The same one for all problems.
`MODULE:FUNCTION`
    A function of your own, called as `function(answer_text, problem)`.

An answer *passes* or not; the score in [0, 1] says more where a verifier knows more (`qa`: F1, `reasoning_gym`: its own
score, a function: what it returns). GTPO trains on passing alone.
"""

from __future__ import annotations

from collections.abc import Callable

from gtpo.errors import ConfigError
from gtpo.tasks.verifiers.base import Verdict, Verifier

__all__ = ["Verdict", "Verifier", "get_verifier"]


def get_verifier(name: str) -> Verifier:
    """A new verifier by its name; see the module.

    Raises:
        ConfigError: there is no such verifier; the message lists those there are.
    """
    if ":" in name:
        from gtpo.tasks.verifiers.function import FunctionVerifier

        return FunctionVerifier(name)
    if name not in _MAKERS:
        raise ConfigError(f"no verifier {name!r}; there are: {', '.join(_MAKERS)}, MODULE:FUNCTION")
    return _MAKERS[name]()


def _auto() -> Verifier:
    from gtpo.tasks.verifiers.auto import AutoVerifier

    return AutoVerifier(get_verifier)


def _math() -> Verifier:
    from gtpo.tasks.verifiers.math import MathVerifier

    return MathVerifier()


def _choice() -> Verifier:
    from gtpo.tasks.verifiers.choice import ChoiceVerifier

    return ChoiceVerifier()


def _qa() -> Verifier:
    from gtpo.tasks.verifiers.qa import QAVerifier

    return QAVerifier()


def _code() -> Verifier:
    from gtpo.tasks.verifiers.code import CodeVerifier

    return CodeVerifier()


def _reasoning_gym() -> Verifier:
    from gtpo.tasks.verifiers.reasoning_gym import ReasoningGymVerifier

    return ReasoningGymVerifier()


_MAKERS: dict[str, Callable[[], Verifier]] = {
    "auto": _auto,
    "math": _math,
    "choice": _choice,
    "qa": _qa,
    "code": _code,
    "reasoning_gym": _reasoning_gym,
}
