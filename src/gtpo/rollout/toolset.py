"""The options that choose the tools of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Optional

from gtpo._imports import imported
from gtpo.errors import ConfigError
from gtpo.rollout.search import SearchTool, search_spec
from gtpo.rollout.tool_spec import ToolSpec, python_spec
from gtpo.rollout.tools import PythonTool, Tool, ToolState
from gtpo.sandbox import Limits, LocalSandbox, Require, Sandbox, SandboxFusionSandbox
from gtpo.sandbox.service import KEY_HEADER


@dataclass
class ToolChoice:
    """Which tools there are."""

    tools: str = field(
        default="python",
        metadata={"help": "python, search, both with a comma, MODULE:FACTORY for one of your own, or none."},
    )
    tool_state: ToolState = field(
        default="stateless",
        metadata={
            "help": "stateless: a process a call; session: one a rollout, which keeps globals; fresh: one a rollout, "
            "new globals a call."
        },
    )
    search_results: int = field(default=3, metadata={"help": "search: passages that a call returns."})

    def specs(self) -> list[ToolSpec]:
        """What the model is told of the tools.

        Raises:
            ConfigError: an unknown or repeated tool.
        """
        specs = [self._spec(name) for name in self.tool_names()]
        if len({spec.name for spec in specs}) < len(specs):
            raise ConfigError(f"tools: {self.tools!r} names a tool twice")
        return specs

    def tool_names(self) -> list[str]:
        """The tools as they were asked for."""
        return [name.strip() for name in self.tools.split(",")] if self.tools.strip() not in ("", "none") else []

    def _spec(self, name: str) -> ToolSpec:
        if name == "python":
            return python_spec(keeps_state=self.tool_state == "session")
        if name == "search":
            return search_spec(self.search_results)
        if ":" in name:
            tool: Tool = imported(name, "tools")()
            return tool.spec
        raise ConfigError(f"tools: there is no {name!r}; known: python, search, MODULE:FACTORY, none")


@dataclass
class ToolArguments(ToolChoice):
    """What the tools run on, and with what limits."""

    passages: Optional[str] = field(  # noqa: UP045 (the argument parser reads the annotation)
        default=None, metadata={"help": "search: passages, JSON Lines with `text` and, if they have one, `title`."}
    )
    sandbox: str = field(
        default="local", metadata={"help": "local, or the URL of a SandboxFusion server, or several with commas."}
    )
    sandbox_require: Require = field(
        default="landlock", metadata={"help": "Weakest isolation that the local sandbox may start with."}
    )
    tool_wall_s: float = field(default=8.0, metadata={"help": "Seconds on the wall that a call may take."})
    tool_cpu_s: float = field(default=4.0, metadata={"help": "CPU seconds that a call may take."})
    tool_memory_mb: int = field(default=512, metadata={"help": "Memory that a call may use, in MB."})

    def tool_limits(self) -> Limits:
        """What one call may use."""
        return Limits(cpu_s=self.tool_cpu_s, wall_s=self.tool_wall_s, memory_mb=self.tool_memory_mb)

    def make_tools(self, sandbox: Sandbox | None = None) -> list[Tool]:
        """The tools that these options ask for.

        Args:
            sandbox: for Python, in place of the one that the options ask for.

        Raises:
            ConfigError: an unknown or repeated tool, search without passages or without its package.
            DataError: the passages can't be read.
            SandboxError: see `make_sandbox`.
        """
        self.specs()
        return [self._tool(name, sandbox) for name in self.tool_names()]

    def _tool(self, name: str, sandbox: Sandbox | None) -> Tool:
        if name == "python":
            return PythonTool(sandbox or self.make_sandbox(), self.tool_state)
        if name == "search":
            if self.passages is None:
                raise ConfigError("the tool 'search' needs --passages FILE.jsonl")
            return SearchTool.from_file(self.passages, results=self.search_results)
        factory = imported(name, "tools")
        tool: Tool = factory.from_options(self) if hasattr(factory, "from_options") else factory()
        return tool

    def make_sandbox(self) -> LocalSandbox | SandboxFusionSandbox:
        """The sandbox that these options ask for.

        Raises:
            ConfigError: `sandbox` is neither `local` nor a URL.
            SandboxError: the local one can't start, or does not hold what `sandbox_require` asks for; no
                SandboxFusion server answers at the URL.
        """
        if self.sandbox == "local":
            return LocalSandbox(limits=self.tool_limits(), require=self.sandbox_require)
        urls = [url.strip() for url in self.sandbox.split(",")]
        key = os.environ.get("GTPO_SANDBOX_KEY")
        remote = SandboxFusionSandbox(urls, limits=self.tool_limits(), headers={KEY_HEADER: key} if key else None)
        remote.ping()
        return remote
