"""Tests given as data: input and output of a program, or arguments and result of a function.

`gtpo.tasks.benchmark_rows` describes the format. Expected outputs never enter the sandbox: they are compared here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

NOT_TO_THE_END = "the tests were not run to their end"


@dataclass(frozen=True)
class IOTests:
    """The tests of one problem.

    Attributes:
        inputs: texts for standard input, or arguments of the function.
        outputs: the expected output of each input.
        function: name of the function; None for tests of standard input and output.
    """

    inputs: list[Any]
    outputs: list[Any]
    function: str | None = None

    @classmethod
    def parse(cls, answer: str) -> IOTests:
        """Parses JSON text; raises ValueError if it does not have the format."""
        try:
            found = json.loads(answer)
            tests = found["tests"] if isinstance(found, dict) else found
            function = found["function"] if isinstance(found, dict) else None
            inputs, outputs = [t["input"] for t in tests], [t["output"] for t in tests]
        except (KeyError, TypeError) as error:
            raise ValueError(f"the tests must be a list of objects with input and output ({error!r})") from error
        wanted = str if function is None else list
        if not tests or not all(isinstance(given, wanted) for given in inputs):
            raise ValueError(f"the tests must not be empty, and every input must be a {wanted.__name__}")
        return cls(inputs, outputs, function)

    def wrong_output(self, printed: list[str]) -> str | None:
        """Compares the programs' outputs, one per test; returns what is wrong, or None."""
        pairs = enumerate(zip(printed, self.outputs, strict=True), 1)
        place = next((i for i, (text, output) in pairs if not same_output(text, output)), None)
        return None if place is None else f"test {place} of {len(self.outputs)} printed something else"

    def wrong_result(self, outcomes: list[Any]) -> str | None:
        """Compares the outcomes of the calls, in the format of `_judge.candidate`; returns what is wrong, or None."""
        for place, (outcome, output) in enumerate(zip(outcomes, self.outputs, strict=False), 1):
            fault = _wrong_outcome(outcome, output)
            if fault == "value":
                return f"test {place} of {len(self.outputs)} returned something else"
            if fault:
                return f"the tests ended with {fault}"
        return None if len(outcomes) == len(self.outputs) else NOT_TO_THE_END


def _wrong_outcome(outcome: Any, output: Any) -> str:
    """Returns the name of the exception, "value" for a wrong value, or "" for the expected outcome."""
    try:
        kind, *rest = outcome
        if kind == "exit":
            return "SystemExit"
        if kind == "error":
            return str(rest[0][0])[:80]
        return "" if _plain(rest[0]) == output else "value"
    except TypeError as error:
        return type(error).__name__
    except (ValueError, LookupError, AttributeError, RecursionError):
        return "value"


def _plain(data: Any) -> Any:
    """Converts a result to JSON values: tuples become lists, keys become text.

    Raises:
        TypeError: the result contains something that JSON does not have.
    """
    if not isinstance(data, dict):
        return data
    ((mark, inner),) = data.items()
    if mark in ("l", "t"):
        return [_plain(item) for item in inner]
    if mark == "d":
        return {_key(_plain(key)): _plain(item) for key, item in inner}
    if mark == "i":
        return int(inner, 16)
    if mark == "f":
        return float(inner)
    raise TypeError(f"a {inner if mark == 'o' else mark} is not JSON")


def _key(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def same_output(printed: str, expected: str) -> bool:
    """Compares line by line, ignoring space at both ends; lines of numbers are compared by value."""
    lines, wanted = printed.strip().split("\n"), expected.strip().split("\n")
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def _same_line(one: str, other: str) -> bool:
    if one.strip() == other.strip():
        return True
    try:
        return [Decimal(word) for word in one.split()] == [Decimal(word) for word in other.split()]
    except InvalidOperation:
        return False
