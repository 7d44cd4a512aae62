"""Tests that are data: input and output of a program, or arguments and result of a function.

`gtpo.tasks.benchmark_rows` describes the form. What is expected never enters the sandbox: it is compared here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

_STDIN = """import io, sys
sys.stdin = io.TextIOWrapper(io.BytesIO({text!r}.encode()), encoding="utf-8")
exec(compile({program!r}, "<program>", "exec"), {{"__name__": "__main__"}})
"""
_CALLS = """import json, sys
space = {{"__name__": "__main__"}}
exec(compile({program!r}, "<program>", "exec"), space)
results = []
for arguments in json.loads({arguments!r}):
    owner = space["Solution"]() if "Solution" in space else None
    function = getattr(owner, {name!r}) if owner is not None else space[{name!r}]
    results.append(function(*arguments))
print()
print({word!r} + json.dumps(results), end="")
"""


@dataclass(frozen=True)
class IOTests:
    """The tests of one problem.

    Attributes:
        inputs: texts for standard input, or the function's arguments.
        outputs: what is expected of each.
        function: its name; None for tests of standard input and output.
    """

    inputs: list[Any]
    outputs: list[Any]
    function: str | None = None

    @classmethod
    def parse(cls, answer: str) -> IOTests:
        """Raises ValueError if the text does not have the form."""
        try:
            found = json.loads(answer)
            tests = found["tests"] if isinstance(found, dict) else found
            function = found["function"] if isinstance(found, dict) else None
            inputs, outputs = [t["input"] for t in tests], [t["output"] for t in tests]
        except (KeyError, TypeError) as error:
            raise ValueError(f"tests must be a list of objects with input and output ({error!r})") from error
        wanted = str if function is None else list
        if not tests or not all(isinstance(given, wanted) for given in inputs):
            raise ValueError(f"there must be a test, and every input must be a {wanted.__name__}")
        return cls(inputs, outputs, function)

    def programs(self, program: str, word: str) -> list[str]:
        """What to run: one program a test of standard input, or one for all calls, whose results follow `word`."""
        if self.function is None:
            return [_STDIN.format(text=text, program=program) for text in self.inputs]
        arguments = json.dumps(self.inputs)
        return [_CALLS.format(program=program, arguments=arguments, name=self.function, word=word)]

    def wrong(self, printed: list[str], word: str) -> str | None:
        """What is wrong with what the programs printed; None if nothing is."""
        if self.function is None:
            pairs = enumerate(zip(printed, self.outputs, strict=True), 1)
            place = next((i for i, (text, output) in pairs if not same_output(text, output)), None)
            return None if place is None else f"test {place} of {len(self.outputs)} printed something else"
        line = printed[0].rpartition("\n")[2]
        if not line.startswith(word):
            return "the tests were not run to their end"
        try:
            results = json.loads(line.removeprefix(word))
        except ValueError:
            return "the results can't be read"
        pairs = enumerate(zip(results, self.outputs, strict=False), 1)
        place = next((i for i, (result, output) in pairs if result != output), None)
        return None if place is None else f"test {place} of {len(self.outputs)} returned something else"


def same_output(printed: str, expected: str) -> bool:
    """Line by line, spacing at the ends aside; lines of numbers are compared by value."""
    lines, wanted = printed.strip().split("\n"), expected.strip().split("\n")
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def _same_line(one: str, other: str) -> bool:
    if one.strip() == other.strip():
        return True
    try:
        return [Decimal(word) for word in one.split()] == [Decimal(word) for word in other.split()]
    except InvalidOperation:
        return False
