r"""Questions of several hops whose records are at different desks: a wrong call gets a reply that shows how to fix it.

Half of the records are at the front, where `kim boss` finds them. For any other record, the tool says at which desk it
is (`ask desk 7`), and the call must be repeated with that number: `kim boss 7`. A wrong number is answered with the
right one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from gtpo.lab.tiny.hops import FACTS, NOTHING, Hops, HopsWalk, LookupTool, look_up
from gtpo.rollout.tools import ToolResult
from gtpo.sandbox import Sandbox
from gtpo.tasks.problems import Problem
from gtpo.types import ToolCall

ASK = "ask desk "
ELSEWHERE = 0.5
"""Share of records that are not at the front."""


def _desk(name: str, relation: str) -> str | None:
    rng = random.Random(f"desk of {name} {relation}")
    return str(rng.randint(1, 9)) if rng.random() < ELSEWHERE else None


DESKS = {fact: desk for fact in FACTS if (desk := _desk(*fact))}
"""Where the records are that are not at the front, by name and relation."""


def ask(query: str) -> tuple[str, str]:
    """The tool's reply to `kim boss` or `kim boss 7`, and the status of the call."""
    name, relation, desk = (*query.strip().split(" "), "", "", "")[:3]
    found = look_up(f"{name} {relation}")
    if not found:
        return NOTHING, "nothing_found"
    right = DESKS.get((name, relation))
    return (found, "ok") if right in (None, desk) else (f"{ASK}{right}", "elsewhere")


class DeskLookupTool(LookupTool):
    """`LookupTool` that may ask for a desk; for `--tools gtpo.lab.tiny.desks:DeskLookupTool`."""

    async def run(self, call: ToolCall) -> ToolResult:
        """The requested name, or the desk to ask at."""
        return ToolResult(*ask(str(call.arguments["query"])))


class DeskHops(Hops):
    """See the module.

    Args:
        fewest, most: relations of a question.
    """

    name: ClassVar[str] = "desks"
    about: ClassVar[str] = "hops over records at several desks"
    tools: ClassVar[str] = "gtpo.lab.tiny.desks:DeskLookupTool"
    phrases: ClassVar[tuple[str, ...]] = (*Hops.phrases, ASK)

    def __init__(self, fewest: int = 2, most: int = 3) -> None:
        super().__init__(fewest, most)

    def walk(self, problem: Problem, rng: random.Random) -> _DeskWalk:
        """See `Family.walk`."""
        return _DeskWalk(problem)

    def results(self, calls: Sequence[str], sandbox: Sandbox) -> list[str]:
        """See `Family.results`."""
        return [ask(call)[0] for call in calls]


class _DeskWalk(HopsWalk):
    """Goes to the desk that the tool named; a wrong call goes to a wrong desk or to the front again."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._desk: str | None = None

    def next_call(self) -> str | None:
        call = super().next_call()
        return call if call is None or self._desk is None else f"{call} {self._desk}"

    def wrong_call(self, rng: random.Random) -> str:
        if self._desk is None:
            return super().wrong_call(rng)
        call = f"{self._name} {self._path[0]}"
        return call if rng.random() < 0.5 else f"{call} {rng.choice([d for d in '123456789' if d != self._desk])}"

    def observe(self, call: str) -> str | None:
        said, state = ask(call)
        self._desk = said.removeprefix(ASK) if state == "elsewhere" else None
        return None if self._desk else super().observe(call)
