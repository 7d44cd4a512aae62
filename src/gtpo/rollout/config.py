"""The options of rollouts, shared by every command, trainer and plugin.

`RolloutConfig` holds all of them; `PromptConfig` and `SandboxConfig` are the parts that the cold start and the trace
makers need. The help text of a field is its documentation. `gtpo.rollout.build` makes an engine from a configuration.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints

from gtpo._own_code import imported
from gtpo._yaml import read_yaml
from gtpo.errors import ConfigError
from gtpo.rollout.environment import Environments
from gtpo.rollout.formats import check_tool_format
from gtpo.rollout.function_tool import TIMEOUT_S, FunctionTool
from gtpo.rollout.mcp import MCPTools
from gtpo.rollout.mcp.options import PREFIX, MCPConfig, split_tools
from gtpo.rollout.search import SearchTool, search_spec
from gtpo.rollout.settings import RolloutLimits, Sampling
from gtpo.rollout.tool_spec import ToolSpec, python_spec
from gtpo.rollout.tools import PythonTool, Tool, ToolState
from gtpo.rollout.verifiers_environment import PREFIX as OF_VERIFIERS
from gtpo.rollout.verifiers_environment import VerifiersEnvironments
from gtpo.sandbox import Limits, LocalSandbox, Require, Sandbox, SandboxFusionSandbox
from gtpo.sandbox.service import KEY_HEADER

_MACHINE = {
    "sandbox",
    "sandbox_require",
    "passages",
    "instructions",
    "max_concurrency",
    "mcp_connect_s",
    "deterministic",
}
"""Fields that say where and how fast rollouts are made, or name files whose content is recorded elsewhere."""
_OF_ENVIRONMENTS = {"environment", "environment_timeout_s"}
_OF_PYTHON = {"tool_state", "tool_wall_s", "tool_cpu_s", "tool_memory_mb"}
_OF_MCP = {item.name for item in fields(MCPConfig)}


@dataclass
class SandboxConfig:
    """Options of the sandbox that runs the model's programs, and its limits."""

    sandbox: str = field(
        default="local",
        metadata={
            "help": "Where Python runs: local, or the URL of a SandboxFusion server; separate several with commas."
        },
    )
    sandbox_require: Require = field(
        default="landlock",
        metadata={
            "help": "Minimum isolation of the local sandbox, from the strongest level to the weakest; if the machine "
            "offers less, the run does not start."
        },
    )
    tool_wall_s: float = field(default=8.0, metadata={"help": "Time limit per Python call, in wall-clock seconds."})
    tool_cpu_s: float = field(default=4.0, metadata={"help": "Time limit per Python call, in CPU seconds."})
    tool_memory_mb: int = field(default=512, metadata={"help": "Memory limit per Python call, in MiB."})

    def tool_limits(self) -> Limits:
        """The limits of one Python call.

        Raises:
            ConfigError: a limit is out of range.
        """
        return Limits(cpu_s=self.tool_cpu_s, wall_s=self.tool_wall_s, memory_mb=self.tool_memory_mb)

    def make_sandbox(self) -> LocalSandbox | SandboxFusionSandbox:
        """The sandbox that these options ask for.

        Raises:
            ConfigError: `sandbox` is neither `local` nor a URL.
            SandboxError: the local sandbox can't start, or its isolation is weaker than `sandbox_require`; no
                SandboxFusion server answers at the URL.
        """
        if self.sandbox == "local":
            return LocalSandbox(limits=self.tool_limits(), require=self.sandbox_require)
        urls = [url.strip() for url in self.sandbox.split(",")]
        key = os.environ.get("GTPO_SANDBOX_KEY")
        remote = SandboxFusionSandbox(urls, limits=self.tool_limits(), headers={KEY_HEADER: key} if key else None)
        remote.ping()
        return remote


