"""Environments of the library `verifiers` (0.4): their tasks, tools and rewards, in gtpo's loop (`verifiers:NAME`).

`verifiers` makes rollouts with its own program (a harness) behind a proxy of the model, and records messages. Its
rollouts don't have the token ids that gtpo's loop keeps. So gtpo uses of an installed environment: the tasks as
problems; the tools of its `Toolset` servers, called in process; and the rewards and metrics of its `Task`, which get a
`Trace` made from gtpo's rollout. The tools of a harness (such as its shell) are not available.

The following are refused, with the reason: environments with several agents or their own harness; tasks that need a
container, a runtime, or the hooks `setup`, `finalize` and `stage_verifier`; rewards and metrics with a runtime; `stop`
and `intercept` hooks; endless task sets without `?limit=N`; tool servers at a URL; prompts that are not text. The name
is that of the installed package, followed by settings of its `TasksetConfig` and `limit`:
`verifiers:NAME?limit=100&split=train`.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from gtpo._own_code import described
from gtpo.errors import ConfigError
from gtpo.rollout.call_syntax import without_thoughts
from gtpo.rollout.environment import Environments
from gtpo.rollout.mcp.schema import spec_of
from gtpo.tasks.problems import Problem
from gtpo.types import StopReason, ToolCall, Trajectory

PREFIX = "verifiers:"
_STOPS = {
    StopReason.TURNS: "max_turns",
    StopReason.TURN_TOKENS: "max_output_tokens",
    StopReason.TOTAL_TOKENS: "max_total_tokens",
    StopReason.CONTEXT: "max_total_tokens",
}
"""The names that `verifiers` has for gtpo's limits."""


class VerifiersEnvironments(Environments):
    """The rollouts' environments, made from an installed environment of `verifiers`.

    Args:
        name: name of the package, with settings after `?`.
        timeout_s: time limit per call, in wall-clock seconds.

    Raises:
        ConfigError: `verifiers` or the package is not installed, or a part of it can't be used here; the message says
            which.
    """

    def __init__(self, name: str, timeout_s: float) -> None:
        source = _Source(name)
        super().__init__(lambda: _Rollout(source), timeout_s, specs=source.specs)
        self.name, self._source = source.name, source
        self.takes_trajectory = True

    def problems(self) -> list[Problem]:
        """The tasks as problems; their number in the task set is the field `task`."""
        return [_problem(self._source, number, task) for number, task in enumerate(self._source.tasks)]


class _Source:
    """What was loaded of a package: its tasks and the tools that they share."""

    def __init__(self, name: str) -> None:
        package, _, settings = name.partition("?")
        self.name, self.where = package, f"environment {PREFIX}{package}"
        try:
            import verifiers.v1 as vf
            from verifiers.v1.utils import loaders
        except ImportError as error:
            raise ConfigError(f'{self.where}: needs the package verifiers: pip install "gtpo[verifiers]"') from error
        self.vf = vf
        options = dict(parse_qsl(settings, keep_blank_values=True))
        limit = options.pop("limit", None)
        try:
            kind = loaders.environment_class(package)
            config = loaders.taskset_config_type(package)(id=package, **{key: _value(v) for key, v in options.items()})
            self.taskset = loaders.load_taskset(config)
            harness = loaders.default_harness_id(package)
        except Exception as error:
            raise ConfigError(f"{self.where}: can't be loaded: {described(error)}") from error
        if not issubclass(kind, vf.SingleAgentEnv) or kind.run is not vf.SingleAgentEnv.run:
            self.refuse(f"its class {kind.__name__} runs its own program; only one agent and its tools are supported")
        if harness == package:
            self.refuse("it has its own harness, whose program makes the rollouts")
        if limit is not None and not (limit.isdigit() and int(limit)):
            raise ConfigError(f"{self.where}: limit must be a number above 0, got {limit!r}")
        if limit is None and not self.taskset.bounded:
            raise ConfigError(f"{self.where}: its task set is endless; limit it with {PREFIX}{package}?limit=N")
        self.tasks = list(itertools.islice(self.taskset, int(limit) if limit else None))
        if not self.tasks:
            raise ConfigError(f"{self.where}: its task set is empty")
        for task in self.tasks:
            self._check(task)
        self.set_up = False
        self.shared = self.made(type(self.taskset).toolsets(self.taskset.config))
        self.specs = [spec for _, spec in self.tools_of([*self.shared, *self.own_toolsets(self.tasks[0])])]

    def refuse(self, why: str) -> None:
        """Raise an error that says why the environment can't be used."""
        raise ConfigError(f"{self.where}: can't be used here: {why}")

    def own_toolsets(self, task: Any) -> list[Any]:
        """The tool servers of one rollout."""
        return self.made(type(task).toolsets(task.config))

    def made(self, toolsets: Sequence[Any]) -> list[Any]:
        """The tool servers, if they can be called in process."""
        for toolset in toolsets:
            if getattr(toolset.config, "url", None):
                self.refuse(f"its tools {toolset.server_name} are at a URL: use --tools mcp:{toolset.config.url}")
        return list(toolsets)

    def tools_of(self, toolsets: Sequence[Any]) -> list[tuple[Any, Any]]:
        """The tools of servers, under the names that `verifiers` gives them, each with what the model is told."""
        from mcp.server.mcpserver.tools.base import Tool
        from verifiers.v1.utils.decorators import discover_decorated

        found = []
        for toolset in toolsets:
            for function in discover_decorated(toolset, "tool"):
                tool = Tool.from_function(function, name=getattr(function, "tool_name", None) or function.__name__)
                name = f"{toolset.server_name}_{tool.name}" if toolset.server_name else tool.name
                said = {"name": name, "description": tool.description, "inputSchema": tool.parameters}
                found.append((tool, spec_of(said, self.where)))
        return found

    def _check(self, task: Any) -> None:
        from verifiers.v1.utils.decorators import discover_decorated

        base, kind = self.vf.Task, type(task)
        if kind.NEEDS_CONTAINER or task.data.image:
            self.refuse("its tasks need a container")
        for hook in ("setup", "finalize", "stage_verifier"):
            if getattr(kind, hook) is not getattr(base, hook):
                self.refuse(f"{kind.__name__}.{hook} needs a runtime from verifiers")
        for function in (*task.hooks("reward"), *task.hooks("metric")):
            runtime = inspect.signature(function).parameters.get("runtime")
            if runtime is not None and runtime.default is inspect.Parameter.empty:
                self.refuse(f"{kind.__name__}.{function.__name__} needs a runtime from verifiers")
        for hook in (*task.hooks("stop"), *discover_decorated(task, "intercept")):
            self.refuse(f"the hook {kind.__name__}.{hook.__name__} changes or ends rollouts made by verifiers")
        prompt = task.data.prompt
        if prompt is None or not all(isinstance(text, str) and text for _, text in _messages(task)):
            self.refuse("its tasks have a prompt that is not text")


