"""The multi-turn loop: generate a turn, run its calls, append the observation, go on until the rollout ends.

Each rollout is a coroutine of its own and moves on as soon as its own turn or its own calls are done.

After each turn the endings are checked in this order:

1. the turn became a repetition of itself: `REPETITION` (`gtpo.rollout.repetition` says when);
2. the turn did not end by itself: `CONTEXT`, `TOTAL_TOKENS` or `TURN_TOKENS`, whichever limit was the tightest (in
   this order if several are equal);
3. it holds no call, valid or not: `ANSWER`;
4. it was the last allowed turn: `TURNS`; its calls are not carried out;
5. a tool failed (not: the code that it ran): `TOOL_FAILURE`;
6. a tool says that its result is the end: `FINAL`;
7. no room is left for the observation and one more token: `CONTEXT` or `TOTAL_TOKENS`; the observation is dropped.

An invalid call gets an observation that says what was wrong, and the rollout goes on. Under `mask_failures` a model
server that fails ends the rollouts that it concerns (`MODEL_FAILURE`), and so does a prompt that fills the context
(`PROMPT_TOO_LONG`); otherwise each ends the batch. `gtpo.failures` says what follows.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

from gtpo._async import run_async
from gtpo._files import write_text
from gtpo.errors import BackendError, ConfigError, DataError
from gtpo.rollout.backends.base import Backend, GenerationSession, Request
from gtpo.rollout.encoding import Encoder, Messages
from gtpo.rollout.prompts import Prompts
from gtpo.rollout.repetition import degenerate_at
from gtpo.rollout.settings import RolloutLimits, Sampling
from gtpo.rollout.tools import PythonTool, Tool, ToolResult, ToolUse
from gtpo.sandbox import Sandbox, Status
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, of) as rollouts end."""

OnRolloutEnd = Callable[[int, Trajectory], None]
"""Called as on_rollout_end(number, trajectory) when a rollout ends."""


@dataclass(frozen=True)
class RolloutBatch:
    """Finished rollouts in the order of their prompts, and where the time went.

    Attributes:
        trajectories: one a prompt.
        generation_s: wall seconds in which some rollout waited for the model.
        tools_s: wall seconds in which rollouts waited for tools only.
    """

    trajectories: tuple[Trajectory, ...]
    generation_s: float
    tools_s: float


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

    Raises:
        ConfigError: the tools are not those that the format tells the model of.
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
    ):
        self.encoder = encoder
        self.tools = {tool.spec.name: tool for tool in _as_tools(tools)}
        self.limits = limits or RolloutLimits()
        self.prompts = prompts or Prompts(encoder.format)
        self.sampling = sampling or Sampling()
        self.max_concurrency = max_concurrency
        told = {spec.name for spec in encoder.format.specs}
        if told != set(self.tools):
            raise ConfigError(f"the prompt describes the tools {sorted(told)}, but the engine has {sorted(self.tools)}")

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
                tool always does.

        Returns:
            The trajectories in the order of the prompts.

        Raises:
            DataError: a prompt that fills the context, unless `mask_failures`.
            BackendError: the model is unavailable, unless `mask_failures`; the message says where the finished
                rollouts are.
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
    ) -> RolloutBatch:
        """`run` for callers with an event loop."""
        rollout_ids = range(len(prompts)) if rollout_ids is None else rollout_ids
        max_context = self.max_context(backend)
        prompts_ids = [self.encoder.prompt_ids(prompt) for prompt in prompts]
        if not mask_failures and (longest := max(map(len, prompts_ids), default=0)) >= max_context:
            raise DataError(
                f"a prompt of {longest} tokens leaves no room in a context of {max_context}; drop the problem or raise "
                "max_context"
            )
        clock = _Clock()
        serving = backend.serve(
            len(prompts), sampling=sampling or self.sampling, end_ids=self.encoder.end_ids, seed=seed
        )
        async with serving as server:
            rollouts = [
                _Rollout(number, prompt, ids, self, server, clock, max_context, mask_failures)
                for number, prompt, ids in zip(rollout_ids, prompts, prompts_ids, strict=True)
            ]
            places = asyncio.Semaphore(max_concurrency or self.max_concurrency or max(len(prompts), 1))
            tasks = [asyncio.ensure_future(rollout.run(places, on_rollout_end)) for rollout in rollouts]
            try:
                for done, task in enumerate(asyncio.as_completed(tasks), 1):
                    await task
                    if progress:
                        progress("rollouts", done, len(tasks))
            except BackendError as error:
                raise _with_partial(error, tasks, partial_path) from error
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        trajectories = tuple(task.result() for task in tasks)
        return RolloutBatch(trajectories, clock.generation_s, clock.tools_s)


@dataclass
class _Clock:
    """Sorts wall time by what rollouts wait for."""

    generation_s: float = 0.0
    tools_s: float = 0.0
    _generating: int = 0
    _calling: int = 0
    _since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def generating(self) -> Iterator[None]:
        self._change(1, 0)
        try:
            yield
        finally:
            self._change(-1, 0)

    @contextmanager
    def calling(self) -> Iterator[None]:
        self._change(0, 1)
        try:
            yield
        finally:
            self._change(0, -1)

    def _change(self, generating: int, calling: int) -> None:
        now = time.perf_counter()
        if self._generating:
            self.generation_s += now - self._since
        elif self._calling:
            self.tools_s += now - self._since
        self._since = now
        self._generating += generating
        self._calling += calling


