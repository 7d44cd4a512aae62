r"""Checks short answers to questions: compares the last box of the text with the gold answer and its aliases.

Exact match and F1 are computed as in SQuAD (arXiv 1606.05250) and HotpotQA (arXiv 1809.09600): answers are compared in
lower case, without punctuation, the articles a, an and the, and extra spaces; F1 is over the remaining tokens.
Numbers and dates are ordinary tokens: "12 April 1956" is not "April 12, 1956", "two" is not "2", and 10.1 equals 101,
since the decimal point is punctuation.

Differences from their scripts:

- Unicode punctuation is dropped too, as in MLQA (arXiv 1910.07475): `’` and `–` are treated like `'` and `-`.
  Text is converted to the composed form (NFC). Diacritics are kept: "Condé" is not "Conde".
- An answer that consists of articles only ("The The") keeps them, one of punctuation only ("?") keeps it: nothing
  equals an empty answer.
- In a box, LaTeX's font commands (`\text{}`), math mode and spacing are dropped; so is `Answer:` before the answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from string import punctuation

from gtpo.errors import ConfigError
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers.answers import bare, boxed_or_tagged, judgeable, plain_text
from gtpo.tasks.verifiers.base import Verdict, check_lengths, classes_by_key, refuse_unusable

MAX_CHARACTERS = 300
"""Longer answers fail: they are not short answers."""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WHOLE = ("yes", "no", "noanswer")


class QAVerifier:
    r"""Checks the text in the last `\boxed{}` or `<answer>` block, whichever comes later.

    `Verdict.score` is the best F1 over the gold answer and `extras["aliases"]`.

    Args:
        min_f1: minimum F1 at which an answer passes, in (0, 1]; None: only an exact match passes.

    Raises:
        ConfigError: `min_f1` is out of range.
    """

    def __init__(self, min_f1: float | None = None):
        if min_f1 is not None and not 0 < min_f1 <= 1:
            raise ConfigError(f"min_f1={min_f1}: give a number above 0 and up to 1, or None for exact match")
        self._min_f1 = min_f1

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """See `Verifier.verify_many`.

        Raises:
            VerifierError: a problem has no gold answer, or aliases that are not a list of texts.
            ValueError: the arguments differ in length.
        """
        check_lengths(answer_texts, problems)
        refuse_unusable(self.unusable(problems), "QAVerifier")
        return [self._verdict(text, problem) for text, problem in zip(answer_texts, problems, strict=True)]

    def has_answer(self, text: str, problem: Problem) -> bool:
        """Whether the text contains a closed, non-empty box or block."""
        return bool(boxed_or_tagged(text))

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int]:
        """Groups by normalised text. Aliases are not merged: only right answers have any, which would favour them."""
        return classes_by_key(answers, lambda answer: normalised(bare(plain_text(answer))))

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """Returns the problems that have no gold answer, or whose aliases are not a list of texts."""
        found = {}
        for problem in problems:
            aliases = problem.extras.get("aliases") or []
            if not isinstance(aliases, list | tuple) or not all(isinstance(alias, str) for alias in aliases):
                found[problem.id] = "`aliases` is not a list of texts"
            elif not _golds(problem):
                found[problem.id] = "the gold answer is blank"
        return found

    def close(self) -> None:
        """Does nothing: there is nothing to free."""

    def _verdict(self, text: str | None, problem: Problem) -> Verdict:
        answer, fault = judgeable(text)
        if answer is None or fault:
            return Verdict(False, 0.0, fault, answer)
        if len(answer) > MAX_CHARACTERS:
            return Verdict(False, 0.0, f"longer than {MAX_CHARACTERS} characters", answer)
        given, golds = normalised(bare(plain_text(answer))), _golds(problem)
        score = max(token_f1(given, gold) for gold in golds)
        if given in golds:
            return Verdict(True, 1.0, "equal to the gold answer or an alias", answer)
        if self._min_f1 is None:
            return Verdict(False, score, f"not equal to the gold answer or an alias (F1 {score:.2f})", answer)
        passed = score >= self._min_f1
        return Verdict(passed, score, f"F1 {score:.2f}, {'not ' * (not passed)}enough for {self._min_f1:g}", answer)


def normalised(text: str) -> str:
    """Normalises a text for comparison, see the module's docstring. The result is empty only if the text is blank."""
    lower = unicodedata.normalize("NFC", text.lower())
    bare = " ".join("".join(c for c in lower if not _is_punctuation(c)).split())
    return " ".join(_ARTICLES.sub(" ", bare).split()) or bare or " ".join(lower.split())


def token_f1(given: str, gold: str) -> float:
    """Returns the F1 of the tokens of two normalised texts, in [0, 1].

    F1 is the harmonic mean of precision and recall, 2 * same / (tokens given + tokens of the gold answer), where `same`
    counts the common tokens with multiplicity. As in HotpotQA's script, yes, no and noanswer score 0 unless the texts
    are equal.
    """
    if given != gold and (given in _WHOLE or gold in _WHOLE):
        return 0.0
    left, right = Counter(given.split()), Counter(gold.split())
    total = left.total() + right.total()
    return 2 * (left & right).total() / total if total else 0.0


def _golds(problem: Problem) -> list[str]:
    return [gold for text in problem.golds if (gold := normalised(text))]


def _is_punctuation(character: str) -> bool:
    return character in punctuation or unicodedata.category(character).startswith("P")
