"""The `Verifier` protocol: it takes answers and problems, and returns verdicts in the same order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gtpo.errors import VerifierError
from gtpo.tasks.problems import Problem


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is correct, and why.

    Attributes:
        passed: whether the answer is correct.
        score: in [0, 1]; 1 or 0 for verifiers without graded scores.
        reason: one short sentence for the user.
        extracted: the final answer as extracted from the text, or None if there was none.
    """

    passed: bool
    score: float
    reason: str
    extracted: str | None = None


class Verifier(Protocol):
    """Checks answers. Safe to call from several threads at once."""

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """Checks each text as an answer to the problem at the same index.

        Args:
            answer_texts: the text of each rollout's final turn, or None if the rollout ended without an
                answer.
            problems: the problems, one per text.

        Raises:
            VerifierError: the verifier failed, or a problem's gold answer is unusable. A wrong or unreadable
                answer never raises.
        """
        ...

    def has_answer(self, text: str, problem: Problem) -> bool:
        """Whether a final turn contains an answer to the problem, right or wrong. Cheap; never raises.

        The result depends only on `text` and `problem`, not on earlier calls.
        """
        ...

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int] | None:
        """Groups answers to one problem by meaning, for majority votes.

        Args:
            answers: answers as given by `Verdict.extracted`.
            problem: the problem that they answer.

        Returns:
            The number of each answer's class, from 0 in order of appearance; None if that can't be decided (programs).
        """
        ...

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """Returns the problems that can't be verified, as id and reason. They would end a run, so remove them first."""
        ...

    def close(self) -> None:
        """Frees processes and connections. May be called more than once."""
        ...


def check_lengths(answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> None:
    """Raises ValueError unless there is one problem per text."""
    if len(answer_texts) != len(problems):
        raise ValueError(f"{len(answer_texts)} texts but {len(problems)} problems; give one problem per text")


def refuse_unusable(unusable: Mapping[str, str], verifier: str) -> None:
    """Raises VerifierError if there are gold answers that can't be used, given as id and reason."""
    if unusable:
        shown = "; ".join(f"{name}: {why}" for name, why in list(unusable.items())[:5])
        raise VerifierError(
            f"gold answers that can't be used: {len(unusable)} ({shown}). Fix or remove these problems; "
            f"{verifier}.unusable(problems) lists them before a run"
        )


def classes_by_key(answers: Sequence[str], key: Callable[[str], Hashable]) -> list[int]:
    """Implements `Verifier.classes`: answers mean the same if their keys are equal."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key(answer), len(numbers)) for answer in answers]
