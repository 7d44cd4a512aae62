r"""Checks multiple choice and yes/no answers: compares the choice in the last box of the text with the gold answer.

The options are `extras["choices"]` (texts; the first is A), or else the last lines of the question of the form
`(A) ...`, `(B) ...` and so on. An answer is read as follows; case, spacing, a final period, LaTeX's font commands,
emphasis and quotation marks are ignored:

- a letter: `A`, `(A)`, `[A]`, `A.`, `a)`, `**A**`, `\text{(A)}`, `\mathbf{A}`, `option A`, `Answer: A`;
- a letter followed by the text of that option: `A) maine`, `(A) maine`, `A: maine`, `A, maine`. A letter with any
  other text fails, whether it is the text of another option or of none;
- the text of an option alone, if no other option has the same text. A letter that is also the text of an option is
  read as a letter;
- yes or no: the word alone, including `No!` and `Answer: yes`. `true` is yes and `false` is no, unless one of them is
  the text of an option. A sentence such as "yes, because ..." fails, and so does more than one letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers.answers import bare, boxed_or_tagged, judgeable, plain_text
from gtpo.tasks.verifiers.base import Verdict, check_lengths, classes_by_key, refuse_unusable

_WORDS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_OPTION_LINE = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*(\S.*)$", re.MULTILINE)
_NAMED = r"(?:(?:option|choice|answer) ?:? ?)?"
_LETTER = re.compile(rf"{_NAMED}(?:[(\[]([a-z])[)\]]|([a-z]) ?[):]?)")
_LETTER_AND_TEXT = re.compile(rf"{_NAMED}(?:[(\[]([a-z])[)\]] ?[.:,-]?|([a-z]) ?[.):,-]) ?(\S.*)")
_LETTERS = re.compile(r"\(?[a-z]\)?(?:(?:[ ,;/&]|\bor\b|\band\b)+\(?[a-z]\)?)+")


class ChoiceVerifier:
    r"""Checks the choice in the last `\boxed{}` or `<answer>` block, whichever comes later."""

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """See `Verifier.verify_many`.

        Raises:
            VerifierError: a gold answer is neither the letter of an option nor yes or no.
            ValueError: the arguments differ in length.
        """
        check_lengths(answer_texts, problems)
        refuse_unusable(self.unusable(problems), "ChoiceVerifier")
        return [_verdict(text, problem) for text, problem in zip(answer_texts, problems, strict=True)]

    def has_answer(self, text: str, problem: Problem) -> bool:
        """Whether the text contains a closed, non-empty box or block."""
        return bool(boxed_or_tagged(text))

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int]:
        """Groups answers by choice; an answer that is not a choice is equal only to the same text."""
        options = _options(problem)
        return classes_by_key(answers, lambda answer: _read(answer, options)[0] or ("no choice", _words(answer)))

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """The problems whose gold answer is neither the letter of an option nor yes or no."""
        golds = {problem.id: _gold(problem) for problem in problems}
        return {name: why for name, (choice, why) in golds.items() if choice is None}

    def close(self) -> None:
        """Does nothing: there is nothing to free."""


def _verdict(text: str | None, problem: Problem) -> Verdict:
    answer, fault = judgeable(text)
    if answer is None or fault:
        return Verdict(False, 0.0, fault, answer)
    choice, fault = _read(answer, _options(problem))
    if choice is None:
        return Verdict(False, 0.0, fault, answer)
    right = choice == _gold(problem)[0]
    return Verdict(right, float(right), f"{choice} is {'right' if right else 'wrong'}", answer)


def _gold(problem: Problem) -> tuple[str | None, str]:
    """The right choice; or None, and why the gold answer is unusable."""
    options, answer = _options(problem), _words(problem.answer)
    letter = _LETTER.fullmatch(answer)
    if letter is None and answer not in _WORDS:
        return None, f"{problem.answer[:80]!r} is neither a letter nor yes or no"
    if letter and not options:
        return None, f"{problem.answer!r} is a letter, but there are no `choices` and no lines `(A) ...`"
    return _read(problem.answer, options)


def _read(answer: str, options: Mapping[str, str]) -> tuple[str | None, str]:
    """Reads an answer as a choice: a letter, "yes" or "no"; or None, and why it is not a choice."""
    words = _words(answer)
    letter = _letter(_LETTER.fullmatch(words))
    if letter in options:
        return letter, ""
    same = [name for name, text in options.items() if _words(text) == words]
    if len(same) == 1:
        return same[0], ""
    if same:
        return None, f"the text of more than one option ({', '.join(same)})"
    if words in _WORDS:
        return _WORDS[words], ""
    if not options:
        return None, "neither yes nor no alone"
    match = _LETTER_AND_TEXT.fullmatch(words)
    letter = letter or _letter(match)
    if _LETTERS.fullmatch(words):
        return None, "more than one letter"
    if letter is None:
        return None, "neither the letter nor the text of an option"
    if letter not in options:
        return None, f"{letter} is not among the options {', '.join(options)}"
    beside = [name for name, text in options.items() if match and _words(text) == match[3]]
    if letter in beside:
        return letter, ""
    return None, f"{letter} with the text of {beside[0]}" if beside else f"{letter} with a text that is not its own"


def _letter(match: re.Match[str] | None) -> str | None:
    return (match[1] or match[2]).upper() if match else None


def _words(text: str) -> str:
    return bare(plain_text(text)).casefold()


def _options(problem: Problem) -> dict[str, str]:
    """The texts of the options by their letters; empty if there are none."""
    choices = problem.extras.get("choices")
    if isinstance(choices, list | tuple) and choices and all(isinstance(choice, str) for choice in choices):
        return dict(zip(ascii_uppercase, choices, strict=False))
    options: dict[str, str] = {}
    for letter, text in _OPTION_LINE.findall(problem.question):
        if letter == "A":
            options = {}
        if letter == ascii_uppercase[len(options) % 26]:
            options[letter] = text
    return options
