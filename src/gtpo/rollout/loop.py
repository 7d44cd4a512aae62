"""The multi-turn loop: generate a turn, run its calls, append the observation, go on until the rollout ends.

All rollouts of a batch move in step: one generation of all that are alive, then all their tool calls at the same time.

After each turn the endings are checked in this order:

1. the turn did not end by itself: `CONTEXT`, `TOTAL_TOKENS` or `TURN_TOKENS`, whichever limit was the tightest (in
   this order if several are equal);
2. it holds no call, valid or not: `ANSWER`;
3. it was the last allowed turn: `TURNS`; its calls are not carried out;
4. the sandbox failed (not: the code): `INFRA`;
5. no room is left for the observation and one more token: `CONTEXT` or `TOTAL_TOKENS`; the observation is dropped.

An invalid call gets an observation that says what was wrong, and the rollout goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gtpo._async import run_async
from gtpo.errors import DataError
from gtpo.rollout.backends.base import Backend
from gtpo.rollout.encoding import ChatEncoder, Messages
from gtpo.rollout.settings import RolloutLimits, Sampling
from gtpo.rollout.tools import Interpreter, PythonTool
from gtpo.sandbox import ExecResult, Sandbox, Status
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, of) as rollouts end."""


@dataclass(frozen=True)
class RolloutBatch:
    """Finished rollouts in the order of their prompts, and where the time went.

    Attributes:
        trajectories: one a prompt.
        generation_s: wall seconds in the backend.
        tools_s: wall seconds in which tools ran and nothing was generated.
    """

    trajectories: tuple[Trajectory, ...]
    generation_s: float
    tools_s: float


@dataclass
class _Live:
    """A rollout under way."""

    prompt_ids: list[int]
    context: list[int]
    python: Interpreter
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None

    @property
    def completion_tokens(self) -> int:
        return len(self.context) - len(self.prompt_ids)