class _Rollout:
    """One rollout under way."""

    def __init__(
        self,
        number: int,
        prompt: Messages,
        prompt_ids: list[int],
        engine: RolloutEngine,
        server: GenerationSession,
        clock: _Clock,
        max_context: int,
        mask_failures: bool,
    ) -> None:
        self.mask_failures, self.note = mask_failures, ""
        self.number, self.prompt_ids, self.messages = number, prompt_ids, list(prompt)
        self.encoder, self.limits = engine.encoder, engine.limits
        self.tools: dict[str, ToolUse] = {name: tool.open(key=number) for name, tool in engine.tools.items()}
        self.server, self.clock, self.max_context = server, clock, max_context
        self.context = list(prompt_ids)
        self.turns: list[Turn] = []

    async def run(self, places: asyncio.Semaphore, on_rollout_end: OnRolloutEnd | None) -> Trajectory:
        """To its end, as soon as there is a place for it."""
        try:
            async with places:
                while (stop_reason := await self._turn()) is None:
                    pass
            trajectory = self._trajectory(stop_reason)
            if on_rollout_end:
                on_rollout_end(self.number, trajectory)
            return trajectory
        finally:
            self.server.finish(self.number)
            for tool in self.tools.values():
                await tool.aclose()

    def _trajectory(self, stop_reason: StopReason) -> Trajectory:
        turns = tuple(self.turns) or (Turn("", (self.encoder.end_id,)),)
        prompt_ids = self.prompt_ids[:1] if stop_reason is StopReason.PROMPT_TOO_LONG else self.prompt_ids
        return Trajectory(tuple(prompt_ids), turns, stop_reason, self.note)

    def _budgets(self) -> list[tuple[int, StopReason]]:
        """Tokens that the next turn may hold under each limit, in the order in which ties are resolved."""
        completion = len(self.context) - len(self.prompt_ids)
        return [
            (self.max_context - len(self.context), StopReason.CONTEXT),
            (self.limits.max_completion_length - completion, StopReason.TOTAL_TOKENS),
            (self.limits.max_turn_tokens, StopReason.TURN_TOKENS),
        ]

    async def _turn(self) -> StopReason | None:
        """One turn and its observation; why the rollout ends with it, or None."""
        room, tightest = min(self._budgets(), key=lambda budget: budget[0])
        if room < 1:  # only a prompt can leave no room: an observation that does is dropped
            self.note = f"a prompt of {len(self.prompt_ids)} tokens in a context of {self.max_context}"
            return StopReason.PROMPT_TOO_LONG
        request = Request(
            self.number, len(self.turns), self.context, room, self.messages, self.limits.max_repeated_tokens
        )
        try:
            with self.clock.generating():
                generation = await self.server.generate(request)
        except BackendError as error:
            if not self.mask_failures:
                raise
            self.note = str(error)
            return StopReason.MODEL_FAILURE
        ids, logprobs = generation.token_ids, generation.logprobs
        repetitive = degenerate_at(ids, self.limits.max_repeated_tokens)
        if repetitive:
            ids, logprobs = ids[:repetitive], logprobs[:repetitive] if logprobs else None
        text = self.encoder.text(ids)
        turn = Turn(text, ids, self.encoder.parse_turn(ids, self.context), None, logprobs, generation.token_exact)
        self.turns.append(turn)
        self.messages.append({"role": "assistant", "content": text})
        self.context += ids
        if repetitive:
            return StopReason.REPETITION
        if not self.encoder.ended(ids):
            return tightest
        if not turn.calls:
            return StopReason.ANSWER
        if len(self.turns) == self.limits.max_turns:
            return StopReason.TURNS
        with self.clock.calling():
            return await self._observe(turn)

    async def _observe(self, turn: Turn) -> StopReason | None:
        """Run the calls of a turn at the same time and append what came back, in their order."""
        start = time.perf_counter()
        results = await asyncio.gather(*(self._call(call) for call in turn.calls))
        texts, statuses = tuple(result.text for result in results), tuple(result.status for result in results)
        if Status.TOOL_FAILURE.value in statuses:
            self.note = next(result.note for result in results if result.status == Status.TOOL_FAILURE.value)
            return StopReason.TOOL_FAILURE
        if any(result.final for result in results):
            self.turns[-1] = replace(turn, observation=Observation("\n".join(texts), statuses, (), 0.0, texts))
            return StopReason.FINAL
        before = self.context[: len(self.context) - len(turn.token_ids)]
        ids = tuple(self.encoder.observation_ids(texts, turn.token_ids, before))
        room, tightest = min(self._budgets()[:2], key=lambda budget: budget[0])
        if room <= len(ids):
            return tightest
        observation = Observation("\n".join(texts), statuses, ids, time.perf_counter() - start, texts)
        self.turns[-1] = replace(turn, observation=observation)
        self.context += ids
        self.messages += self.encoder.observation_messages(texts)
        return None

    async def _call(self, call: ToolCall | InvalidCall) -> ToolResult:
        if isinstance(call, InvalidCall):
            return ToolResult(call.observation, "invalid")
        try:
            result = await self.tools[call.name].run(call)
        except Exception as error:  # whatever a tool raises, it is the tool that failed
            return ToolResult("", Status.TOOL_FAILURE.value, f"{call.name}: {type(error).__name__}: {error}")
        return replace(result, text=self.encoder.shorten(result.text, self.limits.max_observation_tokens))


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
