"""The tools of `fault_soak.py`: a user's own functions, and one whose own machinery fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from typing import Any

from gtpo.rollout import FunctionTool, ToolResult

TOOL_S = 1.0
"""What a call may take."""


def look(word: str) -> str:
    """Look something up.

    Args:
        word: what.
    """
    return _looked_up(word, time.sleep)


async def look_later(word: str) -> str:
    """Look something up, later.

    Args:
        word: what.
    """
    if word.startswith("block"):
        await asyncio.sleep(60)
    return _looked_up(word, lambda seconds: None)


def _looked_up(word: str, sleep: Any) -> str:
    kind, _, number = word.partition(" ")
    if kind == "raise":
        raise ValueError(f"no {number}")
    if kind == "block":
        sleep(2.5 * TOOL_S)
    return f"\x1b[31m{number}\ud800\x07" if kind == "odd" else f"value {number}"


class Breaking:
    """A tool whose own machinery fails when it is told to."""

    def __init__(self) -> None:
        def brittle(word: str) -> str:
            """Look something up in something brittle.

            Args:
                word: what.
            """
            return word

        self.spec = FunctionTool(brittle).spec

    def open(self, key: Hashable) -> Breaking:
        return self

    async def run(self, call: Any) -> ToolResult:
        await asyncio.sleep(0.001)
        if str(call.arguments["word"]).startswith("break"):
            raise OSError("the tool itself is broken")
        return ToolResult(f"value {call.arguments['word']}")

    async def aclose(self) -> None:
        pass
