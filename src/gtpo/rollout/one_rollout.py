"""One rollout: a coroutine that goes from turn to turn. `gtpo.rollout.loop` runs many and documents how one ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from gtpo._own_code import described
from gtpo._text import well_formed
from gtpo.errors import BackendError, ConfigError, DataError, EnvironmentFailedError
from gtpo.rollout.backends.base import GenerationSession, Request
from gtpo.rollout.call_syntax import without_thoughts
from gtpo.rollout.encoding import Encoder, Messages
from gtpo.rollout.environment import Environments, EnvironmentTool, EnvironmentUse
from gtpo.rollout.repetition import degenerate_at
from gtpo.rollout.settings import RolloutLimits
from gtpo.rollout.tools import Tool, ToolResult, ToolUse
from gtpo.sandbox import Status
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn

OnRolloutEnd = Callable[[int, Trajectory], None]
"""Called as on_rollout_end(number, trajectory) when a rollout ends."""


@dataclass
class Clock:
    """Measures wall-clock time by what rollouts wait for."""

    generation_s: float = 0.0
    tools_s: float = 0.0
    _generating: int = 0
    _calling: int = 0
    _since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Inside, a rollout waits for the model."""
        self._change(1, 0)
        try:
            yield
        finally:
            self._change(-1, 0)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Inside, a rollout waits for a tool or its environment."""
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


class OneRollout:
    """One running rollout; see `RolloutEngine` for the engine's arguments.

    Args:
        number: the number of the rollout.
        prompt, prompt_ids: the prompt, before an environment appends to it.
        row: the row with which the environment is reset.
        encoder, limits, tools, environments, server, clock, max_context, mask_failures: of the engine and its batch.
        hold_environment: whether the environment must not be used again after the rollout.
    """

    def __init__(
        self,
        number: int,
        prompt: Messages,
        prompt_ids: list[int],
        row: Mapping[str, Any],
        *,
        encoder: Encoder,
        limits: RolloutLimits,
        tools: Mapping[str, Tool],
        environments: Environments | None,
        server: GenerationSession,
        clock: Clock,
        max_context: int,
        mask_failures: bool,
        hold_environment: bool,
    ) -> None:
        self.mask_failures, self.note = mask_failures, ""
        self.number, self.prompt_ids, self.messages = number, prompt_ids, list(prompt)
        self.prompt = prompt
        self.encoder, self.limits = encoder, limits
        self.tools: dict[str, ToolUse] = {name: tool.open(key=number) for name, tool in tools.items()}
        self.server, self.clock, self.max_context = server, clock, max_context
        self.environments, self.row, self.hold_environment = environments, row, hold_environment
        self.environment: EnvironmentUse | None = None
        self.reward: float | None = None
        self.suffix = ""
        self.ends_at: float | None = None
        self.context = list(prompt_ids)
        self.turns: list[Turn] = []

    @property
    def held(self) -> Any:
        """The rollout's environment object; None if there was none."""
        return self.environment.instance if self.environment else None

    async def run(self, places: asyncio.Semaphore, on_rollout_end: OnRolloutEnd | None) -> Trajectory:
        """Run the rollout to its end, as soon as a place is free."""
        try:
            async with places:
                if self.limits.max_rollout_s is not None:
                    self.ends_at = asyncio.get_running_loop().time() + self.limits.max_rollout_s
                try:
                    stop_reason = await self._to_its_end()
                except EnvironmentFailedError as error:
                    self.note, stop_reason = str(error), StopReason.ENVIRONMENT_FAILURE
            trajectory = self._trajectory(stop_reason)
            if on_rollout_end:
                on_rollout_end(self.number, trajectory)
            return trajectory
        finally:
            self.server.finish(self.number)
            for tool in self.tools.values():
                await tool.aclose()
            if self.environments and self.environment:
                self.environments.close(self.environment, hold=self.hold_environment)

    async def _to_its_end(self) -> StopReason:
        if self.environments:
            with self.clock.calling():
                await self._begin(self.environments)
        while (stop_reason := await self._rewarded_turn()) is None:
            pass
        if self.environment and not stop_reason.is_failure:
            with self.clock.calling():
                self.reward = await self.environment.reward(self.prompt, self._trajectory(stop_reason))
        return stop_reason

    async def _begin(self, environments: Environments) -> None:
        """Reset the rollout's environment, and append its text to the prompt, as TRL does."""
        self.environment = environment = environments.open()
        for spec in environments.specs:
            self.tools[spec.name] = EnvironmentTool(environment, spec)
        text = await environment.reset(self.row)
        if text is None:
            return
        self.suffix = text = well_formed(text)
        last = self.messages[-1]
        if not isinstance(last["content"], str):
            raise ConfigError(
                f"environment {environments.name}: reset returned text, but the prompt's last message is not text; use "
                "text prompts, or return None"
            )
        self.messages[-1] = {**last, "content": last["content"] + text}
        self.prompt = list(self.messages)
        self.prompt_ids = self.encoder.prompt_ids(self.messages)
        self.context = list(self.prompt_ids)
        if not self.mask_failures:
            check_room(len(self.prompt_ids), self.max_context)

    async def _rewarded_turn(self) -> StopReason | None:
        """Run one turn and what follows it, then ask the environment for the turn's reward."""
        turns = len(self.turns)
        try:
            async with asyncio.timeout_at(self.ends_at) as limit:
                stop_reason = await self._turn(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            if len(self.turns) == turns:
                return self._late()
            stop_reason = StopReason.TIME
        if self.environment and not (stop_reason and stop_reason.is_failure):
            with self.clock.calling():
                self.turns[-1] = replace(self.turns[-1], reward=await self.environment.turn_reward())
        return stop_reason

    def _late(self) -> StopReason:
        """The stop reason of a rollout whose time was over before its current turn was complete."""
        if self.turns:
            return StopReason.TIME
        self.note = f"no complete turn within max_rollout_s ({self.limits.max_rollout_s:g} s)"
        return StopReason.MODEL_FAILURE

    def _trajectory(self, stop_reason: StopReason) -> Trajectory:
        turns = tuple(self.turns) or (Turn("", (self.encoder.end_id,)),)
        prompt_ids = self.prompt_ids[:1] if stop_reason is StopReason.PROMPT_TOO_LONG else self.prompt_ids
        return Trajectory(tuple(prompt_ids), turns, stop_reason, self.note, self.reward, self.suffix)

    def _budgets(self) -> list[tuple[int, StopReason]]:
        """Tokens that the next turn may hold under each limit, in the order in which ties are resolved."""
        completion = len(self.context) - len(self.prompt_ids)
        return [
            (self.max_context - len(self.context), StopReason.CONTEXT),
            (self.limits.max_completion_length - completion, StopReason.TOTAL_TOKENS),
            (self.limits.max_turn_tokens, StopReason.TURN_TOKENS),
        ]

    async def _turn(self, limit: asyncio.Timeout) -> StopReason | None:
        """Run one turn and its observation; returns the stop reason if the rollout ends with it, else None.

        Args:
            limit: cancels the turn when the rollout's time is over; lifted while an environment is called, whose calls
                have their own limit.
        """
        room, tightest = min(self._budgets(), key=lambda budget: budget[0])
        if room < 1:  # only a prompt can leave no room: an observation that does is dropped
            self.note = f"a prompt of {len(self.prompt_ids)} tokens leaves no room in a context of {self.max_context}"
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
        if not turn.calls and not (self.environments and self.environments.has_respond):
            return StopReason.ANSWER
        if turn.calls and len(self.turns) == self.limits.max_turns:
            return StopReason.TURNS
        if self.environment:
            limit.reschedule(None)
        with self.clock.calling():
            stop_reason = await (self._observe(turn) if turn.calls else self._reply(turn))
        late = self.ends_at is not None and asyncio.get_running_loop().time() >= self.ends_at
        return StopReason.TIME if stop_reason is None and late else stop_reason

    async def _observe(self, turn: Turn) -> StopReason | None:
        """Run the calls of a turn concurrently and append their results, in the order of the calls."""
        start = time.perf_counter()
        results = await asyncio.gather(*(self._call(call) for call in turn.calls))
        texts, statuses = tuple(result.text for result in results), tuple(result.status for result in results)
        if Status.TOOL_FAILURE.value in statuses:
            self.note = next(result.note for result in results if result.status == Status.TOOL_FAILURE.value)
            return StopReason.TOOL_FAILURE
        final = any(result.final for result in results)
        if final or self._done():
            self.turns[-1] = replace(turn, observation=Observation("\n".join(texts), statuses, (), 0.0, texts))
            return StopReason.FINAL if final else StopReason.DONE
        ids = tuple(self.encoder.observation_ids(texts, turn.token_ids, self._before(turn)))
        wall_s = time.perf_counter() - start
        return self._append(
            Observation("\n".join(texts), statuses, ids, wall_s, texts), self.encoder.observation_messages(texts)
        )

    async def _reply(self, turn: Turn) -> StopReason | None:
        """Give a turn without a call to the environment and append its reply."""
        assert self.environment is not None
        start = time.perf_counter()
        text = await self.environment.respond(without_thoughts(turn.text))
        if text is None:
            return StopReason.ANSWER
        text = self._shown(text)
        if self._done():
            self.turns[-1] = replace(turn, observation=Observation(text, (), (), 0.0, (text,), "user"))
            return StopReason.DONE
        if len(self.turns) == self.limits.max_turns:
            return StopReason.TURNS
        observation = self.encoder.reply(text, turn.token_ids, self._before(turn))
        observation = replace(observation, wall_s=time.perf_counter() - start)
        return self._append(observation, [{"role": "user", "content": text}])

    def _before(self, turn: Turn) -> list[int]:
        """The context before the turn that has just ended."""
        return self.context[: len(self.context) - len(turn.token_ids)]

    def _done(self) -> bool:
        return self.environment is not None and self.environment.done()

    def _append(self, observation: Observation, messages: Messages) -> StopReason | None:
        """Append what followed the last turn to the context, if there is room."""
        room, tightest = min(self._budgets()[:2], key=lambda budget: budget[0])
        if room <= len(observation.token_ids):
            return tightest
        self.turns[-1] = replace(self.turns[-1], observation=observation)
        self.context += observation.token_ids
        self.messages += messages
        return None

    async def _call(self, call: ToolCall | InvalidCall) -> ToolResult:
        if isinstance(call, InvalidCall):
            return ToolResult(call.observation, "invalid")
        try:
            result = await self.tools[call.name].run(call)
        except Exception as error:  # whatever a tool raises, it is the tool that failed
            return ToolResult("", Status.TOOL_FAILURE.value, f"{call.name}: {described(error)}")
        return replace(result, text=self._shown(result.text))

    def _shown(self, text: str) -> str:
        """A text as the model sees it."""
        return self.encoder.shorten(well_formed(text), self.limits.max_observation_tokens)


def check_room(prompt_tokens: int, max_context: int) -> None:
    """Check that a prompt leaves room in the context.

    Raises:
        DataError: it does not.
    """
    if prompt_tokens >= max_context:
        raise DataError(
            f"a prompt of {prompt_tokens} tokens leaves no room in a context of {max_context}; drop the problem or "
            "raise max_context"
        )
