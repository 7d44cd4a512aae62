"""TRL's trainer with our rollouts: where they are generated, from which weights, and when.

Rollouts are made in process, by a colocated vLLM engine or on a server; on a server also ahead of the update
(`gtpo.training.overlap`).
"""

from __future__ import annotations

import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from datasets import IterableDataset

from gtpo.errors import BackendError
from gtpo.rollout import RolloutEngine
from gtpo.rollout.backends import Backend, OpenAIBackend, TransformersBackend
from gtpo.rollout.loop import Progress, RolloutBatch
from gtpo.training.base_trainer import BaseTrainer
from gtpo.training.config import GTPOConfig
from gtpo.training.data import RowProblems
from gtpo.training.overlap import FRAC_CUT, BatchOrder, Overlap, share_cut
from gtpo.training.own_environment import reset_columns
from gtpo.training.progress import StepProgress
from gtpo.training.trl_compat import unwrapped_for_generation, whole_weights
from gtpo.training.vllm import AdapterSync, check_takes_weights, colocated, server_url
from gtpo.types import Trajectory


class RollingTrainer(BaseTrainer):
    """`BaseTrainer` with rollouts.

    Args:
        engine: rolls out.
        rows: reads the problems of the data set's rows.
        args: settings.
        train_dataset, progress, kwargs: see `BaseTrainer`.
    """

    def __init__(
        self,
        *,
        engine: RolloutEngine,
        rows: RowProblems,
        args: GTPOConfig,
        train_dataset: Any,
        progress: StepProgress,
        **kwargs: Any,
    ) -> None:
        self.engine, self._rows = engine, rows
        self._inputs: Sequence[Mapping[str, Any]] = ()
        self._held: list[Any] = []
        self._overlap = self._overlap_for(train_dataset, args, progress)
        self._coming: tuple[int, BatchOrder] | None = None
        by_adapter = args.use_vllm and args.vllm_sync == "adapter"
        args.use_vllm = args.use_vllm and not by_adapter  # else TRL would open its NCCL connection
        super().__init__(progress=progress, args=args, train_dataset=train_dataset, **kwargs)
        if by_adapter:
            folder = Path(args.run_dir) / "adapters"
            self.use_vllm = args.use_vllm = True
            self.vllm_generation: Any = AdapterSync(
                self.model, self.accelerator, server_url(args), folder, args.vllm_server_timeout
            )
            self._last_loaded_step = -1
            corrects = args.vllm_importance_sampling_correction and self.accelerator.is_main_process
            if corrects and (said := self.vllm_generation.wrong_logprobs()):
                self.progress.say(f"gtpo: {said}")
        elif args.use_vllm and args.vllm_mode == "colocate":
            check_takes_weights(self.vllm_generation)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's; rollouts that were begun ahead end with it."""
        self._coming = None
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._overlap:
                self._overlap.close()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._overlap and self.args.vllm_sync == "nccl" and self.state.global_step != self._last_loaded_step:
            self._overlap.wait()  # TRL is about to replace the weights that rollouts under way are sampled from
        output = super()._generate_and_score_completions(inputs)
        if (ratio_B_T := output.get("importance_sampling_ratio")) is not None:
            share = share_cut(ratio_B_T, output["completion_mask"] * output.get("tool_mask", 1), self.args)
            self._own_metrics[FRAC_CUT].append(share)
        return cast("dict[str, Any]", output)

    def _trajectories(self) -> tuple[Trajectory, ...]:
        start = time.perf_counter()
        self.progress.phase("rollouts")
        self._weights_step = self.state.global_step
        if self._overlap and self.model.training:
            batch = self._taken(self._overlap)
        else:
            prompts, options = self._request(self._inputs, self.progress.within_phase)
            with self._backend() as backend:
                batch = self.engine.run(prompts, backend, **options)
        if self.engine.environments:
            self.engine.environments.release(self._held)  # those of the batch before
        self._held = list(batch.environments)
        if not all(t.token_exact or t.stop_reason.is_failure for t in batch.trajectories):
            raise BackendError("the server did not give the ids that it sampled, so they can't be trained on")
        self._seconds["rollout"] += time.perf_counter() - start
        self._seconds["tools"] += batch.tools_s
        return batch.trajectories

    def _request(self, rows: Sequence[Mapping[str, Any]], progress: Progress) -> tuple[list[Any], dict[str, Any]]:
        """What the engine is asked for these rows: the prompts, and its other arguments."""
        prompts = [
            self.engine.prompts.messages(self._rows.problem(row)) if isinstance(row["prompt"], str) else row["prompt"]
            for row in rows
        ]
        return prompts, {
            "seed": int(torch.randint(0, 2**31, ())),  # TRL seeds each process on its own, and checkpoints it
            "progress": progress,
            "mask_failures": True,
            "columns": list(map(reset_columns, rows)),
            "hold_environments": True,
        }

    def _begin(self, rows: Sequence[Mapping[str, Any]], progress: Progress) -> Coroutine[Any, Any, RolloutBatch]:
        """The rollouts of these rows on a server, from the weights that it has now."""
        context = ExitStack()
        backend = context.enter_context(self._backend())
        prompts, options = self._request(rows, progress)

        async def roll_out() -> RolloutBatch:
            with context:
                return await self.engine.run_async(prompts, backend, **options)

        return roll_out()

    def _overlap_for(self, dataset: Any, args: GTPOConfig, progress: StepProgress) -> Overlap | None:
        if args.overlap and isinstance(dataset, IterableDataset):
            args.overlap = 0
            if args.process_index == 0:
                progress.say("gtpo: overlap 0: a train_dataset that is streamed can't be read ahead")
        return Overlap(args.overlap, self._begin) if args.overlap else None

    def _taken(self, overlap: Overlap) -> RolloutBatch:
        """The rollouts of this batch, which were begun earlier; those of the next ones are begun."""
        if self._coming is None:
            order = BatchOrder(
                self._epoch_order,
                self.train_dataset,
                batch_size=self._train_batch_size * (self.args.steps_per_generation or 1),
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
            )
            self._coming = (order.number_at(self.state.epoch or 0.0), order)
        number, order = self._coming
        last = -(-self.state.max_steps // self.args.updates_per_batch) - 1
        progress = self.progress.within_phase
        found = overlap.take(number, self._inputs, order, last, self._last_loaded_step, progress)
        self._coming = (number + 1, order)
        self._weights_step = found.weights_step
        self._own_metrics["time/server_idle_s"].append(overlap.idle_s())
        return found.batch

    @contextmanager
    def _backend(self) -> Iterator[Backend]:
        """What generates, for one batch."""
        if self.use_vllm:
            if self.args.vllm_sync == "adapter":
                with self.vllm_generation.backend(self._tokenizer) as backend:
                    yield backend
            elif self.args.vllm_mode == "server":
                timeout_s = self.args.vllm_server_timeout
                yield OpenAIBackend(server_url(self.args), self._tokenizer, server_timeout_s=timeout_s)
            else:
                yield colocated(self.vllm_generation)
            return
        with self._whole_policy() as model:
            yield TransformersBackend(model, batch_size=self.args.max_concurrency or 64)

    @contextmanager
    def _whole_policy(self) -> Iterator[Any]:
        """The policy as one process can compute with it, for one batch."""
        with (
            unwrapped_for_generation(self) as model,
            whole_weights(self.model_wrapped, gathered=self.args.ds3_gather_for_generation),
            self.accelerator.autocast(),  # around the whole batch, so that weights are cast once and not for each token
        ):
            yield model
