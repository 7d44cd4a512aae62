"""Test code that only compares calls on literals with literals, which covers most of MBPP and HumanEval.

Such tests are data and need no process of their own: the calls are made in the candidate's process, and their results
are compared here, as Python would.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gtpo.tasks.verifiers._judge.wire import decode, encode

MOST_CHARACTERS = 20_000
"""Longer results are compared in the sandbox, where time is limited."""

_PLAIN = set("ltdszifb")


@dataclass(frozen=True)
class LiteralTests:
    """The tests, one per call.

    Attributes:
        calls: operations for `_judge.candidate`.
        expected: for each call, whether its result must equal the value, or be true or false; and the value.
    """

    calls: list[Any]
    expected: list[tuple[str, Any]]

    def wrong(self, outcomes: list[Any]) -> str | None:
        """Returns what is wrong with the outcomes, or ""; None if the comparison must run in the sandbox."""
        for outcome, (how, value) in zip(outcomes, self.expected, strict=True):
            kind, *rest = outcome
            if kind == "exit":
                return "exit"
            if kind == "error":
                return str(rest[0][0])
            if kind != "value" or not _is_plain(rest[0]):
                return None
            result = decode(rest[0])
            if not (result == value if how == "equal" else bool(result) == value):
                return "AssertionError"
        return ""


@lru_cache(maxsize=4096)
def literal_tests(tests: str, entry_point: str) -> LiteralTests | None:
    """Returns the tests as data, or None if they can't be expressed as data."""
    calls: list[Any] = []
    expected: list[tuple[str, Any]] = []
    try:
        for test, name in _asserts(ast.parse(tests).body, entry_point):
            call, how, value = _read(test)
            if not isinstance(call.func, ast.Name) or call.func.id != name:
                return None
            arguments = [ast.literal_eval(argument) for argument in call.args]
            named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            calls.append(["call", {"n": entry_point}, encode(arguments), encode(named)])
            expected.append((how, value))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return LiteralTests(calls, expected) if calls else None


def _asserts(body: list[ast.stmt], entry_point: str) -> Iterator[tuple[ast.expr, str]]:
    """Returns the conditions in order and the name by which they call the function; raises ValueError otherwise."""
    checks: dict[str, ast.FunctionDef] = {}
    for statement in body:
        if isinstance(statement, ast.Assert):
            if not (isinstance(statement.test, ast.Constant) and statement.test.value is True):
                yield statement.test, entry_point
        elif isinstance(statement, ast.FunctionDef):
            parameters = statement.args
            if len(parameters.args) != 1 or parameters.vararg or parameters.kwarg or parameters.defaults:
                raise ValueError
            checks[statement.name] = statement
        elif isinstance(statement, ast.Expr) and isinstance(call := statement.value, ast.Call):
            if not (isinstance(call.func, ast.Name) and len(call.args) == 1 and not call.keywords):
                raise ValueError
            given = call.args[0]
            if not isinstance(given, ast.Name) or given.id != entry_point or call.func.id not in checks:
                raise ValueError
            check = checks[call.func.id]
            yield from _asserts(check.body, check.args.args[0].arg)
        elif isinstance(statement, ast.Assign):
            ast.literal_eval(statement.value)
            if any(not isinstance(target, ast.Name) or target.id == entry_point for target in statement.targets):
                raise ValueError
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            raise ValueError


def _read(test: ast.expr) -> tuple[ast.Call, str, Any]:
    if isinstance(test, ast.Call):
        return test, "true", True
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and isinstance(test.operand, ast.Call):
        return test.operand, "true", False
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        left, right = test.left, test.comparators[0]
        if isinstance(right, ast.Call) and not isinstance(left, ast.Call):
            left, right = right, left
        if isinstance(left, ast.Call):
            return left, "equal", ast.literal_eval(right)
    raise ValueError


def _is_plain(data: Any) -> bool:
    """Whether a node consists only of nodes that are allowed in literals."""
    if isinstance(data, list):
        return all(map(_is_plain, data))
    if isinstance(data, dict):
        return all(mark in _PLAIN and _is_plain(inner) for mark, inner in data.items())
    return True
