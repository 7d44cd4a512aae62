"""`GTPOTrainer`: TRL's `GRPOTrainer` with our rollouts and, for GTPO, per-token advantages in place of its own.

The host does everything else: batching, loss, clipping, distributed training, checkpoints, logging. Five of its
methods are extended, none is copied (TRL 1.16, `trl/trainer/grpo_trainer.py`):

- `_generate_and_score_completions`: afterwards `output["advantages"]`, which the host's loss takes as (B,) or (B, T),
  is replaced, unless the algorithm is GRPO: then the host's own advantages stay, computed from one reward a rollout;
- `compute_loss`: it gets the rows and columns that it needs (`gtpo.training.micro_batch`);
- `_get_train_sampler`: the order of an epoch does not depend on whether the run was resumed (`gtpo.training.sampler`);
- `training_step` and `log`: where the time of a step went.

A rollout whose tool failed (`StopReason.TOOL_FAILURE`) is dropped: no reward, no advantage, no token in the loss. The
same can be asked for rollouts that went nowhere (`gtpo.training.loss_policy`).
"""

from __future__ import annotations

import inspect
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from gtpo import functional as F
from gtpo.advice import where_groups_are_small, where_success_is_rare
from gtpo.credit import Credit, compute_credit, credit_inputs, credit_metrics
from gtpo.errors import BackendError, ConfigError
from gtpo.rollout import ChatEncoder, RolloutEngine
from gtpo.rollout.backends import Backend, OpenAIBackend, TransformersBackend
from gtpo.rollout.token_offsets import TokenPieces
from gtpo.sandbox import Sandbox
from gtpo.similarity import CodeSimilarity, get_similarity
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verifier, get_verifier
from gtpo.training.config import GTPOConfig
from gtpo.training.loss_policy import FailureWatch, LossPolicy, loss_policy_of
from gtpo.training.metrics import rollout_counts, rollout_metrics, time_metrics
from gtpo.training.micro_batch import rows_count_alone, trimmed, with_signal
from gtpo.training.progress import StepProgress
from gtpo.training.recorder import RunRecorder
from gtpo.training.sampler import EpochOrder
from gtpo.training.serialize import rollout_rows
from gtpo.training.trl_compat import whole_weights
from gtpo.training.vllm import AdapterSync, check_takes_weights, colocated, server_url
from gtpo.types import Trajectory


@dataclass
class _Batch:
    """What this process knows of the rollouts under way: one generation batch."""

    trajectories: tuple[Trajectory, ...]
    policies: tuple[LossPolicy, ...] = ()
    credit: Credit | None = None
    first: int = 0


