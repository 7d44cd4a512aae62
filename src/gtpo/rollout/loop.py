"""The multi-turn loop: generate a turn, run its calls, append the observation, continue until the rollout ends.

Each rollout is its own coroutine and continues as soon as its own turn or its own calls are done.

After each turn the endings are checked in this order:

1. the turn repeats itself: `REPETITION` (`gtpo.rollout.repetition` defines when);
2. the turn has no end token: `CONTEXT`, `TOTAL_TOKENS` or `TURN_TOKENS`, whichever limit was the tightest (in this
   order if several are equal);
3. the turn has no call, valid or invalid: `ANSWER`, unless the rollout has an environment that replies;
4. it was the last allowed turn: `TURNS`; its calls are not run;
5. a tool failed (not the code that it ran): `TOOL_FAILURE`;
6. a tool marks its result as final: `FINAL`;
7. the environment is done: `DONE`;
8. no room is left for the observation and one more token: `CONTEXT` or `TOTAL_TOKENS`; the observation is dropped.

An environment that replies (`gtpo.rollout.environment`) gets each turn without a call, including the last allowed
one. Then the checks are: it does not reply: `ANSWER`; it is done: `DONE`; it was the last allowed turn: `TURNS`; no
room is left for the reply: as above. If an environment fails at any point: `ENVIRONMENT_FAILURE`.

A rollout that is still running `max_rollout_s` after its start ends as it is (`TIME`): a turn that is being generated
is dropped, and the last complete turn has no observation. Without a complete turn there is nothing to train on, and
the rollout counts as a failure of the model server. Calls of an environment are not cut short: the limit is checked
when they return.

An invalid call gets an observation that says what was wrong, and the rollout continues. With `mask_failures`, a
failing model server ends the affected rollouts (`MODEL_FAILURE`), and a prompt that fills the context ends its rollout
(`PROMPT_TOO_LONG`); without it, either ends the batch. `gtpo.failures` describes the consequences.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from gtpo._async import run_async
from gtpo._files import write_text
from gtpo.errors import BackendError, ConfigError
from gtpo.rollout.backends.base import Backend, GenerationSession
from gtpo.rollout.encoding import Encoder, Messages
from gtpo.rollout.environment import Environments
from gtpo.rollout.one_rollout import Clock, OneRollout, OnRolloutEnd, check_room
from gtpo.rollout.prompts import Prompts
from gtpo.rollout.settings import RolloutLimits, Sampling
from gtpo.rollout.tools import PythonTool, Tool
from gtpo.sandbox import Sandbox
from gtpo.types import Trajectory

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, of) as rollouts end."""


@dataclass(frozen=True)
class RolloutBatch:
    """Finished rollouts in the order of their prompts, and how long they waited for what.

    Attributes:
        trajectories: one per prompt.
        generation_s: wall-clock seconds during which at least one rollout waited for the model.
        tools_s: wall-clock seconds during which rollouts waited only for tools and environments.
        environments: one per prompt, if the engine has environments and `hold_environments` was set; None for a rollout
            whose environment could not be created.
    """

    trajectories: tuple[Trajectory, ...]
    generation_s: float
    tools_s: float
    environments: tuple[Any, ...] = ()


