r"""Problems of several steps, and traces of a deliberately mixed behaviour on them.

A question such as `37;*52;+418;-95` gives a number and operations to apply to it in order. A good rollout makes one
call a step and reads each value off the observation before; the answer stands in `\boxed{}`.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gtpo._async import run_async
from gtpo.rollout import ToolFormat
from gtpo.sandbox import Sandbox
from gtpo.tasks.problems import Problem
from gtpo.types import InvalidCall

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class Behaviour:
    """How often, at each step of a trace, something else is done than a good call.

    Attributes:
        malformed: a call that is left open or empty, and then the good one.
        wrong: a call with another operator; the trace goes on from its value.
        guess: an answer made up without the tool; ends the trace.
    """

    malformed: float = 0.2
    wrong: float = 0.12
    guess: float = 0.12


def make_problems(count: int, *, seed: int, avoid: Sequence[Problem] = ()) -> list[Problem]:
    """Distinct problems of three or four steps; none whose question is in `avoid`."""
    rng = random.Random(f"problems-{seed}")
    taken = {problem.question for problem in avoid}
    problems: list[Problem] = []
    while len(problems) < count:
        value = rng.randint(11, 99)
        parts = [str(value)]
        for _ in range(rng.randint(3, 4)):
            symbol = "*" if abs(value) < 1000 and rng.random() < 0.4 else rng.choice("+-")
            number = rng.randint(2, 99) if symbol == "*" else rng.randint(11, 999)
            value = OPERATORS[symbol](value, number)
            parts.append(f"{symbol}{number}")
        question = ";".join(parts)
        if question not in taken:
            taken.add(question)
            problems.append(Problem(id=f"steps/{seed}/{len(problems)}", question=question, answer=str(value)))
    return problems


def mixed_traces(
    count: int, sandbox: Sandbox, tool_format: ToolFormat, behaviour: Behaviour, *, seed: int
) -> list[list[dict[str, Any]]]:
    """Conversations on problems of their own; every valid call is run in the sandbox."""
    rng = random.Random(f"traces-{seed}")
    problems = make_problems(count, seed=seed)
    drafts = [_draft(problem, behaviour, rng, tool_format) for problem in problems]
    codes = sorted({code for draft in drafts for code in draft.codes})
    results = dict(zip(codes, run_async(sandbox.run_many(codes)), strict=True))
    return [
        [
            {**message, "content": results[message["content"]].render()} if message.get("pending") else message
            for message in draft.messages
        ]
        for draft in drafts
    ]


@dataclass
class _Draft:
    """A trace whose observations are still the code to be run (`pending`)."""

    messages: list[dict[str, Any]]
    codes: list[str]


def _draft(problem: Problem, behaviour: Behaviour, rng: random.Random, tool_format: ToolFormat) -> _Draft:
    draft = _Draft([{"role": "user", "content": problem.question}], [])
    first, *steps = problem.question.split(";")
    value = int(first)
    for step in steps:
        if rng.random() < behaviour.guess:
            digits = len(str(abs(value))) + 1
            return _answered(draft, rng.randint(10 ** (digits - 1), 10**digits))
        symbol, number = step[0], int(step[1:])
        if rng.random() < behaviour.malformed:
            _say(draft, _malformed(f"{value}{step}", rng, tool_format), tool_format)
        if rng.random() < behaviour.wrong:
            symbol = rng.choice([other for other in "+-*" if other != symbol])
        code = f"{value}{symbol}{number}"
        _say(draft, tool_format.render_call(code), tool_format)
        value = OPERATORS[symbol](value, number)
    return _answered(draft, value)


def _malformed(code: str, rng: random.Random, tool_format: ToolFormat) -> str:
    """A call without its end, or without code."""
    whole = tool_format.render_call(code)
    return whole[: whole.index(code) + len(code)] if rng.random() < 0.5 else tool_format.render_call("")


def _say(draft: _Draft, content: str, tool_format: ToolFormat) -> None:
    draft.messages.append({"role": "assistant", "content": content})
    for call in tool_format.parse(content):
        if isinstance(call, InvalidCall):
            draft.messages.append({"role": "tool", "content": call.observation})
        else:
            draft.messages.append({"role": "tool", "content": call.code, "pending": True})
            draft.codes.append(call.code)


def _answered(draft: _Draft, value: int) -> _Draft:
    draft.messages.append({"role": "assistant", "content": f"\\boxed{{{value}}}"})
    return draft
