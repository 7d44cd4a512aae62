"""Splits worked solutions of word problems into calculations.

GSM8K's solutions mark each calculation, as in `Natalia sold 48/2 = <<48/2=24>>24 clips in May.`, and end in
`#### 72`. This module converts such a solution to a sequence of steps, each with an expression that Python can compute,
the value that the solution states for it, and the prose around it. Other modules turn the steps into turns with tool
calls.

Every expression is recomputed. A solution is skipped, with the reason, if an expression is not arithmetic or its value
is not the stated one (rounded or truncated to the digits that the solution gives).
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from gtpo.tasks.problems import Problem


class SkipReason(StrEnum):
    """Why a solution was skipped, in the order of the checks."""

    NO_SOLUTION = "no_solution"
    """The problem has no text under `solution`."""
    NO_FINAL_ANSWER = "no_final_answer"
    """The text does not end with a line `#### ANSWER`."""
    OTHER_ANSWER = "other_answer"
    """The final answer is not the problem's."""
    MALFORMED = "malformed"
    """An annotation is not closed, or does not consist of arithmetic, an equals sign and a number."""
    NO_CALCULATION = "no_calculation"
    """The text has no annotation."""
    DISAGREES = "disagrees"
    """An expression's value is not the annotated one."""


@dataclass(frozen=True)
class WorkedStep:
    """One calculation and the prose around it.

    Attributes:
        text: the sentence, without annotations. Lines without a calculation are put before the next sentence
            that has one. If a sentence has several calculations, each step has the part up to its own value.
        expression: arithmetic that Python can compute, such as "48/2".
        value: the value that the solution states for it, such as "24".
        lead: the part of `text` before the value: `text.startswith(lead)`.
    """

    text: str
    expression: str
    value: str
    lead: str


@dataclass(frozen=True)
class WorkedSolution:
    """A solution as a sequence of steps.

    Attributes:
        problem: the problem that it solves.
        steps: at least one, in order.
        closing: prose after the last step; usually "".
        answer: the final answer, as spelled by the problem.
    """

    problem: Problem
    steps: tuple[WorkedStep, ...]
    closing: str
    answer: str


@dataclass(frozen=True)
class Skipped:
    """A solution that can't be used, with the reason and the details."""

    problem_id: str
    reason: SkipReason
    detail: str


@dataclass(frozen=True)
class ParsedSolutions:
    """The usable and the skipped solutions, each in the order of the problems."""

    solutions: tuple[WorkedSolution, ...]
    skipped: tuple[Skipped, ...]

    @property
    def skipped_by_reason(self) -> dict[SkipReason, int]:
        """Number of skipped solutions for each reason that occurred."""
        return dict(Counter(skip.reason for skip in self.skipped))


_FINAL = re.compile(r"(?:^|\n)####[ \t]*(\S[^\n]*?)[ \t]*$")
_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")
_NUMBER = r"-?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)"
_VALUE = re.compile(_NUMBER)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def parse_solutions(problems: Iterable[Problem], *, field: str = "solution") -> ParsedSolutions:
    """Splits the solutions in the field `field` of the problems' extras into steps; never raises, whatever the text."""
    parsed = [parse_solution(problem, field=field) for problem in problems]
    return ParsedSolutions(
        tuple(result for result in parsed if isinstance(result, WorkedSolution)),
        tuple(result for result in parsed if isinstance(result, Skipped)),
    )