@dataclass
class PromptConfig(MCPConfig):
    """Options of prompts, tools and the syntax of tool calls."""

    tools: str | None = field(
        default=None,
        metadata={
            "help": "Tools, separated by commas: python, search, your own as MODULE:NAME or ./FILE.py:NAME, "
            "mcp:COMMAND or mcp:URL for the tools of an MCP server (append #TOOL+TOOL for some of them); or none. By "
            "default python, or none with --environment."
        },
    )
    environment: str | None = field(
        default=None,
        metadata={
            "help": "Environment: MODULE:CLASS or ./file.py:CLASS, one instance per rollout, with `reset` and methods "
            "as tools; or verifiers:NAME, an installed environment of verifiers with its problems "
            "(docs/environments.md)."
        },
    )
    environment_timeout_s: float = field(
        default=TIMEOUT_S, metadata={"help": "Time limit per call of the environment, in wall-clock seconds, above 0."}
    )
    tool_state: ToolState = field(
        default="stateless",
        metadata={
            "help": "With python: stateless (a process per call), session (a process per rollout that keeps its "
            "globals) or fresh (a process per rollout, new globals for each call)."
        },
    )
    search_results: int = field(
        default=3, metadata={"help": "With search: maximum number of passages per call, at least 1."}
    )
    tool_format: str = field(
        default="auto",
        metadata={
            "help": "Syntax of tool calls: auto (the model's own if it is known, else fenced), native (the model's "
            "own, or an error), fenced (```python), tool_call (JSON in tags), or a family such as qwen3.5."
        },
    )
    system_prompt: str | None = field(
        default=None,
        metadata={
            "help": "System prompt; by default one that describes the tools and the form of the answer; '' for none."
        },
    )
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'Options of the chat template, as JSON, such as {"enable_thinking": false}.'}
    )

    def __post_init__(self) -> None:
        self.chat_template_kwargs = _mapping(self.chat_template_kwargs, "chat_template_kwargs")
        check_tool_format(self.tool_format)
        self.check_mcp()
        names = self.tool_names()
        if unknown := [name for name in names if name not in ("python", "search") and ":" not in name]:
            known = "python, search, MODULE:FUNCTION, mcp:COMMAND, mcp:URL, none"
            raise ConfigError(f"tools: unknown tool {unknown[0]!r}; known: {known}")
        if len(set(names)) < len(names):
            raise ConfigError(f"tools: {self.tools!r} names a tool twice; name each tool once")

    def tool_names(self) -> list[str]:
        """The names of the tools, as given in `tools`."""
        tools = ("none" if self.environment else "python") if self.tools is None else self.tools
        return split_tools(tools) if tools.strip() not in ("", "none") else []

    def specs(self) -> list[ToolSpec]:
        """The descriptions of the tools, for callers that run none. Builds the user's own tools, queries MCP servers.

        Raises:
            ConfigError: a tool or environment of the user's own can't be used, a server can't be reached, or two tools
                have the same name.
        """
        environments = self.make_environments()
        own = [spec for name in self.tool_names() for spec in self._specs(name)]
        return distinct([*own, *(environments.specs if environments else ())])

    def make_environments(self) -> Environments | None:
        """The environments that the options ask for, or None; the same object on every call.

        Raises:
            ConfigError: the class can't be imported, or is not an environment.
        """
        if self.environment is None:
            return None
        return _environments(self.environment, self.environment_timeout_s)

    def _specs(self, name: str) -> list[ToolSpec]:
        if name == "python":
            return [python_spec(keeps_state=self.tool_state == "session")]
        if name == "search":
            return [search_spec(self.search_results)]
        if name.startswith(PREFIX):
            return [tool.spec for tool in self.mcp_tools(name)]
        return [_own_tool(imported(name, "tools"), None).spec]