class GTPOTrainer(GRPOTrainer):
    """Trains a model that reasons with tools.

    Args:
        model: a model, or a folder or Hub id.
        args: settings.
        train_dataset: columns `prompt` (chat messages), `id`, `question`, `answer`, `domain` and `extras`; see
            `problem_dataset`.
        processing_class: the tokenizer; its chat template frames the observations.
        sandbox: runs the model's code; by default the one that `args` ask for.
        verifier: checks final answers; by default the one that `args` ask for.
        similarity: of codes, for shaping; by default `args.similarity`.
        recorder: writes the run's directory; None writes nothing.
        progress: says on the terminal what a step is doing; None says nothing.
        callbacks, kwargs: passed on to `GRPOTrainer` (eval_dataset, optimizers, peft_config, quantization_config).

    Raises:
        ConfigError: fewer problems than a generation batch holds.
        TemplateError: the chat template can't express a conversation with the tool.
    """

    args: GTPOConfig
    model: Any

    def __init__(
        self,
        model: Any,
        args: GTPOConfig,
        train_dataset: Dataset,
        processing_class: Any,
        *,
        sandbox: Sandbox | None = None,
        verifier: Verifier | None = None,
        similarity: CodeSimilarity | None = None,
        recorder: RunRecorder | None = None,
        progress: StepProgress | None = None,
        callbacks: Sequence[Any] = (),
        **kwargs: Any,
    ):
        _check_enough_problems(len(train_dataset), args)
        tools = args.make_tools(sandbox)
        tool_format = args.make_format([tool.spec for tool in tools])
        encoder = ChatEncoder(processing_class, tool_format, template_kwargs=cast(Any, args.chat_template_kwargs))
        self.engine = RolloutEngine(encoder, tools, args.rollout_limits())
        self.verifier = verifier or get_verifier(args.verifier)
        self.similarity = similarity or get_similarity(args.similarity)
        self.recorder = recorder
        self.progress = progress or StepProgress(enabled=False)
        self.credit_settings = args.credit_settings()
        settings = {"algorithm": args.algorithm, "max_turns": args.max_turns, **asdict(self.credit_settings)}
        self._failures = FailureWatch(where_success_is_rare(settings))
        said = where_groups_are_small(settings, args.num_generations or 1)
        if said and args.process_index == 0:
            self.progress.say(f"gtpo: {said}")
        self._pieces = TokenPieces(encoder.decode)
        self._batch = _Batch(())
        self._seconds: dict[str, float] = defaultdict(float)
        self._step_seconds = 0.0
        by_adapter = args.use_vllm and args.vllm_sync == "adapter"
        args.use_vllm = args.use_vllm and not by_adapter  # else the host would open its NCCL connection
        super().__init__(
            model=model,
            reward_funcs=[self.outcome_reward],
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            rollout_func=self._roll_out,
            callbacks=[*callbacks, self.progress],
            **kwargs,
        )
        if by_adapter:
            folder = Path(args.run_dir) / "adapters"
            self.use_vllm = args.use_vllm = True
            self.vllm_generation: Any = AdapterSync(self.model, self.accelerator, server_url(args), folder)
            self._last_loaded_step = -1
        elif args.use_vllm and args.vllm_mode == "colocate":
            check_takes_weights(self.vllm_generation)
        self._rows_count_alone = rows_count_alone(self.args, self.model)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def _roll_out(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """The host's `rollout_func`: prompts come with each group's duplicates in place."""
        start = time.perf_counter()
        self.progress.phase("rollouts")
        with self._backend() as backend:
            batch = self.engine.run(
                prompts,
                backend,
                sampling=self.args.sampling(),
                seed=int(torch.randint(0, 2**31, ())),  # the host seeds each process on its own, and checkpoints it
                progress=self.progress.within_phase,
                partial_path=self._partial_path(),
            )
        trajectories = batch.trajectories
        if not all(trajectory.token_exact for trajectory in trajectories):
            raise BackendError("the server did not give the ids that it sampled, so they can't be trained on")
        policies = tuple(self._fate(trajectory) for trajectory in trajectories)
        self._batch = _Batch(trajectories, policies, first=self.accelerator.process_index * len(prompts))
        self._seconds["rollout"] += time.perf_counter() - start
        self._seconds["tools"] += batch.tools_s
        return {
            "prompt_ids": [list(t.prompt_ids) for t in trajectories],
            "completion_ids": [t.completion_ids for t in trajectories],
            "logprobs": [t.logprobs for t in trajectories] if self.use_vllm else None,
            "env_mask": [
                t.mask if policy == "keep" else [0] * len(t.mask)
                for t, policy in zip(trajectories, policies, strict=True)
            ],
        }

    @contextmanager
    def _backend(self) -> Iterator[Backend]:
        """What generates, for one batch."""
        if self.use_vllm:
            if self.args.vllm_sync == "adapter":
                yield self.vllm_generation.backend(self._tokenizer)
            elif self.args.vllm_mode == "server":
                yield OpenAIBackend(server_url(self.args), self._tokenizer)
            else:
                yield colocated(self.vllm_generation)
            return
        with (
            unwrap_model_for_generation(self.model_wrapped, self.accelerator, **self._unwrapping()) as model,
            whole_weights(self.model_wrapped, gathered=self.args.ds3_gather_for_generation),
            self.accelerator.autocast(),  # around the whole batch, so that weights are cast once and not for each token
        ):
            yield TransformersBackend(model, batch_size=self.args.rollout_batch_size)

    def _partial_path(self) -> Path:
        """Where finished rollouts go if the others can't be finished."""
        process = self.accelerator.process_index
        return Path(self.args.run_dir) / "rollouts" / f"unfinished_{self.state.global_step + 1:06d}_{process}.jsonl"

    def _fate(self, trajectory: Trajectory) -> LossPolicy:
        has_answer = self.verifier.has_answer(trajectory.answer_text or "")
        return loss_policy_of(
            trajectory, has_answer=has_answer, void=self.args.no_answer_rollouts, cut=self.args.truncated_rollouts
        )

    def _unwrapping(self) -> dict[str, Any]:
        """Options of the host's `unwrap_model_for_generation`; the second came with TRL 1.16."""
        options = {
            "gather_deepspeed3_params": self.args.ds3_gather_for_generation,
            "gradient_checkpointing_kwargs": self.args.gradient_checkpointing_kwargs,
        }
        known = inspect.signature(unwrap_model_for_generation).parameters
        return {name: value for name, value in options.items() if name in known}

    def outcome_reward(self, prompts: Sequence[Any], **columns: Any) -> list[float | None]:
        """The host's reward function. Verifies the answers and assigns credit to the groups of all processes.

        Returns the paper's one reward a rollout (GRPO) or the accuracy (others, for the host's logs); None if masked.
        """
        start = time.perf_counter()
        self.progress.phase("verifying")
        trajectories = self._batch.trajectories
        extras = columns.get("extras") or ["{}"] * len(prompts)
        domains = columns.get("domain") or ["math"] * len(prompts)
        fields = zip(columns["id"], columns["question"], columns["answer"], domains, extras, strict=True)
        problems = [
            Problem(id=i, question=question, answer=answer, domain=domain, extras=json.loads(more))
            for i, question, answer, domain, more in fields
        ]
        verdicts = self.verifier.verify_many([t.answer_text for t in trajectories], problems)
        verified = time.perf_counter()
        self._seconds["verify"] += verified - start

        self.progress.phase("credit")
        training = self.model.training
        group_size = cast(int, self.num_generations if training else self.num_generations_eval)
        first = self._batch.first
        facts = gather_object(
            [
                credit_inputs(
                    trajectory,
                    passed=verdict.passed,
                    group_id=(first + i) // group_size,
                    penalize_syntax_errors=self.credit_settings.penalize_syntax_errors,
                    dropped=policy == "drop",
                )
                for i, (trajectory, verdict, policy) in enumerate(
                    zip(trajectories, verdicts, self._batch.policies, strict=True)
                )
            ]
        )
        credit = compute_credit(facts, self.similarity, self.credit_settings, algorithm=self.args.algorithm)
        self._batch.credit = credit
        self._seconds["credit"] += time.perf_counter() - verified
        metrics = credit_metrics(facts, credit)
        counts = gather_object([rollout_counts(trajectories)])
        self._add_metrics("train" if training else "eval", {**metrics, **rollout_metrics(counts)})
        if training and self.accelerator.is_main_process:
            self._warn(metrics["groups/frac_all_failed"])
        if training and self._records_now():
            start = time.perf_counter()
            rows = gather_object(rollout_rows(trajectories, problems, verdicts, credit, first, self._pieces, facts))
            if self.recorder and self.accelerator.is_main_process:
                self.recorder.write_rollouts(self.state.global_step + 1, rows)
            self._seconds["record"] += time.perf_counter() - start
        rewards_B = credit.outcome_B if self.args.algorithm == "grpo" else credit.accuracy_B
        local = rewards_B[first : first + len(trajectories)].tolist()
        policies = self._batch.policies
        return [None if policy == "drop" else reward for policy, reward in zip(policies, local, strict=True)]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.args.algorithm != "grpo":
            start = time.perf_counter()
            width = output["completion_ids"].shape[1]
            output["advantages"] = self._token_advantages(width).to(output["completion_ids"].device)
            self._seconds["credit"] += time.perf_counter() - start
        self.progress.phase("update")
        return output

    def _token_advantages(self, width: int) -> Tensor:
        """Advantages of this process's completion tokens, shape (B, width)."""
        trajectories, credit, first = self._batch.trajectories, self._batch.credit, self._batch.first
        assert credit is not None
        turn_ids_B_T = torch.full((len(trajectories), width), -1)
        for row, trajectory in enumerate(trajectories):
            turn_ids = trajectory.turn_ids
            turn_ids_B_T[row, : len(turn_ids)] = torch.tensor(turn_ids)
        return F.spread_to_tokens(credit.advantages_B_K[first : first + len(trajectories)], turn_ids_B_T)

    def _warn(self, frac_all_failed: float) -> None:
        if said := self._failures.note(frac_all_failed):
            self.progress.say(f"gtpo: step {self.state.global_step + 1}: {said}")

    def _records_now(self) -> bool:
        every = self.args.record_every
        return every > 0 and self.state.global_step % every == 0

    def _add_metrics(self, mode: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The host's step, timed as a whole."""
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_seconds += time.perf_counter() - start
        return loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The host's loss, on the rows and columns that the micro-batch needs."""
        if not (self.model.training and self._rows_count_alone):
            return super().compute_loss(model, trimmed(inputs), *args, **kwargs)
        inputs, teaches = with_signal(inputs, self._largest)
        logged = {name: len(values) for name, values in self._metrics["train"].items()}
        loss = super().compute_loss(model, trimmed(inputs), *args, **kwargs)
        if not teaches:  # what the host found in the one row that is left says nothing
            self._forget_metrics(since=logged)
        return loss

    def _forget_metrics(self, since: Mapping[str, int]) -> None:
        """Leave out of the log what the host has added since there were so many values by name."""
        metrics = self._metrics["train"]
        for name in list(metrics):
            del metrics[name][since.get(name, 0) :]
            if not metrics[name]:
                del metrics[name]

    def _get_train_sampler(self, dataset: Any = None) -> EpochOrder:
        """The host's, in an order that a resumed run takes up."""
        sampler = cast(RepeatSampler, super()._get_train_sampler(dataset))
        return EpochOrder(sampler, lambda: int(self.state.epoch or 0))

    def _largest(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The host's log, with where the time of the steps since the last one went."""
        if self.model.training and self._step_seconds > 0:
            logs = {**logs, **time_metrics(self._seconds, self._step_seconds)}
            self._seconds.clear()
            self._step_seconds = 0.0
        super().log(logs, start_time)


def _check_enough_problems(num_problems: int, args: GTPOConfig) -> None:
    groups = (args.generation_batch_size or 0) // (args.num_generations or 1)
    if num_problems < groups:
        raise ConfigError(
            f"{num_problems} training problems, but a generation batch holds {groups} (generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}): give more problems or smaller "
            "batches"
        )
