"""The kind of answer that a problem asks for. It determines the verifier and the instruction for the model.

The field `verifier` of a row may name a built-in verifier; otherwise the domain and the form of the gold answer
determine it. Your own function can be given on the command line or in Python only: rows are data, and must not name
code to run.
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
"""The instruction for each kind of answer. Kinds that are not listed use the instruction of `math`."""


def verifier_name(problem: Problem) -> str:
    """Returns the name of the verifier that checks answers to the problem.

    Raises:
        DataError: the domain is not math, commonsense or code and the row names no verifier; or the row names a
            function.
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
        f"problem {problem.id}: the domain {problem.domain!r} has no default verifier; give the rows a field "
        "'verifier', or name one with --verifier",
        field="domain",
    )


def answer_type(problem: Problem, verifier: str | None = None) -> str:
    """Returns the kind of answer, a key of `INSTRUCTIONS` if the verifier is a built-in one.

    Args:
        problem: the problem.
        verifier: name of the verifier, if one was chosen for all problems.
    """
    name = (verifier or "auto").partition("?")[0]
    if name == "auto":
        name = verifier_name(problem)
    if name != "code":
        return name
    return "literal" if problem.extras.get("answer_kind") == "literal" else "tests"