def parse_solution(problem: Problem, *, field: str = "solution") -> WorkedSolution | Skipped:
    """Splits one problem's solution into steps, or returns why that is not possible."""

    def skip(reason: SkipReason, detail: str) -> Skipped:
        return Skipped(problem.id, reason, detail)

    text = problem.extras.get(field)
    if not isinstance(text, str) or not text.strip():
        return skip(SkipReason.NO_SOLUTION, f"no text in field {field!r}")
    text = text.rstrip()
    final = _FINAL.search(text)
    if final is None:
        return skip(SkipReason.NO_FINAL_ANSWER, f"the last line is {text.splitlines()[-1][:80]!r}")
    if not _same(final[1], problem.answer):
        return skip(SkipReason.OTHER_ANSWER, f"ends in {final[1]!r}, the answer is {problem.answer!r}")
    body = text[: final.start()]
    if re.search(r"<<|>>", _ANNOTATION.sub("", body)):
        return skip(SkipReason.MALFORMED, "an annotation is not closed or not opened")
    annotations = list(_ANNOTATION.finditer(body))
    if not annotations:
        return skip(SkipReason.NO_CALCULATION, "no <<EXPRESSION=VALUE>>")
    calculations: list[tuple[str, str]] = []
    for annotation in annotations:
        left, _, right = _THOUSANDS.sub("", annotation[1]).rpartition("=")
        expression, stated = left.strip(), right.strip()
        try:
            computed = evaluate(expression)
        except ValueError as error:
            return skip(SkipReason.MALFORMED, f"{annotation[0]}: {error}")
        if not _VALUE.fullmatch(stated):
            return skip(SkipReason.MALFORMED, f"{annotation[0]}: no number on the right")
        if not agrees(computed, stated):
            return skip(SkipReason.DISAGREES, f"{annotation[0]}: Python computes {float(computed):.10g}")
        calculations.append((expression, stated))
    steps, closing = _steps(body, annotations, calculations)
    return WorkedSolution(problem, steps, closing, problem.answer)


def evaluate(expression: str) -> Fraction:
    """Returns the exact value of an arithmetic expression of numbers, `+ - * / // %`, `**` and parentheses.

    Raises:
        ValueError: the expression has anything else, divides by zero, or has an exponent that is not a whole number
            within +-100.
    """
    if len(expression) > 500:
        raise ValueError("too long for a calculation")
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("not a Python expression") from None
    except ZeroDivisionError:
        raise ValueError("division by zero") from None


def agrees(computed: Fraction, stated: str) -> bool:
    """Whether `stated` is the computed value; decimals may be rounded or truncated."""
    value, unit = Fraction(stated), Fraction(1, 10 ** len(stated.partition(".")[2]))
    if unit == 1:
        return computed == value
    rounded = abs(computed - value) <= unit / 2
    cut_off = computed * value >= 0 and 0 <= abs(computed) - abs(value) < unit
    return rounded or cut_off


_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
}


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, power = _value(node.left), _value(node.right)
        if power.denominator != 1 or abs(power) > 100 or abs(base) > 10**6:
            raise ValueError("a power out of range")
        return Fraction(base ** int(power))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"{type(node).__name__} is no arithmetic of numbers")


def _steps(
    body: str, annotations: list[re.Match[str]], calculations: list[tuple[str, str]]
) -> tuple[tuple[WorkedStep, ...], str]:
    """Splits the body into one text per calculation, and the prose after the last one."""
    steps: list[WorkedStep] = []
    start = 0
    for i, (annotation, (expression, value)) in enumerate(zip(annotations, calculations, strict=True)):
        following = annotations[i + 1].start() if i + 1 < len(annotations) else len(body)
        line_end = body.find("\n", annotation.end())
        if line_end < 0 or line_end > following:
            line_end = following
        if line_end == following and i + 1 < len(annotations):
            stated = _VALUE.match(body, annotation.end())
            line_end = stated.end() if stated else annotation.end()
        lead = body[start : annotation.start()].lstrip("\n")
        text = lead + body[annotation.end() : line_end].rstrip()
        steps.append(WorkedStep(text, expression, value, lead))
        start = line_end
    return tuple(steps), body[start:].strip("\n")


def _same(final: str, answer: str) -> bool:
    plain = [_THOUSANDS.sub("", text).lstrip("$") for text in (final, answer)]
    if final == answer or plain[0] == plain[1]:
        return True
    return all(map(_VALUE.fullmatch, plain)) and Fraction(plain[0]) == Fraction(plain[1])
