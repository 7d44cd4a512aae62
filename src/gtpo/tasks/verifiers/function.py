"""A function of the user's own as a verifier. It runs in this process, without a limit of time."""

from __future__ import annotations

from collections.abc import Sequence

from gtpo._own_code import imported, own_code
from gtpo.errors import VerifierError
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers.answers import last_boxed
from gtpo.tasks.verifiers.base import Verdict, classes_by_key


class FunctionVerifier:
    """Calls `function(answer_text, problem)` for each final turn.

    It returns True or False, a score in [0, 1] (1 passes), or a `Verdict`. Rollouts that ended without an answer are
    not shown to it.

    Args:
        path: `package.module:function`.

    Raises:
        ConfigError: it can't be imported.
    """

    def __init__(self, path: str) -> None:
        self._path, self._function = path, imported(path, "verifier")

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """See `Verifier.verify_many`.

        Raises:
            VerifierError: the function raised, or returned something else than it should.
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
        """Any text may be one."""
        return bool(text.strip())

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int]:
        """Answers mean the same if their texts are equal, spacing aside."""
        return classes_by_key(answers, lambda answer: " ".join(answer.split()))

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """None: what the function can't use, it says itself."""
        return {}

    def close(self) -> None:
        """Nothing to close."""
