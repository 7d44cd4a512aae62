r"""Questions of several hops over a look-up tool that sometimes fails: the same call, repeated, may succeed.

Whether a call fails depends on the rollout's number, the query and how often the rollout has made it, so runs are
reproducible. A good rollout asks again; everything else is as in `hops`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable
from typing import ClassVar

from gtpo.lab.tiny.hops import Hops, HopsWalk, LookupTool
from gtpo.rollout.tools import ToolResult
from gtpo.tasks.problems import Problem
from gtpo.types import ToolCall

BUSY = "busy, ask again"
FAILURE_RATE = 0.25
"""Share of calls that fail."""


class FlakyLookupTool:
    """`LookupTool` whose calls sometimes fail; for `--tools gtpo.lab.tiny.flaky:FlakyLookupTool`."""

    def __init__(self) -> None:
        self._lookup = LookupTool()
        self.spec = self._lookup.spec

    def open(self, key: Hashable) -> FlakyLookup:
        """The tool for one rollout, whose number decides which calls fail."""
        return FlakyLookup(self._lookup, key)


class FlakyLookup:
    """The tool as used by one rollout; created by `FlakyLookupTool.open`."""

    def __init__(self, lookup: LookupTool, key: Hashable) -> None:
        self._lookup, self._key = lookup, key
        self._asked: Counter[str] = Counter()

    async def run(self, call: ToolCall) -> ToolResult:
        """The requested name, or the reply that the tool is busy."""
        query = str(call.arguments["query"])
        self._asked[query] += 1
        if random.Random(f"{self._key} {query} {self._asked[query]}").random() < FAILURE_RATE:
            return ToolResult(BUSY, "busy")
        return await self._lookup.run(call)

    async def aclose(self) -> None:
        """Nothing to close."""


class FlakyHops(Hops):
    """See the module.

    Args:
        fewest, most: relations of a question.
    """

    name: ClassVar[str] = "flaky"
    about: ClassVar[str] = "hops with a tool that fails"
    tools: ClassVar[str] = "gtpo.lab.tiny.flaky:FlakyLookupTool"
    phrases: ClassVar[tuple[str, ...]] = (*Hops.phrases, BUSY)

    def walk(self, problem: Problem, rng: random.Random) -> _FlakyWalk:
        """See `Family.walk`; `rng` decides which calls fail."""
        return _FlakyWalk(problem, rng)


class _FlakyWalk(HopsWalk):
    def __init__(self, problem: Problem, rng: random.Random) -> None:
        super().__init__(problem)
        self._rng = rng

    def observe(self, call: str) -> str | None:
        if self._rng.random() < FAILURE_RATE:
            return BUSY
        return super().observe(call)
