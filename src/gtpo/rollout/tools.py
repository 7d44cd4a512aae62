"""The Python that the calls of a rollout run in: a sandbox, and what one call leaves for the next."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal, get_args

from gtpo.errors import ConfigError
from gtpo.sandbox import ExecResult, Limits, LocalSandbox, Require, Sandbox, SandboxFusionSandbox, Session

ToolState = Literal["stateless", "session", "fresh"]
"""What a call leaves for the next call of its rollout: nothing; globals, as in a notebook; or its process only."""


class PythonTool:
    """Opens an `Interpreter` for each rollout.

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
        if state != "stateless":
            sandbox.session().close()  # one that has none says so now, not in the middle of a run

    def open(self, key: Hashable) -> Interpreter:
        """The Python of one rollout; it costs nothing before its first call.

        Args:
            key: of the rollout; calls of different rollouts take turns.
        """
        session = None if self.state == "stateless" else self.sandbox.session(fresh=self.state == "fresh")
        return Interpreter(self.sandbox, session, key)


class Interpreter:
    """Runs the calls of one rollout; made by `PythonTool.open`, ended by `aclose`."""

    def __init__(self, sandbox: Sandbox, session: Session | None, key: Hashable) -> None:
        self._sandbox, self._session, self._key = sandbox, session, key

    async def run(self, code: str) -> ExecResult:
        """Runs one call; with a session, after those that were given before it."""
        if self._session is None:
            return await self._sandbox.run(code, key=self._key)
        return await self._session.run(code)

    async def aclose(self) -> None:
        """Ends the rollout's process, if it has one; may be called twice."""
        if self._session is not None:
            await self._session.aclose()


@dataclass
class ToolArguments:
    """Where the Python tool runs, with what limits, and what a call leaves for the next."""

    sandbox: str = field(default="local", metadata={"help": "local, or the URL of a SandboxFusion server."})
    sandbox_require: Require = field(
        default="landlock", metadata={"help": "Weakest isolation that the local sandbox may start with."}
    )
    tool_state: ToolState = field(
        default="stateless",
        metadata={
            "help": "stateless: a process a call; session: one a rollout, which keeps globals; fresh: one a rollout, "
            "new globals a call."
        },
    )
    tool_wall_s: float = field(default=8.0, metadata={"help": "Seconds on the wall that a call may take."})
    tool_cpu_s: float = field(default=4.0, metadata={"help": "CPU seconds that a call may take."})
    tool_memory_mb: int = field(default=512, metadata={"help": "Memory that a call may use, in MB."})

    def tool_limits(self) -> Limits:
        """What one call may use."""
        return Limits(cpu_s=self.tool_cpu_s, wall_s=self.tool_wall_s, memory_mb=self.tool_memory_mb)

    def make_sandbox(self) -> LocalSandbox | SandboxFusionSandbox:
        """The sandbox that these options ask for.

        Raises:
            ConfigError: `sandbox` is neither `local` nor a URL.
            SandboxError: the local one can't start, or does not hold what `sandbox_require` asks for; no
                SandboxFusion server answers at the URL.
        """
        if self.sandbox == "local":
            return LocalSandbox(limits=self.tool_limits(), require=self.sandbox_require)
        remote = SandboxFusionSandbox(self.sandbox, limits=self.tool_limits())
        remote.ping()
        return remote
