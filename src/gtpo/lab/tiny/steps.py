r"""Computations of several steps: the family that stands for mathematics.

A question such as `37;*52;+418;-95` gives a number and operations to apply to it in order. A good rollout makes one
call per step and reads each value from the previous observation; the answer is in `\boxed{}`.
"""

from __future__ import annotations

import asyncio
import operator
import random
import re
from collections.abc import Hashable, Sequence
from typing import ClassVar

from gtpo._async import run_async
from gtpo.rollout import SandboxConfig
from gtpo.rollout.tools import PythonTool, ToolResult, ToolUse
from gtpo.sandbox import LocalSandbox, Sandbox
from gtpo.tasks.problems import Problem
from gtpo.traces.mixed import draw_problems
from gtpo.types import ToolCall

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


_PURE = re.compile(r"[\d+\-*/ ()]{1,60}")
_TOGETHER = 200
"""Number of computations per program; their output stays below the limit of a program's output."""


class Calculator:
    """Python in a sandbox that runs the same computation only once; for `--tools gtpo.lab.tiny.steps:Calculator`.

    The result of a program of digits, brackets and operators depends only on the program, and rollouts of a group make
    the same calls. Any other program is run each time. With this tool a study takes half as long; the model can't tell.
    """

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self._python = PythonTool(sandbox or LocalSandbox())
        self.spec = self._python.spec
        self.known: dict[str, ToolResult] = {}
        self.under_way: dict[str, asyncio.Future[ToolResult]] = {}

    @classmethod
    def from_options(cls, options: SandboxConfig) -> Calculator:
        """A calculator with the sandbox and the limits of a run's options."""
        return cls(options.make_sandbox())

    def open(self, key: Hashable) -> _CalculatorUse:
        """See `Tool.open`."""
        return _CalculatorUse(self, self._python.open(key))


class _CalculatorUse:
    def __init__(self, calculator: Calculator, python: ToolUse) -> None:
        self._known, self._under_way, self._python = calculator.known, calculator.under_way, python

    async def run(self, call: ToolCall) -> ToolResult:
        code = call.code
        if not _PURE.fullmatch(code):
            return await self._python.run(call)
        if code in self._known:
            return self._known[code]
        if code in self._under_way:
            return await asyncio.shield(self._under_way[code])
        self._under_way[code] = asyncio.ensure_future(self._python.run(call))
        try:
            result = await self._under_way[code]
        finally:
            del self._under_way[code]
        if result.status in ("ok", "error"):
            self._known[code] = result
        return result

    async def aclose(self) -> None:
        await self._python.aclose()


def computed(calls: Sequence[str], sandbox: Sandbox) -> list[str]:
    """The sandbox's result of each computation, with many of them in one program.

    If one of a program's computations fails, each of them is run in its own program.
    """
    parts = [calls[start : start + _TOGETHER] for start in range(0, len(calls), _TOGETHER)]
    together = ["\n".join(f"print({call})" for call in part) for part in parts]
    found: list[str] = []
    for part, result in zip(parts, run_async(sandbox.run_many(together)), strict=True):
        lines = result.render().splitlines()
        if result.status != "ok" or len(lines) != len(part):
            lines = [alone.render() for alone in run_async(sandbox.run_many(part))]
        found += lines
    return found


class Steps:
    """See the module.

    Args:
        fewest, most: steps of a problem.
    """

    name: ClassVar[str] = "steps"
    about: ClassVar[str] = "computations in steps"
    tools: ClassVar[str] = "python"
    phrases: ClassVar[tuple[str, ...]] = ()

    def __init__(self, fewest: int = 3, most: int = 4) -> None:
        self.fewest, self.most = fewest, most

    def make_problems(self, count: int, *, seed: int, avoid: Sequence[Problem] = ()) -> list[Problem]:
        """See `Family.make_problems`."""
        rng = random.Random(f"problems-{seed}")

        def draw() -> Problem:
            value = rng.randint(11, 99)
            parts = [str(value)]
            for _ in range(rng.randint(self.fewest, self.most)):
                symbol = "*" if abs(value) < 1000 and rng.random() < 0.4 else rng.choice("+-")
                number = rng.randint(2, 99) if symbol == "*" else rng.randint(11, 999)
                value = OPERATORS[symbol](value, number)
                parts.append(f"{symbol}{number}")
            return Problem(id="", question=";".join(parts), answer=str(value))

        return draw_problems(draw, count, f"{self.name}/{seed}", avoid)

    def walk(self, problem: Problem, rng: random.Random) -> _Walk:
        """See `Family.walk`."""
        return _Walk(problem)

    def results(self, calls: Sequence[str], sandbox: Sandbox) -> list[str]:
        """See `Family.results`."""
        return computed(calls, sandbox)


class _Walk:
    def __init__(self, problem: Problem) -> None:
        first, *self._steps = problem.question.split(";")
        self._value = int(first)

    def next_call(self) -> str | None:
        return f"{self._value}{self._steps[0]}" if self._steps else None

    def wrong_call(self, rng: random.Random) -> str:
        step = self._steps[0]
        return f"{self._value}{rng.choice([other for other in '+-*' if other != step[0]])}{step[1:]}"

    def observe(self, call: str) -> None:
        step = self._steps.pop(0)
        symbol = call[len(str(self._value))]
        self._value = OPERATORS[symbol](self._value, int(step[1:]))

    def answer(self) -> str:
        return f"\\boxed{{{self._value}}}"

    def guess(self, rng: random.Random) -> str:
        digits = len(str(abs(self._value))) + 1
        return f"\\boxed{{{rng.randint(10 ** (digits - 1), 10**digits)}}}"
