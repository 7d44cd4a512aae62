"""The sides that `rollouts.py` compares: our loop and TRL's, each with a tool that takes a fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _rollouts_script import GROUP, OBSERVATION, ROOM, Workload, python
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from gtpo.rollout import PythonTool, RolloutEngine, RolloutLimits, Sampling
from gtpo.rollout.backends import TransformersBackend
from gtpo.sandbox import ExecResult, Status

TURNS = 4


@dataclass(frozen=True)
class Outcome:
    """One batch of rollouts: its time, its tokens, and what the model computed for it."""

    seconds: float
    prompts: list[list[int]]
    completions: list[list[int]]
    turns: list[int]
    sampled: list[int]
    passes: int
    positions: int


class Ours:
    """Our loop, as the trainer and `gtpo eval` use it."""

    def __init__(self, workload: Workload, *, turns: int = TURNS, tokens: int = ROOM) -> None:
        self.workload, self.model = workload, workload.model
        self.limits = RolloutLimits(max_turns=turns, max_turn_tokens=tokens, max_completion_length=tokens)

    def __call__(self, prompts: Sequence[Any], tool: PythonTool) -> Outcome:
        """Rolls out each prompt once."""
        engine = RolloutEngine(self.workload.encoder, tool, self.limits)
        with self.workload.following(self.model) as script:
            began = time.perf_counter()
            backend = TransformersBackend(self.model, batch_size=len(prompts))
            rollouts = engine.run(prompts, backend, sampling=Sampling()).trajectories
            seconds = time.perf_counter() - began
        return Outcome(
            seconds,
            [list(rollout.prompt_ids) for rollout in rollouts],
            [rollout.completion_ids for rollout in rollouts],
            [len(rollout.turns) for rollout in rollouts],
            [sum(rollout.mask) for rollout in rollouts],
            script.passes,
            script.positions,
        )


class Tool(PythonTool):
    """A tool that takes some seconds, and other ones for the first call of one rollout. Knows when rollouts end."""

    def __init__(self, seconds: float, *, slow_rollout: int | None = None, slow_s: float = 0.0) -> None:
        super().__init__(_Sleeper(seconds, slow_rollout, slow_s))
        self.ends: dict[Hashable, float] = {}

    def open(self, key: Hashable) -> Any:
        """See `PythonTool.open`."""
        interpreter = super().open(key)
        close = interpreter.aclose

        async def closing() -> None:
            self.ends[key] = time.perf_counter()
            await close()

        interpreter.aclose = closing
        return interpreter


class _Sleeper:
    """What `Tool` needs of a sandbox."""

    def __init__(self, seconds: float, slow_rollout: int | None, slow_s: float) -> None:
        self.seconds, self.slow_rollout, self.slow_s = seconds, slow_rollout, slow_s

    async def run(self, code: str, *, key: Hashable = None, **_: Any) -> ExecResult:
        seconds = self.seconds
        if key == self.slow_rollout:
            seconds, self.slow_rollout = self.slow_s, None
        if seconds:
            await asyncio.sleep(seconds)
        return ExecResult(Status.OK, stdout=OBSERVATION)


class Peer:
    """TRL's loop.

    Args:
        model: of its own if another side has the workload's.
    """

    def __init__(self, workload: Workload, model: Any, folder: str, *, continuous: bool = False) -> None:
        self.workload, self.model = workload, model
        size = len(workload.prompts)
        args = GRPOConfig(
            output_dir=folder,
            report_to="none",
            use_cpu=not torch.accelerator.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=GROUP,
            steps_per_generation=size // GROUP,
            num_generations=GROUP,
            max_completion_length=ROOM,
            max_tool_calling_iterations=TURNS - 1,
            use_transformers_continuous_batching=continuous,
            transformers_continuous_batching_config=_continuous_room(size) if continuous else None,
        )
        self.trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=args,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in workload.prompts[::GROUP]]),
            processing_class=workload.tokenizer,
            tools=[python],
        )

    def __call__(self, prompts: Sequence[Any], tool_s: float) -> Outcome:
        """Rolls out each prompt once."""

        def call(code: str) -> str:
            time.sleep(tool_s)
            return OBSERVATION

        self.model.eval()
        self.trainer._sync_tool_dicts = [{"python": call}] * len(prompts)  # as `_generate_and_score_completions` does
        self.trainer._async_tool_dicts = [{}] * len(prompts)
        with self.workload.following(self.model) as script:
            began = time.perf_counter()
            opening, completions, mask, messages, *_ = self.trainer._generate(list(prompts))
            seconds = time.perf_counter() - began
        turns = [sum(message["role"] == "assistant" for message in rollout) for rollout in messages]
        return Outcome(seconds, opening, completions, turns, list(map(sum, mask)), script.passes, script.positions)


def _continuous_room(rollouts: int, page: int = 128) -> dict[str, int]:
    """Enough pages for all rollouts at once; by default it takes half of the machine's memory."""
    return {"page_size": page, "num_blocks": rollouts * ROOM // page, "max_batch_tokens": 1024}
