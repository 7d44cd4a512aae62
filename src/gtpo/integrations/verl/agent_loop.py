"""The agent loop `gtpo`: gtpo's multi-turn rollout, sandbox and verifier on verl's model servers.

An instance serves one rollout, as verl requires; tools, sandbox and verifier are created once per process and shared.
The score that verl gets is the outcome reward: the accuracy, unless `graded` or `reward_funcs` say otherwise. Besides,
`extra_fields["gtpo"]` holds what the trainer needs for turn rewards (`gtpo.integrations.verl.facts`). Reward functions
and turn rewards are called for each rollout separately, with lists of one.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, register

from gtpo.errors import BackendError, ConfigError
from gtpo.integrations.verl.facts import told
from gtpo.integrations.verl.rows import problem_of, reward_columns
from gtpo.integrations.verl.settings import AlgorithmOptions, LoopConfig, loop_config
from gtpo.rollout import RolloutEngine, Sampling, build_engine
from gtpo.rollout.backends.answers import checked_generation
from gtpo.rollout.backends.base import Generation, GenerationSession, Request
from gtpo.scoring import Scored, Scorer, make_scorer
from gtpo.tasks.problems import Problem
from gtpo.types import Trajectory


@register("gtpo")
class GTPOAgentLoop(AgentLoopBase):
    """Makes one rollout of a problem, with tools.

    Args:
        args, kwargs: the arguments that verl gives each agent loop.
        options: see `gtpo.integrations.verl.settings.loop_config`.

    Raises:
        ConfigError: an option is unknown or can't be used, or verl is to replay routed experts, which are not kept.
        TemplateError: the chat template can't express a conversation with the tools.
        SandboxError: the sandbox can't start.
    """

    def __init__(self, *args: Any, options: Any = None, **kwargs: Any) -> None:
        kwargs.pop("tools", None)  # those of verl's own loop
        super().__init__(*args, **kwargs)
        template_kwargs = dict(self.apply_chat_template_kwargs)
        self._shared = _shared(
            self.tokenizer, loop_config(options, self.rollout_config, template_kwargs), self.rollout_config
        )
        self._penalize_syntax_errors = AlgorithmOptions.of(self.config.algorithm).credit.penalize_syntax_errors

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """One rollout.

        Args:
            sampling_params: verl's, passed on to its servers.
            kwargs: the row of the dataset; `raw_prompt`, `reward_model.ground_truth` and, if there, `extra_info` are
                read (see `gtpo.integrations.verl.rows.problem_of`).

        Raises:
            BackendError: the server returned nothing.
            DataError: the prompt is longer than verl's prompt and response together.
        """
        shared = self._shared
        if any(not isinstance(message["content"], str) for message in kwargs["raw_prompt"]):
            raise ConfigError("the agent loop gtpo takes text only: a message's content must be text")
        problem = problem_of(kwargs)
        backend = VerlBackend(self.server_manager, sampling_params, shared.engine.limits.max_context or 0)
        batch = await shared.engine.run_async(
            [shared.engine.prompts.messages(problem)],
            backend,
            sampling=Sampling(max(float(sampling_params.get("temperature", 1.0)), 0.0)),
            rollout_ids=[next(shared.numbers)],
            columns=[problem.columns],
        )
        (trajectory,) = batch.trajectories
        scored = await asyncio.to_thread(shared.score, trajectory, problem, kwargs)
        return AgentLoopOutput(
            prompt_ids=list(trajectory.prompt_ids),
            response_ids=trajectory.completion_ids,
            response_mask=trajectory.mask,
            response_logprobs=trajectory.logprobs,
            reward_score=float(scored.reward or 0.0),
            num_turns=len(trajectory.turns) + sum(turn.observation is not None for turn in trajectory.turns) + 1,
            metrics={
                "generate_sequences": batch.generation_s,
                "tool_calls": batch.tools_s,
                "num_preempted": backend.preempted,
            },
            extra_fields={
                "turn_scores": [],
                "tool_rewards": [],
                "reward_extra_info": {"acc": float(scored.passed), **_by_name(scored)},
                "gtpo": told(trajectory, scored, penalize_syntax_errors=self._penalize_syntax_errors),
                **backend.versions,
            },
        )


@dataclass(frozen=True)
class _Shared:
    """What all rollouts of a process use."""

    engine: RolloutEngine
    scorer: Scorer
    numbers: Any = field(default_factory=itertools.count)

    def score(self, trajectory: Trajectory, problem: Problem, row: Mapping[str, Any]) -> Scored:
        prompts = [self.engine.prompts.messages(problem)]
        (scored,) = self.scorer.score([trajectory], [problem], prompts=prompts, columns=reward_columns(row, problem))
        return scored


def _by_name(scored: Scored) -> dict[str, float]:
    """What each reward function returned, for verl's validation metrics; NaN where one does not apply."""
    return {name: math.nan if value is None else float(value) for name, value in scored.parts.items()}


_SHARED: dict[str, _Shared] = {}


def _shared(tokenizer: Any, config: LoopConfig, rollout: Any) -> _Shared:
    """Made once for each set of options."""
    if rollout.get("enable_rollout_routing_replay", False):
        raise ConfigError("the agent loop gtpo does not keep routed experts: turn enable_rollout_routing_replay off")
    key = f"{id(tokenizer)} {config}"
    if key not in _SHARED:
        scorer = make_scorer(config)
        scorer.check_functions()
        _SHARED[key] = _Shared(build_engine(config, tokenizer), scorer)
    return _SHARED[key]


class VerlBackend:
    """verl's model servers, for one rollout.

    Args:
        client: verl's `LLMServerClient`, or an object that behaves like it. A rollout keeps its request id, and with it
            its server and the cache there.
        sampling_params: verl's.
        max_context: maximum context length, in tokens.

    Attributes:
        preempted: how often the servers preempted the rollout's requests; -1 if they do not say.
        versions: the versions of the weights that its first and last turn were sampled with, as verl names them.
    """

    def __init__(self, client: Any, sampling_params: Mapping[str, Any], max_context: int) -> None:
        self.max_context = max_context
        self.preempted = -1
        self.versions: dict[str, Any] = {}
        self._client, self._sampling_params = client, sampling_params
        self._request_id = uuid4().hex
        self._end_ids: frozenset[int] = frozenset()

    @asynccontextmanager
    async def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AsyncIterator[GenerationSession]:
        """See `Backend.serve`. verl itself samples, and has no seed for it."""
        self._end_ids = end_ids
        yield self

    async def generate(self, request: Request) -> Generation:
        """See `GenerationSession.generate`."""
        stops = {*(self._sampling_params.get("stop_token_ids") or []), *self._end_ids}
        output = await self._client.generate(
            request_id=self._request_id,
            prompt_ids=list(request.context),
            sampling_params={
                **self._sampling_params,
                "max_tokens": request.max_new_tokens,
                "stop_token_ids": sorted(stops),
            },
        )
        if not output.token_ids:
            raise BackendError(f"verl's server returned no token (stop reason {output.stop_reason!r})")
        if output.num_preempted is not None:
            self.preempted = max(self.preempted, 0) + output.num_preempted
        found = dict(output.extra_fields or {})
        self.versions = {**found, **self.versions}
        if found.get("max_global_steps") is not None:
            self.versions["max_global_steps"] = found["max_global_steps"]
        logprobs = output.log_probs[: len(output.token_ids)] if output.log_probs else None
        return checked_generation(output.token_ids, logprobs, request, end_ids=self._end_ids, source="verl's server")

    def finish(self, rollout: int) -> None:
        """See `GenerationSession.finish`."""
