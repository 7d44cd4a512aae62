"""What kind of answer a problem wants. It decides on the verifier and on how the model is told to write the answer.

A row may say it itself, with a field `verifier` that names a built-in verifier; else the domain and the form of the
gold answer decide. A function of the user's own is given on the command line or in Python only: rows are data, and what
they name must not be run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gtpo.errors import DataError
from gtpo.tasks.problems import Problem, no_row_verifier

_CHOICE = re.compile(r"\(?[A-Z]\)?|yes|no|true|false", re.IGNORECASE)

INSTRUCTIONS: Mapping[str, str] = {
    "math": r"When you know the answer, write it in \boxed{}",
    "choice": r"When you know the answer, write the letter of the right option (or yes or no) in \boxed{}",
    "qa": r"When you know the answer, write it in a few words in \boxed{}",
    "tests": "When the program is ready, write all of it between <answer> and </answer>, without a fence",
    "literal": r"When you know the answer, write it as a Python literal in \boxed{}",
    "reasoning_gym": r"When you know the answer, write it in \boxed{}, in the form that the question asks for",
}
"""How each kind of answer is asked for. A kind that is not here is asked for as `math` is."""


def verifier_name(problem: Problem) -> str:
    """The name of the verifier that checks answers to the problem.

    Raises:
        DataError: the domain is none of math, commonsense and code, and the row names no verifier; or it names code.
    """
    named = problem.extras.get("verifier")
    if named:
        if not isinstance(named, str) or ":" in named:
            raise DataError(f"problem {problem.id}: {no_row_verifier(named)}", field="verifier")
        return str(named)
    if problem.domain == "commonsense":
        chosen = bool(problem.extras.get("choices")) or _CHOICE.fullmatch(problem.answer.strip())
        return "choice" if chosen else "qa"
    if problem.domain in ("math", "code"):
        return problem.domain
    raise DataError(
        f"problem {problem.id}: no verifier is known for the domain {problem.domain!r}: give the rows a field "
        "'verifier', or name one with --verifier",
        field="domain",
    )


def answer_type(problem: Problem, verifier: str | None = None) -> str:
    """The kind of answer, a key of `INSTRUCTIONS` where one is known.

    Args:
        problem: the problem.
        verifier: the one that checks it, if it was chosen for all problems.
    """
    name = (verifier or "auto").partition("?")[0]
    if name == "auto":
        name = verifier_name(problem)
    if name != "code":
        return name
    return "literal" if problem.extras.get("answer_kind") == "literal" else "tests"
