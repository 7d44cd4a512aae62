"""Uses the user's own function as a verifier. It runs in this process, without a time limit."""

from __future__ import annotations

from collections.abc import Sequence

from gtpo._own_code import imported, own_code
from gtpo.errors import VerifierError
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers.answers import last_boxed
from gtpo.tasks.verifiers.base import Verdict, classes_by_key


class FunctionVerifier:
    """Calls `function(answer_text, problem)` for each final turn.

    The function returns True or False, a score in [0, 1] (1 passes), or a `Verdict`. It is not called for rollouts that
    ended without an answer.

    Args:
        path: `package.module:function` or `FILE.py:function`.

    Raises:
        ConfigError: the function can't be imported.
    """

    def __init__(self, path: str) -> None:
        self._path, self._function = path, imported(path, "verifier")

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """See `Verifier.verify_many`.

        Raises:
            VerifierError: the function raised, or returned a value of another type or range.
        """
        return [self._one(text, problem) for text, problem in zip(answer_texts, problems, strict=True)]

    def _one(self, text: str | None, problem: Problem) -> Verdict:
        if text is None:
            return Verdict(False, 0.0, "the rollout ended without an answer")
        with own_code(f"verifier {self._path}, problem {problem.id}:", VerifierError):
            found = self._function(text, problem)
        if isinstance(found, Verdict):
            return found
        if not isinstance(found, bool | int | float) or not 0 <= found <= 1:
            raise VerifierError(
                f"{self._path} returned {found!r} for problem {problem.id}; it must return True or False, a score in "
                "[0, 1], or a Verdict"
            )
        given = last_boxed(text) or text.strip()
        return Verdict(found == 1, float(found), f"{self._path} said {found}", given)

    def has_answer(self, text: str, problem: Problem) -> bool:
        """True for any text that is not blank."""
        return bool(text.strip())

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int]:
        """Groups answers by text, ignoring spacing."""
        return classes_by_key(answers, lambda answer: " ".join(answer.split()))

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """Returns no problems: the function itself raises for problems that it can't use."""
        return {}

    def close(self) -> None:
        """Does nothing: there is nothing to close."""
