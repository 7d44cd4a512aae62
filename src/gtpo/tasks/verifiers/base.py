"""What a verifier is: answers and problems in, verdicts out, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gtpo.errors import VerifierError
from gtpo.tasks.problems import Problem


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why.

    Attributes:
        passed: the answer is right.
        score: in [0, 1]; 1 or 0 for verifiers that know only right and wrong.
        reason: one short sentence, for people.
        extracted: the final answer as it was read out of the text, or None if there was none.
    """

    passed: bool
    score: float
    reason: str
    extracted: str | None = None


class Verifier(Protocol):
    """Checks answers. Safe to call from any thread, also from several at once."""

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """The verdict on each text as an answer to the problem at the same place.

        Args:
            answer_texts: the text of each rollout's final turn, or None if the rollout ended without an
                answer.
            problems: the problems, one a text.

        Raises:
            VerifierError: the verifier broke, or a problem's gold answer is unusable. A wrong or unreadable
                answer never raises.
        """
        ...

    def has_answer(self, text: str, problem: Problem) -> bool:
        """Whether a final turn holds an answer to the problem, right or wrong. Cheap; never raises.

        It depends on these two alone, not on what was asked before.
        """
        ...

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int] | None:
        """Which of these answers to one problem mean the same, for majority votes.

        Args:
            answers: as `Verdict.extracted` gave them.
            problem: what they answer.

        Returns:
            The number of each answer's class, from 0 in order of appearance; None if there is no telling (programs).
        """
        ...

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """The problems that can't be verified, as id and why; to be left out before a run, which they would end."""
        ...

    def close(self) -> None:
        """Frees processes and connections. Calling it twice is fine."""
        ...


def check_lengths(answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> None:
    """Raises ValueError unless there is one problem a text."""
    if len(answer_texts) != len(problems):
        raise ValueError(f"{len(answer_texts)} texts but {len(problems)} problems; give one problem a text")


def refuse_unusable(unusable: Mapping[str, str], verifier: str) -> None:
    """Raises VerifierError if there are gold answers that can't be used, given as id and why."""
    if unusable:
        shown = "; ".join(f"{name}: {why}" for name, why in list(unusable.items())[:5])
        raise VerifierError(
            f"{len(unusable)} gold answers can't be used: {shown}. Mend or remove these problems; "
            f"{verifier}.unusable(problems) lists them before a run"
        )


def classes_by_key(answers: Sequence[str], key: Callable[[str], Hashable]) -> list[int]:
    """`Verifier.classes` where answers mean the same if their keys are equal."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key(answer), len(numbers)) for answer in answers]
