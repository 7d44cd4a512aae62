"""Sends each answer to the verifier that its problem asks for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from gtpo.errors import ConfigError, DataError, VerifierError
from gtpo.tasks.answer_types import verifier_name
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers.base import Verdict, Verifier, check_lengths


class AutoVerifier:
    """Chooses a verifier per problem; each verifier is created when a problem first needs it.

    Args:
        make: creates a verifier by its name.
    """

    def __init__(self, make: Callable[[str], Verifier]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._verifiers: dict[str, Verifier] = {}

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """See `Verifier.verify_many`.

        Raises:
            VerifierError: a verifier raised it, or there is no verifier for a problem.
        """
        check_lengths(answer_texts, problems)
        verdicts: dict[int, Verdict] = {}
        for name, places in self._by_name(problems).items():
            found = self._verifier(name).verify_many([answer_texts[i] for i in places], [problems[i] for i in places])
            verdicts.update(zip(places, found, strict=True))
        return [verdicts[i] for i in range(len(problems))]

    def has_answer(self, text: str, problem: Problem) -> bool:
        """See `Verifier.has_answer`; False for a problem for which there is no verifier."""
        try:
            return self._verifier(verifier_name(problem)).has_answer(text, problem)
        except (ConfigError, DataError):
            return False

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int] | None:
        """See `Verifier.classes`."""
        return self._verifier(verifier_name(problem)).classes(answers, problem)

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """See `Verifier.unusable`; also problems for which there is no verifier."""
        found: dict[str, str] = {}
        known: list[Problem] = []
        for problem in problems:
            try:
                self._verifier(verifier_name(problem))
                known.append(problem)
            except (ConfigError, DataError) as error:
                found[problem.id] = str(error)
        for name, places in self._by_name(known).items():
            found |= self._verifier(name).unusable([known[i] for i in places])
        return found

    def close(self) -> None:
        """Closes the verifiers that were created."""
        with self._lock:
            verifiers, self._verifiers = self._verifiers, {}
        for verifier in verifiers.values():
            verifier.close()

    def _by_name(self, problems: Sequence[Problem]) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for i, problem in enumerate(problems):
            try:
                places.setdefault(verifier_name(problem), []).append(i)
            except DataError as error:
                raise VerifierError(str(error)) from error
        return places

    def _verifier(self, name: str) -> Verifier:
        with self._lock:
            if name not in self._verifiers:
                if name == "auto":
                    raise ConfigError("a row cannot name the verifier 'auto'; remove its field 'verifier'")
                self._verifiers[name] = self._make(name)
            return self._verifiers[name]
