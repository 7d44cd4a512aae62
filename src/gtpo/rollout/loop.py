"""The multi-turn loop: generate a turn, run its calls, append the observation, go on until the rollout ends.

Each rollout is a coroutine of its own and moves on as soon as its own turn or its own calls are done.

After each turn the endings are checked in this order:

1. the turn became a repetition of itself: `REPETITION` (`gtpo.rollout.repetition` says when);
2. the turn did not end by itself: `CONTEXT`, `TOTAL_TOKENS` or `TURN_TOKENS`, whichever limit was the tightest (in
   this order if several are equal);
3. it holds no call, valid or not: `ANSWER`, unless the rollout has an environment that replies;
4. it was the last allowed turn: `TURNS`; its calls are not carried out;
5. a tool failed (not: the code that it ran): `TOOL_FAILURE`;
6. a tool says that its result is the end: `FINAL`;
7. the environment is done: `DONE`;
8. no room is left for the observation and one more token: `CONTEXT` or `TOTAL_TOKENS`; the observation is dropped.

With an environment that replies (`gtpo.rollout.environment`), a turn without a call is given to it, also the last
allowed one, and then: it has no reply: `ANSWER`; it is done: `DONE`; it was the last allowed turn: `TURNS`; no room is
left for the reply: as above. Wherever an environment fails: `ENVIRONMENT_FAILURE`.

A rollout that is not over `max_rollout_s` after it began ends as it is (`TIME`): a turn that is being generated is
dropped, and the last whole turn has no observation. Without a whole turn there is nothing to train on, and it counts
as a failing model server. Calls of an environment are not cut short: the limit is looked at when they return.

An invalid call gets an observation that says what was wrong, and the rollout goes on. Under `mask_failures` a model
server that fails ends the rollouts that it concerns (`MODEL_FAILURE`), and so does a prompt that fills the context
(`PROMPT_TOO_LONG`); otherwise each ends the batch. `gtpo.failures` says what follows.
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
    """Finished rollouts in the order of their prompts, and where the time went.

    Attributes:
        trajectories: one a prompt.
        generation_s: wall seconds in which some rollout waited for the model.
        tools_s: wall seconds in which rollouts waited for tools and environments only.
        environments: one a prompt, if the engine has any and was told to hold them; None where none could be made.
    """

    trajectories: tuple[Trajectory, ...]
    generation_s: float
    tools_s: float
    environments: tuple[Any, ...] = ()


class RolloutSession:
    """Rollouts on one backend, begun one by one; made by `RolloutEngine.session`.

    Attributes:
        clock: where the time went so far.
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
        """Begin a rollout as soon as there is a place for it; arguments as in `RolloutEngine.run`.

        Args:
            number: of the rollout; no other of the session has it.
            prompt: a conversation up to where the model goes on.
            row: of the data set, which its environment is reset with.
            on_rollout_end: given the rollout when it ends.

        Raises:
            DataError: a prompt that fills the context, unless failures are masked.
            ConfigError: the environment does not take the row's columns.
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
        """The environment of a rollout itself, if environments are held; None if there was none."""
        return self._rollouts[task].held if self._holds else None

    async def close(self) -> None:
        """End what is under way."""
        for task in self._rollouts:
            task.cancel()
        await asyncio.gather(*self._rollouts, return_exceptions=True)


class RolloutEngine:
    """Rolls out conversations with tools.

    Args:
        encoder: between chat messages and token ids.
        tools: carry out valid calls, one for each tool that the format knows; a bare sandbox is a `PythonTool` that
            runs each call in a process of its own.
        limits: where a rollout ends at the latest.
        prompts: makes the prompts of problems, where the engine rolls out problems.
        sampling: the sampling distribution.
        max_concurrency: rollouts under way at once; None: all. With thousands of them, a server that takes requests
            in turn would begin all before it ends one, and each would have lost its place in the prefix cache.
        environments: one for each rollout, besides the tools.

    Raises:
        ConfigError: the tools, and the methods of the environments, are not those that the format tells the model of.
        TemplateError: the environments reply, and the chat template can't go on after a user's message.
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
            raise ConfigError(f"the prompt describes the tools {sorted(told)}, but the engine has {sorted(there)}")
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
            prompts: conversations up to where the model goes on, as chat messages.
            backend: generates the turns.
            sampling: the sampling distribution; by default the engine's.
            seed: of the sampling. Rollout i gets the i-th of its streams of random numbers.
            rollout_ids: numbers of the rollouts, all different; by default 0, 1, 2 and so on.
            max_concurrency: rollouts under way at once; by default the engine's.
            progress: told how many rollouts have ended.
            on_rollout_end: given each rollout when it ends, in the event loop.
            partial_path: where finished rollouts are written, as JSON Lines, if the others can't be finished.
            mask_failures: a failing model server ends the rollouts that it concerns and not the batch, as a failing
                tool or environment always does.
            columns: for each prompt the row of the data set that its environment is reset with.
            hold_environments: no other rollout gets the environments before `Environments.release`;
                `RolloutBatch.environments` has them.

        Returns:
            The trajectories in the order of the prompts.

        Raises:
            DataError: a prompt that fills the context, unless `mask_failures`.
            BackendError: the model is unavailable, unless `mask_failures`; the message says where the finished
                rollouts are.
            ConfigError, RewardError: an environment does not take the columns, or gives what it must not; names it.
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
        """Longest context on this backend, in tokens."""
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
        """For callers that begin rollouts one by one; those under way when the context ends are cancelled.

        Args:
            backend: generates the turns.
            rollouts: how many there will be at once, at most.
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
    """Keeps the rollouts that have finished; the error with a word on them."""
    finished = {i: task.result() for i, task in enumerate(tasks) if task.done() and not task.exception()}
    said = f"{error}; {len(finished)} of {len(tasks)} rollouts had finished"
    if path is None or not finished:
        return BackendError(said)
    write_partial(finished, path)
    return BackendError(f"{said} and are in {path}")


def write_partial(finished: Mapping[int, Trajectory], path: Path) -> None:
    """Rollouts of a batch that was not finished, as JSON Lines, by their place in the batch."""
    lines = (json.dumps({"rollout": i, **asdict(trajectory)}) + "\n" for i, trajectory in finished.items())
    write_text(path, "".join(lines))
