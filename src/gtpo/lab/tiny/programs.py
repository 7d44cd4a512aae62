"""From inputs and outputs to a function: the family that stands for program synthesis.

A question such as `2:17;5:38;9:66` gives f(2), f(5) and f(9) of a function f(x) = a*x + b. A good rollout computes the
slope and then the offset with the tool, and may test the function on the third pair before it answers; if that does not
fit, it starts again. The answer is a program, which is tested in the sandbox on inputs that the model has not seen.
"""

from __future__ import annotations

import json
import operator
import random
from collections.abc import Callable, Sequence
from typing import ClassVar

from gtpo.lab.tiny.steps import computed
from gtpo.sandbox import Sandbox
from gtpo.tasks.problems import Problem
from gtpo.traces.mixed import draw_problems

OPEN, CLOSE = "<answer>f=lambda x:", "</answer>"
_HIDDEN = (0, 13, -4)
"""Inputs of the tests; the model never sees them."""
_TRIED = 0.5
"""Share of walks that test the function before they answer."""
_ATTEMPTS = 2


class Programs:
    """See the module."""

    name: ClassVar[str] = "programs"
    about: ClassVar[str] = "functions from examples"
    tools: ClassVar[str] = "gtpo.lab.tiny.steps:Calculator"
    phrases: ClassVar[tuple[str, ...]] = (OPEN, CLOSE)

    def make_problems(self, count: int, *, seed: int, avoid: Sequence[Problem] = ()) -> list[Problem]:
        """See `Family.make_problems`."""
        rng = random.Random(f"programs-{seed}")

        def draw() -> Problem:
            slope, offset = rng.randint(2, 29), rng.randint(1, 99) * rng.choice((1, -1))
            inputs = sorted(rng.sample(range(2, 10), 3))
            question = ";".join(f"{x}:{slope * x + offset}" for x in inputs)
            tests = [{"input": [x], "output": slope * x + offset} for x in _HIDDEN]
            answer = json.dumps({"function": "f", "tests": tests})
            return Problem(id="", question=question, answer=answer, domain="code", extras={"answer_kind": "io"})

        return draw_problems(draw, count, f"{self.name}/{seed}", avoid)

    def walk(self, problem: Problem, rng: random.Random) -> _Walk:
        """See `Family.walk`."""
        return _Walk(problem, rng.random() < _TRIED)

    def results(self, calls: Sequence[str], sandbox: Sandbox) -> list[str]:
        """See `Family.results`."""
        return computed(calls, sandbox)


class _Walk:
    def __init__(self, problem: Problem, tries: bool) -> None:
        pairs = [pair.split(":") for pair in problem.question.split(";")]
        self._pairs = [(int(x), int(y)) for x, y in pairs]
        self._known: list[int] = []
        self._tries, self._attempts = tries, 1

    def next_call(self) -> str | None:
        calls: list[Callable[[str], str]] = [self._slope, self._offset, self._trial]
        place = len(self._known)
        return calls[place](_SIGNS[place][0]) if place < 2 + self._tries else None

    def wrong_call(self, rng: random.Random) -> str:
        place = len(self._known)
        calls: list[Callable[[str], str]] = [self._slope, self._offset, self._trial]
        return calls[place](_SIGNS[place][1])

    def _slope(self, sign: str) -> str:
        (x1, y1), (x2, y2), _ = self._pairs
        return f"({y2}{sign}{y1})//({x2}-{x1})".replace("--", "- -").replace("+-", "+ -")

    def _offset(self, sign: str) -> str:
        x, y = self._pairs[0]
        return f"{y}{sign}{x}*{self._known[0]}".replace("--", "- -").replace("+-", "+ -")

    def _trial(self, sign: str) -> str:
        return f"{self._known[0]}*{self._pairs[2][0]}{sign}({self._known[1]})"

    def observe(self, call: str) -> None:
        place = len(self._known)
        sign = _SIGNS[place][0 if call == self.next_call() else 1]
        apply = _APPLY[sign]
        (x1, y1), (x2, y2), (x3, y3) = self._pairs
        if place == 0:
            self._known.append(apply(y2, y1) // (x2 - x1))
        elif place == 1:
            self._known.append(apply(y1, x1 * self._known[0]))
        elif apply(self._known[0] * x3, self._known[1]) == y3 or self._attempts == _ATTEMPTS:
            self._tries = False
        else:
            self._known.clear()
            self._attempts += 1

    def answer(self) -> str:
        return f"{OPEN}{self._known[0]}*x+({self._known[1]}){CLOSE}"

    def guess(self, rng: random.Random) -> str:
        return f"{OPEN}{rng.randint(2, 29)}*x+({rng.randint(-99, 99)}){CLOSE}"


_SIGNS = (("-", "+"), ("-", "+"), ("+", "-"))
_APPLY = {"+": operator.add, "-": operator.sub}