@dataclass
class RolloutConfig(PromptConfig, SandboxConfig):
    """Options of rollouts: prompts, tools, limits and sampling. They have the same names in every command."""

    instructions: str | None = field(
        default=None,
        metadata={
            "help": "YAML file that maps each type of answer (math, choice, qa, tests, ...) to a sentence on how to "
            "write it."
        },
    )
    verifier: str = field(
        default="auto",
        metadata={
            "help": "Verifier of answers: auto (by domain), math, choice, qa, code, reasoning_gym, or your own as "
            "MODULE:FUNCTION or ./FILE.py:FUNCTION."
        },
    )
    passages: str | None = field(
        default=None,
        metadata={"help": "With search: JSON Lines file of passages, with the fields text and, optionally, title."},
    )
    max_turns: int = field(default=8, metadata={"help": "Maximum number of model turns per rollout, at least 1."})
    max_turn_tokens: int = field(
        default=512, metadata={"help": "Maximum number of sampled tokens per turn, at least 1."}
    )
    max_completion_length: int | None = field(
        default=2048,
        metadata={"help": "Maximum number of tokens per rollout after the prompt: turns and tool results together."},
    )
    max_context: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens per rollout, prompt included; by default the model's context length."
        },
    )
    max_observation_tokens: int = field(
        default=512, metadata={"help": "Maximum number of tokens per tool result; longer ones are cut in the middle."}
    )
    max_repeated_tokens: int = field(
        default=256,
        metadata={
            "help": "End a turn once a block of at most 32 tokens has been repeated for this many tokens; 0: never."
        },
    )
    max_rollout_s: float | None = field(
        default=None,
        metadata={
            "help": "End a rollout that is still running after this many wall-clock seconds, above 0; what it has done "
            "until then counts. By default no limit."
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature, at least 0; 0: greedy."})
    top_p: float = field(
        default=1.0, metadata={"help": "Nucleus sampling: total probability of the tokens to sample from, in (0, 1]."}
    )
    top_k: int = field(default=0, metadata={"help": "Number of most likely tokens to sample from; 0: all."})
    min_p: float | None = field(
        default=None,
        metadata={"help": "Minimum probability of a token to sample, as a share of the largest one, in [0, 1]."},
    )
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Penalty on tokens that have occurred before, above 0; 1: none."}
    )
    max_concurrency: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of concurrent rollouts per process; by default 64 with transformers, 256 with vLLM "
            "or a server."
        },
    )
    deterministic: bool = field(
        default=False,
        metadata={
            "help": "With vLLM or a server: sample each turn with its own seed, so that the same seed gives the same "
            "rollouts as far as vLLM's batching allows. The transformers backend always does this."
        },
    )

    def __post_init__(self) -> None:
        PromptConfig.__post_init__(self)
        self.tool_limits()
        self.limits()
        self.sampling()
        self.answer_instructions()
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigError(f"max_concurrency must be at least 1, got {self.max_concurrency}")
        if "search" in self.tool_names() and self.passages is None:
            raise ConfigError("the tool 'search' needs --passages FILE.jsonl")

    def limits(self) -> RolloutLimits:
        """The limits of a rollout.

        Raises:
            ConfigError: a limit is out of range.
        """
        return RolloutLimits(
            max_turns=self.max_turns,
            max_turn_tokens=self.max_turn_tokens,
            max_completion_length=2**31 if self.max_completion_length is None else self.max_completion_length,
            max_context=self.max_context,
            max_observation_tokens=self.max_observation_tokens,
            max_repeated_tokens=self.max_repeated_tokens,
            max_rollout_s=self.max_rollout_s,
        )

    def sampling(self) -> Sampling:
        """The sampling distribution.

        Raises:
            ConfigError: a number is out of range.
        """
        return Sampling(
            self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty, self.deterministic
        )

    def answer_instructions(self) -> dict[str, str]:
        """Sentences on how to write the answer, by type of answer.

        Raises:
            ConfigError: the file can't be used.
        """
        if self.instructions is None:
            return {}
        path = Path(self.instructions)
        try:
            found = read_yaml(path)
        except ValueError as error:
            raise ConfigError(f"instructions: {path}: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(part, str) for pair in found.items() for part in pair):
            raise ConfigError(f"instructions: {path}: must map types of answer to sentences")
        return found

    def make_tools(self, sandbox: Sandbox | None = None) -> list[Tool]:
        """Build the tools, each once.

        Args:
            sandbox: runs Python, instead of the sandbox that the options ask for.

        Raises:
            ConfigError: a tool can't be imported, two tools have the same name, the package for search or MCP is not
                installed, or an MCP server can't be reached.
            DataError: the passages can't be read.
            SandboxError: see `make_sandbox`.
        """
        return self.given_tools(self.tool_names(), sandbox)

    def given_tools(self, given: Iterable[Any], sandbox: Sandbox | None = None) -> list[Tool]:
        """The tools that were passed from Python: names as in `tools`, functions, `MCPTools`, and `Tool` objects.

        Raises:
            ConfigError, DataError, SandboxError: see `make_tools`.
        """
        tools = [tool for item in given for tool in self._tools(item, sandbox)]
        distinct([tool.spec for tool in tools])
        return tools

    def _tools(self, given: Any, sandbox: Sandbox | None) -> Sequence[Tool]:
        if isinstance(given, MCPTools):
            return given.tools
        if not isinstance(given, str):
            return [given if hasattr(given, "spec") else FunctionTool(given)]
        if given == "python":
            return [PythonTool(sandbox or self.make_sandbox(), self.tool_state)]
        if given == "search":
            return [SearchTool.from_file(str(self.passages), results=self.search_results)]
        if given.startswith(PREFIX):
            return self.mcp_tools(given).tools
        return [_own_tool(imported(given, "tools"), self)]

    def recorded(self) -> dict[str, Any]:
        """The options that affect the results of rollouts, as plain values, for records and comparisons."""
        names = self.tool_names()
        left_out = _MACHINE if "python" in names else _MACHINE | _OF_PYTHON
        if not any(name.startswith(PREFIX) for name in names):
            left_out = left_out | _OF_MCP
        if not self.environment:
            left_out = left_out | _OF_ENVIRONMENTS
        found = {item.name: getattr(self, item.name) for item in fields(RolloutConfig) if item.name not in left_out}
        return {**found, "tools": self.tools or ",".join(names) or "none"}


@cache
def _environments(name: str, timeout_s: float) -> Environments:
    if name.startswith(OF_VERIFIERS):
        return VerifiersEnvironments(name.removeprefix(OF_VERIFIERS), timeout_s)
    return Environments(imported(name, "environment"), timeout_s)


def _own_tool(found: Callable[..., Any], config: RolloutConfig | None) -> Tool:
    """Make a tool of what an option names: a function that returns a result is a tool itself, all else creates one."""
    if config is not None and hasattr(found, "from_options"):
        return cast(Tool, found.from_options(config))
    if inspect.isroutine(found) and (inspect.signature(found).parameters or _says_a_result(found)):
        return FunctionTool(found)
    return cast(Tool, found())


def _says_a_result(function: Callable[..., Any]) -> bool:
    """Whether a function has a type hint for its return value, and the hint is not a tool."""
    try:
        returned = get_type_hints(function).get("return")
    except NameError:
        return False
    return returned not in (None, Any) and not hasattr(returned, "open")


def distinct(specs: Sequence[ToolSpec]) -> list[ToolSpec]:
    """Return the specs; their names must differ.

    Raises:
        ConfigError: two have the same name.
    """
    names = [spec.name for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"tools: two tools are named {twice[0]!r}; give them different names, or leave one of them out"
        )
    return list(specs)


def _mapping(value: Mapping[str, Any] | str | None, name: str) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"{name}: not JSON: {error}") from error
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name}: must be a mapping, such as {{enable_thinking: false}}, got {value!r}")
    return None if value is None else dict(value)
