r"""Questions of several hops over a small knowledge base: the family that stands for commonsense reasoning.

A question such as `kim;boss;twin` asks for the twin of Kim's boss. A good rollout looks up one relation per call, with
the family's own tool, and reads each name from the previous observation; the answer is in `\boxed{}`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Sequence
from typing import ClassVar

from gtpo.errors import ConfigError
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tools import ToolResult
from gtpo.sandbox import Sandbox
from gtpo.tasks.problems import Problem
from gtpo.traces.mixed import draw_problems
from gtpo.types import ToolCall

RELATIONS = ("boss", "twin", "aide", "tutor", "agent", "rival")
NOTHING = "nothing found"


def _names() -> list[str]:
    syllables = itertools.product("bdfgklmnprstv", "aeiou", "dklmnrst")
    names = ["".join(letters) for letters in syllables]
    random.Random("names").shuffle(names)
    return names[:400]


NAMES = _names()
FACTS = {
    (name, relation): random.Random(f"{name} {relation}").choice([other for other in NAMES if other != name])
    for name in NAMES
    for relation in RELATIONS
}
"""The knowledge base: who has which relation to whom. Generated, and always the same."""


class LookupTool:
    """Looks up one relation of one person; shared by all rollouts. For `--tools gtpo.lab.tiny.hops:LookupTool`."""

    def __init__(self) -> None:
        self.spec = ToolSpec(
            "lookup",
            "Look up a relation of a person.",
            {"query": {"type": "string", "description": "A name and a relation."}},
            ("query",),
            ability="look up a relation of a person",
        )

    def open(self, key: Hashable) -> LookupTool:
        """Returns self; the tool is stateless."""
        return self

    async def run(self, call: ToolCall) -> ToolResult:
        """The requested name."""
        found = look_up(str(call.arguments["query"]))
        return ToolResult(found or NOTHING, "ok" if found else "nothing_found")

    async def aclose(self) -> None:
        """Nothing to close."""


def look_up(query: str) -> str | None:
    """The name with this relation (`kim boss`), if there is one."""
    name, _, relation = query.strip().partition(" ")
    return FACTS.get((name, relation))


class Hops:
    """See the module.

    Args:
        fewest, most: relations of a question.
    """

    name: ClassVar[str] = "hops"
    about: ClassVar[str] = "questions in hops"
    tools: ClassVar[str] = "gtpo.lab.tiny.hops:LookupTool"
    phrases: ClassVar[tuple[str, ...]] = (
        "```lookup\n",
        "the query is empty.",
        "the ` ` `lookup block was not closed with a line ` ` `.",
        NOTHING,
        *RELATIONS,
    )

    def __init__(self, fewest: int = 3, most: int = 4) -> None:
        self.fewest, self.most = fewest, most

    def make_problems(self, count: int, *, seed: int, avoid: Sequence[Problem] = ()) -> list[Problem]:
        """See `Family.make_problems`.

        Raises:
            ConfigError: there are not that many questions.
        """
        possible = sum(len(NAMES) * len(RELATIONS) ** steps for steps in range(self.fewest, self.most + 1))
        if count + len(avoid) > 0.8 * possible:
            raise ConfigError(
                f"{count} problems of {self.most} hops: there are {possible} in all; ask for fewer, or for more hops"
            )
        rng = random.Random(f"hops-{seed}")

        def draw() -> Problem:
            name = start = rng.choice(NAMES)
            path = [rng.choice(RELATIONS) for _ in range(rng.randint(self.fewest, self.most))]
            for relation in path:
                name = FACTS[name, relation]
            question = ";".join((start, *path))
            return Problem(id="", question=question, answer=name, domain="commonsense", extras={"verifier": "qa"})

        return draw_problems(draw, count, f"{self.name}/{seed}", avoid)

    def walk(self, problem: Problem, rng: random.Random) -> HopsWalk:
        """See `Family.walk`."""
        return HopsWalk(problem)

    def results(self, calls: Sequence[str], sandbox: Sandbox) -> list[str]:
        """See `Family.results`."""
        return [look_up(call) or NOTHING for call in calls]


class HopsWalk:
    """Looks up one relation after another; see `gtpo.traces.mixed.Walk`."""

    def __init__(self, problem: Problem) -> None:
        self._name, *self._path = problem.question.split(";")

    def next_call(self) -> str | None:
        """See `Walk.next_call`."""
        return f"{self._name} {self._path[0]}" if self._path else None

    def wrong_call(self, rng: random.Random) -> str:
        """See `Walk.wrong_call`; another relation."""
        return f"{self._name} {rng.choice([other for other in RELATIONS if other != self._path[0]])}"

    def observe(self, call: str) -> str | None:
        """See `Walk.observe`."""
        self._path.pop(0)
        self._name = look_up(" ".join(call.split()[:2])) or self._name
        return None

    def answer(self) -> str:
        """See `Walk.answer`."""
        return f"\\boxed{{{self._name}}}"

    def guess(self, rng: random.Random) -> str:
        """See `Walk.guess`; any name."""
        return f"\\boxed{{{rng.choice(NAMES)}}}"