class _Rollout:
    """One rollout's environment."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._toolsets: list[Any] = []
        self._tools: dict[str, Any] = {}

    async def reset(self, task: int, **columns: Any) -> None:
        """Begin with the task that has this number."""
        for toolset in self._toolsets:
            await toolset._exit_stack.aclose()
        vf, source = self._source.vf, self._source
        self._task = source.tasks[task]
        data = self._task.data
        self._trace = vf.Trace(
            task=vf.TraceTask(type=type(self._task).__name__, data=data, key=self._task.key, hash=self._task.hash),
            state=_state_class(type(self._task))(),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
        )
        if not source.set_up:
            source.set_up = True
            for toolset in source.shared:
                await toolset.setup()
        self._toolsets = source.own_toolsets(self._task)
        for toolset in self._toolsets:
            if isinstance(self._trace.state, toolset._state_cls):
                toolset._inert_state = self._trace.state  # where `verifiers` keeps it between processes
            await toolset.setup()
            await toolset.setup_task(data)
        tools = source.tools_of([*source.shared, *self._toolsets])
        self._tools = {spec.name: tool for tool, spec in tools}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self._tools:
            raise AttributeError(name)
        tool = self._tools[name]

        async def call(**arguments: Any) -> Any:
            checked = tool.fn_metadata.validate_arguments(arguments)
            if tool.is_async:
                return _plain(await tool.fn(**checked))
            return _plain(await asyncio.to_thread(tool.fn, **checked))

        return call

    async def get_reward(self, prompt: Sequence[Mapping[str, Any]], trajectory: Trajectory) -> float:
        """The weighted sum of the task's rewards for the rollout."""
        trace = self._trace
        for message, sampled in _recorded(prompt, trajectory, self._source.vf):
            parent = len(trace.nodes) - 1 if trace.nodes else None
            trace.nodes.append(self._source.vf.MessageNode(parent=parent, message=message, sampled=sampled))
        trace.stop_condition = _STOPS.get(trajectory.stop_reason)
        trace.is_completed = trace.ok = True
        await self._task.score(trace)
        rewards = [reward for reward in trace.rewards.values() if reward is not None]
        return math.fsum(reward.value for reward in rewards)


def _messages(task: Any) -> list[tuple[str, Any]]:
    """A task's prompt as roles and contents."""
    data = task.data
    system = [("system", data.system_prompt)] if data.system_prompt else []
    if isinstance(data.prompt, str):
        return [*system, ("user", data.prompt)]
    return [*system, *((message.role, message.content) for message in data.prompt)]


def _problem(source: _Source, number: int, task: Any) -> Problem:
    messages = tuple({"role": role, "content": text} for role, text in _messages(task))
    answer = getattr(task.data, "answer", "")
    return Problem(
        id=str(task.data.id or task.data.name or f"{source.name}/{number}"),
        question=messages[-1]["content"],
        answer=answer if isinstance(answer, str) else json.dumps(answer, default=str),
        domain=source.name,
        extras={"task": number},
        messages=messages,
    )


def _recorded(prompt: Sequence[Mapping[str, Any]], trajectory: Trajectory, vf: Any) -> list[tuple[Any, bool]]:
    """A rollout as messages of `verifiers`, each with whether the model sampled it."""
    made = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    found = [(made[message["role"]](content=message["content"]), False) for message in prompt]
    for j, turn in enumerate(trajectory.turns):
        calls = [
            vf.ToolCall(id=f"call_{j}_{k}", name=call.name, arguments=json.dumps(dict(call.arguments), default=str))
            for k, call in enumerate(turn.calls)
            if isinstance(call, ToolCall)
        ]
        said = vf.AssistantMessage(content=without_thoughts(turn.text), tool_calls=calls or None)
        found.append((said, True))
        if turn.observation and turn.observation.role == "user":
            found.append((vf.UserMessage(content=turn.observation.text), False))
        elif turn.observation:
            found += [
                (vf.ToolMessage(tool_call_id=f"call_{j}_{k}", content=text), False)
                for k, text in enumerate(turn.observation.results)
            ]
    return found


def _state_class(kind: type) -> Any:
    from verifiers.v1.state import state_cls

    return state_cls(kind)


def _plain(result: Any) -> Any:
    return result.model_dump() if hasattr(result, "model_dump") else result


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