class RolloutEngine:
    """Rolls out conversations with one tool.

    Args:
        encoder: chat template and tool format.
        tool: runs the code of valid calls; a bare sandbox runs each in a process of its own.
        limits: where a rollout ends at the latest.
    """

    def __init__(self, encoder: ChatEncoder, tool: PythonTool | Sandbox, limits: RolloutLimits | None = None):
        self.encoder = encoder
        self.tool = tool if isinstance(tool, PythonTool) else PythonTool(tool)
        self.limits = limits or RolloutLimits()

    def run(
        self,
        prompts: Sequence[Messages],
        backend: Backend,
        *,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> RolloutBatch:
        """Roll out each prompt once; repeat a prompt to get a group.

        Args:
            prompts: conversations up to where the model goes on, as chat messages.
            backend: generates the turns.
            sampling: the sampling distribution.
            progress: told about each wave of finished rollouts.

        Returns:
            The trajectories in the order of the prompts.
        """
        sampling = sampling or Sampling()
        live = [
            _Live(ids, list(ids), self.tool.open(key=number))
            for number, ids in enumerate(map(self.encoder.prompt_ids, prompts))
        ]
        generation_s = tools_s = 0.0
        try:
            while alive := [rollout for rollout in live if rollout.stop_reason is None]:
                start = time.perf_counter()
                self._generate(alive, backend, sampling)
                generated = time.perf_counter()
                calling = [rollout for rollout in alive if rollout.stop_reason is None]
                if calling:
                    run_async(self._observe(calling, backend))
                generation_s += generated - start
                tools_s += time.perf_counter() - generated
                if progress:
                    progress("rollouts", sum(r.stop_reason is not None for r in live), len(live))
        finally:
            run_async(_end(live))
        trajectories = tuple(Trajectory(tuple(r.prompt_ids), tuple(r.turns), _reason(r)) for r in live)
        return RolloutBatch(trajectories, generation_s, tools_s)

    def _budgets(self, rollout: _Live, backend: Backend) -> list[tuple[int, StopReason]]:
        """Tokens that the next turn may hold under each limit, in the order in which ties are resolved."""
        max_context = min(self.limits.max_context or backend.max_context, backend.max_context)
        return [
            (max_context - len(rollout.context), StopReason.CONTEXT),
            (self.limits.max_total_tokens - rollout.completion_tokens, StopReason.TOTAL_TOKENS),
            (self.limits.max_turn_tokens, StopReason.TURN_TOKENS),
        ]

    def _generate(self, alive: Sequence[_Live], backend: Backend, sampling: Sampling) -> None:
        budgets = [min(self._budgets(rollout, backend), key=lambda budget: budget[0]) for rollout in alive]
        for rollout, (room, _) in zip(alive, budgets, strict=True):
            if room < 1:
                raise _prompt_too_long(rollout, self.limits, backend)
        generations = backend.generate(
            [rollout.context for rollout in alive],
            [room for room, _ in budgets],
            sampling=sampling,
            end_ids=self.encoder.end_ids,
        )
        for rollout, generation, (_, tightest) in zip(alive, generations, budgets, strict=True):
            text = self.encoder.text(generation.token_ids)
            turn = Turn(text, generation.token_ids, self.encoder.format.parse(text), None, generation.logprobs)
            rollout.turns.append(turn)
            rollout.context += generation.token_ids
            if not self.encoder.ended(generation.token_ids):
                rollout.stop_reason = tightest
            elif not turn.calls:
                rollout.stop_reason = StopReason.ANSWER
            elif len(rollout.turns) == self.limits.max_turns:
                rollout.stop_reason = StopReason.TURNS

    async def _observe(self, calling: Sequence[_Live], backend: Backend) -> None:
        """Run the calls of all rollouts at the same time and append their observations."""
        results = await asyncio.gather(*(self._call(rollout.turns[-1], rollout.python) for rollout in calling))
        for rollout, (texts, statuses, wall_s) in zip(calling, results, strict=True):
            if Status.INFRA.value in statuses:
                rollout.stop_reason = StopReason.INFRA
                continue
            ids = tuple(self.encoder.observation_ids(texts))
            room, tightest = min(self._budgets(rollout, backend)[:2], key=lambda budget: budget[0])
            if room <= len(ids):
                rollout.stop_reason = tightest
                continue
            observation = Observation("\n".join(texts), statuses, ids, wall_s)
            rollout.turns[-1] = replace(rollout.turns[-1], observation=observation)
            rollout.context += ids

    async def _call(self, turn: Turn, python: Interpreter) -> tuple[list[str], tuple[str, ...], float]:
        start = time.perf_counter()
        outcomes = await asyncio.gather(*(self._call_one(call, python) for call in turn.calls))
        texts, statuses = zip(*outcomes, strict=True)
        return list(texts), statuses, time.perf_counter() - start

    async def _call_one(self, call: ToolCall | InvalidCall, python: Interpreter) -> tuple[str, str]:
        if isinstance(call, InvalidCall):
            return call.observation, "invalid"
        result: ExecResult = await python.run(call.code)
        return result.render(max_chars=self.limits.max_observation_chars), result.status.value


async def _end(rollouts: Sequence[_Live]) -> None:
    await asyncio.gather(*(rollout.python.aclose() for rollout in rollouts))


def _prompt_too_long(rollout: _Live, limits: RolloutLimits, backend: Backend) -> Exception:

    size = min(limits.max_context or backend.max_context, backend.max_context)
    return DataError(
        f"a prompt of {len(rollout.prompt_ids)} tokens leaves no room in a context of {size}; drop the problem or "
        "raise max_context"
    )


def _reason(rollout: _Live) -> StopReason:
    assert rollout.stop_reason is not None
    return rollout.stop_reason


def messages_for(question: str, system_prompt: str | None) -> list[dict[str, Any]]:
    """The prompt of a problem as chat messages."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]
