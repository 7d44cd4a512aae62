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
    """The result of a call.

    Attributes:
        text: shown to the model; a long text is cut in the middle later.
        status: how the call ended: "ok", or another word for statistics; for Python the sandbox's status.
            "tool_failure": the tool itself failed, which ends the rollout and masks it.
        note: for a failing tool, what failed; for logs.
        final: whether the rollout ends with this result.
    """

    text: str
    status: str = "ok"
    note: str = ""
    final: bool = False


class ToolUse(Protocol):
    """A tool while one rollout uses it."""

    async def run(self, call: ToolCall) -> ToolResult:
        """Run one call. What goes wrong with the call is a result; an exception is a failure of the tool."""
        ...

    async def aclose(self) -> None:
        """Called when the rollout is over; may be called twice."""
        ...


class Tool(Protocol):
    """A tool that a model can call."""

    @property
    def spec(self) -> ToolSpec:
        """The description for the model, against which calls are checked."""
        ...

    def open(self, key: Hashable) -> ToolUse:
        """The tool for one rollout; costs nothing before its first call.

        Args:
            key: identifies the rollout; a tool that has to choose between rollouts should let them take turns.
        """
        ...


class PythonTool:
    """Runs Python: opens an `Interpreter` for each rollout.

    Args:
        sandbox: runs the programs.
        state: `stateless`: a fresh process per call; `session`: one process per rollout, globals are kept from call to
            call; `fresh`: one process per rollout, new globals per call. `docs/sandbox.md` lists what each costs.

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
        """The interpreter of one rollout; see `Tool.open`."""
        session = None if self.state == "stateless" else self.sandbox.session(fresh=self.state == "fresh")
        return Interpreter(self.sandbox, session, key)


class Interpreter:
    """Runs the calls of one rollout; created by `PythonTool.open`, closed by `aclose`."""

    def __init__(self, sandbox: Sandbox, session: Session | None, key: Hashable) -> None:
        self._sandbox, self._session, self._key = sandbox, session, key

    async def run(self, call: ToolCall) -> ToolResult:
        """Runs one call; in a session, after the calls before it."""
        if self._session is None:
            result = await self._sandbox.run(call.code, key=self._key)
        else:
            result = await self._session.run(call.code)
        return ToolResult(result.render(max_chars=2**31), result.status.value, result.note or "")

    async def aclose(self) -> None:
        """Ends the rollout's process, if it has one; may be called twice."""
        if self._session is not None:
            await self._session.aclose()
