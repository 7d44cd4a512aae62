"""Traces of deliberately mixed behaviour, for any family of problems.

A family defines its problems and how a good rollout solves one: the next call, what is learnt from its result, when to
answer. Traces do the same, but at each step they may first make a malformed call, make a wrong call and continue from
its result, or give up and guess.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from gtpo.rollout import ToolFormat
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.sandbox import Sandbox
from gtpo.tasks.problems import Problem
from gtpo.types import InvalidCall


@dataclass(frozen=True)
class Behaviour:
    """Probabilities, at each step of a trace, of something other than a good call.

    Attributes:
        malformed: an unclosed or empty call, followed by the good one.
        wrong: a call that does not help; the trace continues from its result.
        guess: an answer made up without the tool; ends the trace.
    """

    malformed: float = 0.2
    wrong: float = 0.12
    guess: float = 0.12


class Walk(Protocol):
    """A rollout on one problem, in progress."""

    def next_call(self) -> str | None:
        """The argument of the next call of a good rollout; None if it answers."""
        ...

    def wrong_call(self, rng: random.Random) -> str:
        """A call that does not help, made instead of the next one."""
        ...

    def observe(self, call: str) -> str | None:
        """Record the result of this call; returns the result if it differs from that of `Family.results`."""
        ...

    def answer(self) -> str:
        """The final turn."""
        ...

    def guess(self, rng: random.Random) -> str:
        """A final turn with a guess, before the problem is solved."""
        ...


class Family(Protocol):
    """A kind of problems that the tiny model can learn."""

    name: ClassVar[str]
    about: ClassVar[str]
    tools: ClassVar[str]
    """The value of the option `tools`."""
    phrases: ClassVar[tuple[str, ...]]
    """Strings of its conversations that are one token each, besides those of all families."""

    def make_problems(self, count: int, *, seed: int, avoid: Sequence[Problem] = ()) -> list[Problem]:
        """Distinct problems; none whose question is in `avoid`."""
        ...

    def walk(self, problem: Problem, rng: random.Random) -> Walk:
        """A rollout on the problem; `rng` chooses among several good ways."""
        ...

    def results(self, calls: Sequence[str], sandbox: Sandbox) -> list[str]:
        """The tool's result of each call."""
        ...


def draw_problems(draw: Callable[[], Problem], count: int, name: str, avoid: Sequence[Problem]) -> list[Problem]:
    """Distinct problems, none whose question is in `avoid`; their ids are `name` and a number.

    Args:
        draw: makes a random problem of the family; its id does not matter.
        count: number of problems.
        name, avoid: see above.
    """
    taken = {problem.question for problem in avoid}
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw()
        if problem.question not in taken:
            taken.add(problem.question)
            problems.append(replace(problem, id=f"{name}/{len(problems)}"))
    return problems


def mixed_traces(
    family: Family,
    problems: Sequence[Problem],
    sandbox: Sandbox,
    tool_format: ToolFormat,
    behaviour: Behaviour,
    *,
    seed: int,
) -> list[list[dict[str, Any]]]:
    """One conversation per problem; every valid call is really executed."""
    rng = random.Random(f"traces-{seed}")
    (spec,) = tool_format.specs
    drafts = [_Draft(problem.question, tool_format, spec) for problem in problems]
    for draft, problem in zip(drafts, problems, strict=True):
        draft.write(family.walk(problem, rng), behaviour, rng)
    calls = sorted({call for draft in drafts for call in draft.calls})
    results = dict(zip(calls, family.results(calls, sandbox), strict=True))
    return [draft.finished(results) for draft in drafts]


@dataclass
class _Draft:
    """A trace whose observations are still calls to be executed (`pending`)."""

    question: str
    tool_format: ToolFormat
    spec: ToolSpec
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def write(self, walk: Walk, behaviour: Behaviour, rng: random.Random) -> None:
        self.messages.append({"role": "user", "content": self.question})
        while (call := walk.next_call()) is not None:
            if rng.random() < behaviour.guess:
                self._end(walk.guess(rng))
                return
            if rng.random() < behaviour.malformed:
                self._say(self._malformed(call, rng))
            if rng.random() < behaviour.wrong:
                call = walk.wrong_call(rng)
            self._say(self.tool_format.render_call(call, self.spec), walk.observe(call))
        self._end(walk.answer())

    def finished(self, results: Mapping[str, str]) -> list[dict[str, Any]]:
        return [
            {"role": "tool", "content": results[message["content"]]} if message.get("pending") else message
            for message in self.messages
        ]

    def _malformed(self, call: str, rng: random.Random) -> str:
        """A call that is unclosed or empty."""
        whole = self.tool_format.render_call(call, self.spec)
        if rng.random() < 0.5:
            return whole[: whole.index(call) + len(call)]
        return self.tool_format.render_call("", self.spec)

    def _say(self, content: str, answer: str | None = None) -> None:
        """Add one turn and its observation, which is computed later unless it is given."""
        self._end(content)
        for call in self.tool_format.parse(content):
            if isinstance(call, InvalidCall):
                self.messages.append({"role": "tool", "content": call.observation})
            elif answer is not None:
                self.messages.append({"role": "tool", "content": answer})
            else:
                argument = call.code if self.spec.is_python else str(call.arguments.get(self.spec.argument or "", ""))
                self.messages.append({"role": "tool", "content": argument, "pending": True})
                self.calls.append(argument)

    def _end(self, content: str) -> None:
        self.messages.append({"role": "assistant", "content": content})
