"""Checks verifiers: gold answers must pass, and deliberately wrong answers must fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gtpo.tasks.adversarial import wrong_answers
from gtpo.tasks.answer_types import answer_type
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers.answers import canonical, plain_number, quick_match
from gtpo.tasks.verifiers.base import Verifier


@dataclass(frozen=True)
class Finding:
    """A row that a verifier judges wrongly or can't use.

    Attributes:
        problem_id: id of the problem.
        what: "unusable", "gold fails" or "wrong passes".
        answer: the answer that was checked.
        reason: the reason that the verifier gave.
    """

    problem_id: str
    what: str
    answer: str
    reason: str


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        problems: number of problems checked.
        wrong_answers: number of wrong answers checked.
        findings: one per unusable row, and one per answer that was judged wrongly.
    """

    problems: int
    wrong_answers: int
    findings: list[Finding]


def check_verifier(
    problems: Sequence[Problem], verifier: Verifier, name: str | None = None, *, adversarial: bool = False
) -> Check:
    """Checks that a verifier accepts each problem's gold answer and rejects wrong answers.

    Wrong answers are: for a number, the number plus 1, its negative and ten times it; for a choice, the other options;
    for a function, one that returns `None`; the gold answers of other problems, where they differ.

    Args:
        problems: the problems to check it on.
        verifier: the verifier to check.
        name: name of the verifier, if one was chosen for all problems.
        adversarial: also use the answers of `gtpo.tasks.adversarial`.
    """
    unusable = verifier.unusable(problems)
    findings = [Finding(p.id, "unusable", p.answer, unusable[p.id]) for p in problems if p.id in unusable]
    usable = [problem for problem in problems if problem.id not in unusable]
    kinds = [answer_type(problem, name) for problem in usable]
    golds = [(problem, _gold(problem, kind)) for problem, kind in zip(usable, kinds, strict=True)]
    wrongs = [
        (problem, answer)
        for i, (problem, kind) in enumerate(zip(usable, kinds, strict=True))
        for answer in _wrong(problem, kind, [usable[j] for j in _neighbours(i, kinds)], adversarial)
    ]
    for pairs, expected, what in ((golds, True, "gold fails"), (wrongs, False, "wrong passes")):
        texts = [_said(answer, answer_type(problem, name)) for problem, answer in pairs]
        verdicts = verifier.verify_many(texts, [problem for problem, _ in pairs])
        findings += [
            Finding(problem.id, what, answer, verdict.reason)
            for (problem, answer), verdict in zip(pairs, verdicts, strict=True)
            if verdict.passed != expected
        ]
    return Check(len(problems), len(wrongs), findings)


def _gold(problem: Problem, kind: str) -> str:
    if kind == "tests":
        return str(problem.extras.get("reference") or "")
    return problem.answer


def _said(answer: str, kind: str) -> str:
    """Returns the text of a final turn with this answer."""
    if kind in ("tests", "literal"):
        return f"<answer>\n{answer}\n</answer>"
    return f"The answer is \\boxed{{{answer}}}."


def _neighbours(place: int, kinds: Sequence[str]) -> Iterator[int]:
    """The next problems of the same kind, up to three."""
    found = 0
    for step in range(1, len(kinds)):
        other = (place + step) % len(kinds)
        if kinds[other] == kinds[place]:
            yield other
            found += 1
        if found == 3:
            return


def _wrong(problem: Problem, kind: str, others: Sequence[Problem], adversarial: bool) -> Iterator[str]:
    yield from _plainly_wrong(problem, kind, others)
    if adversarial:
        yield from (answer for _, answer in wrong_answers(problem, kind, others))


def _plainly_wrong(problem: Problem, kind: str, others: Sequence[Problem]) -> Iterator[str]:
    gold = problem.answer
    if kind == "tests":
        name = problem.extras.get("entry_point") or "solve"
        yield f"def {name}(*args, **kwargs):\n    return None"
        return
    if kind == "literal":
        yield f"[{gold}]"
        yield "None" if gold.strip() != "None" else "0"
        yield from (other.answer for other in others if not _same_literal(other.answer, gold))
        return
    if kind == "choice":
        yield from _other_options(problem)
        return
    if kind == "math":
        yield from _other_numbers(gold)
        yield from (o.answer for o in others if quick_match(o.answer, gold) is False)
        return
    golds = {" ".join(text.lower().split()) for text in problem.golds}
    yield from (other.answer for other in others if " ".join(other.answer.lower().split()) not in golds)


def _other_numbers(gold: str) -> Iterator[str]:
    number = plain_number(canonical(gold))
    if number is None:
        return
    value = number.value
    for other in (value + 1, -value, 10 * value):
        if other != value:
            yield (
                str(other.numerator)
                if other.denominator == 1
                else rf"\frac{{{other.numerator}}}{{{other.denominator}}}"
            )


def _other_options(problem: Problem) -> Iterator[str]:
    gold = problem.answer.strip("() \n")
    opposite = {"yes": "no", "no": "yes", "true": "false", "false": "true"}.get(gold.lower())
    if opposite:
        yield opposite
        return
    count = len(problem.extras.get("choices", ())) or 4
    yield from (letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count] if letter != gold.upper())


def _same_literal(one: str, other: str) -> bool:
    try:
        return bool(ast.literal_eval(one) == ast.literal_eval(other))
    except (ValueError, SyntaxError):
        return one == other
