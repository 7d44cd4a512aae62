"""What a model can call: the `Tool` protocol, and Python in a sandbox."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from gtpo.errors import ConfigError
from gtpo.rollout.tool_spec import ToolSpec, python_spec
from gtpo.sandbox import Sandbox, Session
from gtpo.types import ToolCall

ToolState = Literal["stateless", "session", "fresh"]
"""What a call leaves for the next call of its rollout: nothing; globals, as in a notebook; or its process only."""


@dataclass(frozen=True)
class ToolResult:
    """What came of a call.

    Attributes:
        text: for the model; the middle of a long one is cut later.
        status: how it ended: "ok", or another word for statistics; of Python the sandbox's. "tool_failure": the tool
            itself failed, which ends the rollout and masks it.
        note: of a failing tool, what failed; for logs.
        final: whether the rollout ends with it.
    """

    text: str
    status: str = "ok"
    note: str = ""
    final: bool = False


class ToolUse(Protocol):
    """A tool in the hands of one rollout."""

    async def run(self, call: ToolCall) -> ToolResult:
        """Carry out one call. What goes wrong with the call is a result; an exception is a failure of the tool."""
        ...

    async def aclose(self) -> None:
        """The rollout is over; may be called twice."""
        ...


class Tool(Protocol):
    """What a model can call."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told of it, and what counts as a call of it."""
        ...

    def open(self, key: Hashable) -> ToolUse:
        """The tool for one rollout; costs nothing before its first call.

        Args:
            key: of the rollout; a tool that has to choose should let rollouts take turns.
        """
        ...


class PythonTool:
    """Runs Python: opens an `Interpreter` for each rollout.

    Args:
        sandbox: runs the programs.
        state: `stateless`: a fresh process a call; `session`: one process a rollout, globals are kept from call to
            call; `fresh`: one process a rollout, new globals a call. `docs/sandbox.md` has what each costs.

    Raises:
        ConfigError: `state` is none of these, or the sandbox has no sessions.
    """

    def __init__(self, sandbox: Sandbox, state: ToolState = "stateless") -> None:
        if state not in get_args(ToolState):
            raise ConfigError(f"tool_state must be one of {', '.join(get_args(ToolState))}, not {state!r}")
        self.sandbox = sandbox
        self.state = state
        self.spec = python_spec(keeps_state=state == "session")
        if state != "stateless":
            sandbox.session().close()  # one that has none says so now, not in the middle of a run

    def open(self, key: Hashable) -> Interpreter:
        """The Python of one rollout; see `Tool.open`."""
        session = None if self.state == "stateless" else self.sandbox.session(fresh=self.state == "fresh")
        return Interpreter(self.sandbox, session, key)


class Interpreter:
    """Runs the calls of one rollout; made by `PythonTool.open`, ended by `aclose`."""

    def __init__(self, sandbox: Sandbox, session: Session | None, key: Hashable) -> None:
        self._sandbox, self._session, self._key = sandbox, session, key

    async def run(self, call: ToolCall) -> ToolResult:
        """Runs one call; with a session, after those that were given before it."""
        if self._session is None:
            result = await self._sandbox.run(call.code, key=self._key)
        else:
            result = await self._session.run(call.code)
        return ToolResult(result.render(max_chars=2**31), result.status.value, result.note or "")

    async def aclose(self) -> None:
        """Ends the rollout's process, if it has one; may be called twice."""
        if self._session is not None:
            await self._session.aclose()
