"""Verifiers check final answers. They implement the `Verifier` protocol and are chosen by name.

`auto`
    Chooses per problem: by its field `verifier`, or else by its domain (`gtpo.tasks.answer_types`).
`math`, `choice`, `qa`, `code`, `reasoning_gym`
    The same verifier for all problems.
`MODULE:FUNCTION`, `FILE.py:FUNCTION`
    Your own function, called as `function(answer_text, problem)`.

Settings follow a question mark, as in `auto?cpu_s=10&timeout_s=8`; `SETTINGS` lists them.

An answer passes or fails. Some verifiers also give a graded score in [0, 1] (`qa`: F1, `reasoning_gym`: the generator's
score, a function: the value it returns). GTPO trains on passing alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from gtpo.errors import ConfigError
from gtpo.tasks.verifiers.base import Verdict, Verifier

__all__ = ["SETTINGS", "Verdict", "Verifier", "get_verifier"]

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "math": {"timeout_s": "time limit per comparison, in seconds", "workers": "maximum number of processes"},
    "choice": {},
    "qa": {"min_f1": "minimum F1 at which an answer passes, in (0, 1]"},
    "code": {
        "cpu_s": "CPU time per process, in seconds",
        "wall_s": "wall-clock time per process, in seconds",
        "memory_mb": "memory per process, in MiB",
    },
    "reasoning_gym": {},
}
"""Settings of each verifier, with their meaning. `auto` accepts all of them."""


def get_verifier(name: str) -> Verifier:
    """Creates the verifier with this name, with settings after a question mark; see the module for the names.

    Raises:
        ConfigError: there is no such verifier, or it has no such setting; the message lists what is available.
    """
    base, _, query = name.partition("?")
    if ":" in base:
        from gtpo.tasks.verifiers.function import FunctionVerifier

        return FunctionVerifier(name)
    if base != "auto" and base not in SETTINGS:
        raise ConfigError(f"unknown verifier {base!r}; available: auto, {', '.join(SETTINGS)}, MODULE:FUNCTION")
    settings = dict(parse_qsl(query, keep_blank_values=True))
    known = [setting for one in SETTINGS for setting in SETTINGS[one] if base in (one, "auto")]
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(f"verifier {base!r} has no setting {unknown[0]!r}; available: {', '.join(known) or 'none'}")
    if base != "auto":
        return _make(base, _numbers(settings))
    from gtpo.tasks.verifiers.auto import AutoVerifier

    numbers = _numbers(settings)
    return AutoVerifier(lambda one: _make(one, {k: v for k, v in numbers.items() if k in SETTINGS.get(one, ())}))


def _numbers(settings: Mapping[str, str]) -> dict[str, float]:
    numbers = {}
    for setting, text in settings.items():
        try:
            number = float(text)
        except ValueError:
            raise ConfigError(f"setting {setting!r} of the verifier must be a number, not {text!r}") from None
        numbers[setting] = int(number) if setting in ("workers", "memory_mb") else number
    return numbers


def _make(name: str, settings: Mapping[str, float]) -> Verifier:
    if name == "math":
        from gtpo.tasks.verifiers.math import MathVerifier

        return MathVerifier(**settings)  # type: ignore[arg-type]
    if name == "choice":
        from gtpo.tasks.verifiers.choice import ChoiceVerifier

        return ChoiceVerifier()
    if name == "qa":
        from gtpo.tasks.verifiers.qa import QAVerifier

        return QAVerifier(**settings)
    if name == "code":
        from gtpo.tasks.verifiers.code import CodeVerifier, default_limits

        return CodeVerifier(limits=default_limits(**settings))  # type: ignore[arg-type]
    if name == "reasoning_gym":
        from gtpo.tasks.verifiers.reasoning_gym import ReasoningGymVerifier

        return ReasoningGymVerifier()
    raise ConfigError(f"unknown verifier {name!r}; available: auto, {', '.join(SETTINGS)}, MODULE:FUNCTION")