class RolloutSession:
    """Rollouts on one backend, started one by one; created by `RolloutEngine.session`.

    Attributes:
        clock: how long rollouts have waited for what so far.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        server: GenerationSession,
        places: asyncio.Semaphore,
        max_context: int,
        mask_failures: bool,
        hold_environments: bool,
    ) -> None:
        self._engine, self._server, self._places, self._max_context = engine, server, places, max_context
        self._mask_failures, self._holds = mask_failures, hold_environments
        self._rollouts: dict[asyncio.Task[Trajectory], OneRollout] = {}
        self.clock = Clock()

    def start(
        self,
        number: int,
        prompt: Messages,
        row: Mapping[str, Any] | None = None,
        on_rollout_end: OnRolloutEnd | None = None,
    ) -> asyncio.Task[Trajectory]:
        """Start a rollout as soon as `max_concurrency` allows it; arguments as in `RolloutEngine.run`.

        Args:
            number: the number of the rollout, unique in the session.
            prompt: a conversation up to the place where the model continues.
            row: the row of the data set with which the rollout's environment is reset.
            on_rollout_end: called with the rollout when it ends.

        Raises:
            DataError: the prompt fills the context, and failures are not masked.
            ConfigError: the environment does not accept the row's columns.
        """
        engine, row = self._engine, row or {}
        ids = engine.encoder.prompt_ids(prompt)
        if not self._mask_failures:
            check_room(len(ids), self._max_context)
        if engine.environments:
            engine.environments.check_columns(tuple(row))
        rollout = OneRollout(
            number,
            prompt,
            ids,
            row,
            encoder=engine.encoder,
            limits=engine.limits,
            tools=engine.tools,
            environments=engine.environments,
            server=self._server,
            clock=self.clock,
            max_context=self._max_context,
            mask_failures=self._mask_failures,
            hold_environment=self._holds,
        )
        task = asyncio.ensure_future(rollout.run(self._places, on_rollout_end))
        self._rollouts[task] = rollout
        return task

    def environment_of(self, task: asyncio.Task[Trajectory]) -> Any:
        """The environment object of a rollout, if environments are held; None if there was none."""
        return self._rollouts[task].held if self._holds else None

    async def close(self) -> None:
        """Cancel the rollouts that are still running."""
        for task in self._rollouts:
            task.cancel()
        await asyncio.gather(*self._rollouts, return_exceptions=True)


class RolloutEngine:
    """Runs multi-turn rollouts with tools.

    Args:
        encoder: converts between chat messages and token ids.
        tools: run valid calls, one for each tool that the format describes; a bare sandbox becomes a `PythonTool` that
            runs each call in its own process.
        limits: the limits of a rollout.
        prompts: makes the prompts, if the engine rolls out problems.
        sampling: the sampling distribution.
        max_concurrency: maximum number of concurrent rollouts; None: all. With thousands of them, a server that takes
            requests in turn would start all before it finishes one, and each would lose its place in the prefix cache.
        environments: provide one environment per rollout, in addition to the tools.

    Raises:
        ConfigError: the tools and the methods of the environments are not those that the format describes to the model.
        TemplateError: the environments reply, but the chat template can't continue after a user's message.
    """

    def __init__(
        self,
        encoder: Encoder,
        tools: Sequence[Tool] | Tool | Sandbox,
        limits: RolloutLimits | None = None,
        *,
        prompts: Prompts | None = None,
        sampling: Sampling | None = None,
        max_concurrency: int | None = None,
        environments: Environments | None = None,
    ):
        self.encoder = encoder
        self.environments = environments
        self.tools = {tool.spec.name: tool for tool in _as_tools(tools)}
        self.limits = limits or RolloutLimits()
        self.prompts = prompts or Prompts(encoder.format)
        self.sampling = sampling or Sampling()
        self.max_concurrency = max_concurrency
        told = {spec.name for spec in encoder.format.specs}
        there = {*self.tools, *(spec.name for spec in (environments.specs if environments else ()))}
        if told != there:
            raise ConfigError(
                f"the prompt describes the tools {sorted(told)}, but the engine has {sorted(there)}; build the encoder "
                "with the engine's tools"
            )
        if environments and environments.has_respond:
            encoder.check_replies()

    def run(
        self,
        prompts: Sequence[Messages],
        backend: Backend,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        rollout_ids: Sequence[int] | None = None,
        max_concurrency: int | None = None,
        progress: Progress | None = None,
        on_rollout_end: OnRolloutEnd | None = None,
        partial_path: Path | None = None,
        mask_failures: bool = False,
        columns: Sequence[Mapping[str, Any]] | None = None,
        hold_environments: bool = False,
    ) -> RolloutBatch:
        """Roll out each prompt once; repeat a prompt to get a group.

        Args:
            prompts: conversations up to the place where the model continues, as chat messages.
            backend: generates the turns.
            sampling: the sampling distribution; by default the engine's.
            seed: seed of the sampling. Rollout i uses the i-th random number stream of this seed.
            rollout_ids: numbers of the rollouts, all different; by default 0, 1, 2 and so on.
            max_concurrency: maximum number of concurrent rollouts; by default the engine's.
            progress: called with the number of rollouts that have ended.
            on_rollout_end: called in the event loop with each rollout when it ends.
            partial_path: file to which finished rollouts are written, as JSON Lines, if the others can't be finished.
            mask_failures: a failing model server ends only the affected rollouts, not the batch, as a failing tool or
                environment always does.
            columns: for each prompt, the row of the data set with which its environment is reset.
            hold_environments: keep the environments from other rollouts until `Environments.release`;
                `RolloutBatch.environments` holds them.

        Returns:
            The trajectories in the order of the prompts.

        Raises:
            DataError: a prompt fills the context, and `mask_failures` is false.
            BackendError: the model is unavailable, and `mask_failures` is false; the message says where the finished
                rollouts are.
            ConfigError, RewardError: an environment does not accept the columns, or returns an invalid value; the
                message names it.
        """
        return run_async(
            self.run_async(
                prompts,
                backend,
                sampling=sampling,
                seed=seed,
                rollout_ids=rollout_ids,
                max_concurrency=max_concurrency,
                progress=progress,
                on_rollout_end=on_rollout_end,
                partial_path=partial_path,
                mask_failures=mask_failures,
                columns=columns,
                hold_environments=hold_environments,
            )
        )

    def max_context(self, backend: Backend) -> int:
        """Maximum context length on this backend, in tokens."""
        return min(self.limits.max_context or backend.max_context, backend.max_context)

    async def run_async(
        self,
        prompts: Sequence[Messages],
        backend: Backend,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        rollout_ids: Sequence[int] | None = None,
        max_concurrency: int | None = None,
        progress: Progress | None = None,
        on_rollout_end: OnRolloutEnd | None = None,
        partial_path: Path | None = None,
        mask_failures: bool = False,
        columns: Sequence[Mapping[str, Any]] | None = None,
        hold_environments: bool = False,
    ) -> RolloutBatch:
        """`run` for callers with an event loop."""
        rollout_ids = range(len(prompts)) if rollout_ids is None else rollout_ids
        rows: Sequence[Mapping[str, Any]] = [{}] * len(prompts) if columns is None else columns
        async with self.session(
            backend,
            len(prompts),
            sampling=sampling,
            seed=seed,
            max_concurrency=max_concurrency,
            mask_failures=mask_failures,
            hold_environments=hold_environments,
        ) as session:
            tasks = [
                session.start(number, prompt, row, on_rollout_end)
                for number, prompt, row in zip(rollout_ids, prompts, rows, strict=True)
            ]
            try:
                for done, task in enumerate(asyncio.as_completed(tasks), 1):
                    await task
                    if progress:
                        progress("rollouts", done, len(tasks))
            except BackendError as error:
                raise _with_partial(error, tasks, partial_path) from error
        trajectories = tuple(task.result() for task in tasks)
        held = tuple(map(session.environment_of, tasks)) if self.environments and hold_environments else ()
        return RolloutBatch(trajectories, session.clock.generation_s, session.clock.tools_s, held)

    @asynccontextmanager
    async def session(
        self,
        backend: Backend,
        rollouts: int,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        max_concurrency: int | None = None,
        mask_failures: bool = False,
        hold_environments: bool = False,
    ) -> AsyncIterator[RolloutSession]:
        """For callers that start rollouts one by one; those still running when the context ends are cancelled.

        Args:
            backend: generates the turns.
            rollouts: maximum number of rollouts at once.
            sampling, seed, max_concurrency, mask_failures, hold_environments: see `run`.
        """
        serving = backend.serve(rollouts, sampling=sampling or self.sampling, end_ids=self.encoder.end_ids, seed=seed)
        places = asyncio.Semaphore(max_concurrency or self.max_concurrency or max(rollouts, 1))
        async with serving as server:
            session = RolloutSession(self, server, places, self.max_context(backend), mask_failures, hold_environments)
            try:
                yield session
            finally:
                await session.close()


def _as_tools(tools: Sequence[Tool] | Tool | Sandbox) -> Sequence[Tool]:
    if isinstance(tools, Sequence):
        return tools
    return [cast(Tool, tools) if hasattr(tools, "spec") else PythonTool(cast(Sandbox, tools))]


def _with_partial(error: BackendError, tasks: Sequence[asyncio.Task[Trajectory]], path: Path | None) -> BackendError:
    """Write the finished rollouts to `path`; returns the error with a note about them."""
    finished = {i: task.result() for i, task in enumerate(tasks) if task.done() and not task.exception()}
    said = f"{error}; {len(finished)} of {len(tasks)} rollouts had finished"
    if path is None or not finished:
        return BackendError(said)
    write_partial(finished, path)
    return BackendError(f"{said} and are in {path}")


def write_partial(finished: Mapping[int, Trajectory], path: Path) -> None:
    """Write the finished rollouts of an unfinished batch as JSON Lines, with their place in the batch."""
    lines = (json.dumps({"rollout": i, **asdict(trajectory)}) + "\n" for i, trajectory in finished.items())
    write_text(path, "".join(lines))
