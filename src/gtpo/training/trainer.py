"""`GTPOTrainer`: TRL's `GRPOTrainer` with our rollouts and, for GTPO, per-token advantages in place of its own.

TRL does everything else: batching, loss, clipping, distributed training, checkpoints, logging. Seven of its methods are
extended, none is copied (TRL 1.16, `trl/trainer/grpo_trainer.py`):

- `_generate_and_score_completions`: afterwards `output["advantages"]`, which TRL's loss takes as (B,) or (B, T), is
  replaced, unless the algorithm is GRPO: then TRL's own advantages stay, computed from one reward per rollout;
- `compute_loss`: it gets the rows and columns that it needs (`gtpo.training.micro_batch`);
- `_get_train_sampler`: the order of an epoch does not depend on whether the run was resumed (`gtpo.training.sampler`);
- `train`: a run that loses too many rollouts ends with a checkpoint (`gtpo.failures`);
- `create_model_card`, `training_step` and `log`: what the run was, and where the time of a step went.

A rollout that failed for reasons of its surroundings is dropped: no reward, no advantage, no token in the loss. The
same can be asked for rollouts without an answer or that were cut (`gtpo.training.loss_policy`).
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from gtpo import functional as F
from gtpo.advice import where_groups_are_small, where_success_is_rare
from gtpo.credit import credit_metrics
from gtpo.errors import BackendError, ConfigError, TooManyFailuresError
from gtpo.failures import FailurePolicy
from gtpo.rollout import RolloutEngine, build_engine
from gtpo.rollout.backends import Backend, OpenAIBackend, TransformersBackend
from gtpo.rollout.loop import write_partial
from gtpo.rollout.token_offsets import TokenPieces
from gtpo.sandbox import Sandbox
from gtpo.similarity import CodeSimilarity, get_similarity
from gtpo.tasks.verifiers import Verifier, get_verifier
from gtpo.training.batch import Batch, BatchScorer, problem_of
from gtpo.training.config import GTPOConfig
from gtpo.training.loss_policy import FailureWatch
from gtpo.training.metrics import rollout_counts, rollout_metrics, time_metrics
from gtpo.training.micro_batch import rows_count_alone, trimmed, with_signal
from gtpo.training.model_card import PAPER, write_model_card
from gtpo.training.progress import StepProgress
from gtpo.training.recorder import RunRecorder
from gtpo.training.sampler import EpochOrder
from gtpo.training.serialize import recorded_groups, rollout_rows, turn_columns
from gtpo.training.trl_compat import RandomState, gather_on_main, unwrapped_for_generation, whole_weights
from gtpo.training.trl_options import check_arguments
from gtpo.training.vllm import AdapterSync, check_takes_weights, colocated, server_url
from gtpo.types import Trajectory


class GTPOTrainer(GRPOTrainer):
    """Trains a model that reasons with tools.

    Args:
        model: a model, or a folder or Hub id.
        args: settings.
        train_dataset: columns `prompt` (chat messages), `id`, `question`, `answer`, `domain` and `extras`; see
            `gtpo.training.data.problem_dataset`.
        processing_class: the tokenizer; its chat template frames the observations.
        engine: rolls out; by default the one that `args` ask for.
        sandbox: runs the model's code, in the default engine; by default the one that `args` ask for.
        verifier: checks final answers; by default the one that `args` ask for.
        similarity: of codes, for shaping; by default `args.similarity`.
        recorder: writes the run's directory; None writes nothing.
        progress: says on the terminal what a step is doing; None says nothing.
        callbacks, kwargs: passed on to `GRPOTrainer` (eval_dataset, optimizers, peft_config, quantization_config).

    Raises:
        ConfigError: fewer problems than a generation batch holds, or an argument of `GRPOTrainer` that has no effect.
        TemplateError: the chat template can't express a conversation with the tools.
    """

    _tag_names = ["trl", "gtpo"]  # noqa: RUF012 (as TRL declares it)
    _name = "GTPO"
    _paper = PAPER

    args: GTPOConfig
    model: Any

    def __init__(
        self,
        model: Any,
        args: GTPOConfig,
        train_dataset: Dataset,
        processing_class: Any,
        *,
        engine: RolloutEngine | None = None,
        sandbox: Sandbox | None = None,
        verifier: Verifier | None = None,
        similarity: CodeSimilarity | None = None,
        recorder: RunRecorder | None = None,
        progress: StepProgress | None = None,
        callbacks: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        check_arguments(kwargs)
        if args.eval_strategy != "no" and kwargs.get("eval_dataset") is None:
            raise ConfigError(
                f"eval_strategy {str(args.eval_strategy)!r} needs an eval_dataset; `gtpo train` has none: use gtpo eval"
            )
        _check_enough_problems(len(train_dataset), args)
        self.engine = engine or build_engine(args, processing_class, sandbox=sandbox)
        self.scorer = BatchScorer(
            args, verifier or get_verifier(args.verifier), similarity or get_similarity(args.similarity)
        )
        self.recorder = recorder
        self.progress = progress or StepProgress(enabled=False)
        settings = {"algorithm": args.algorithm, "max_turns": args.max_turns, **asdict(args.credit_settings())}
        self._rare_success = FailureWatch(where_success_is_rare(settings))
        said = where_groups_are_small(settings, args.num_generations or 1)
        if said and args.process_index == 0:
            self.progress.say(f"gtpo: {said}")
        self._failures = FailurePolicy(args.max_failed_fraction, args.max_failed_batches)
        self._pieces = TokenPieces(self.engine.encoder.decode)
        self._batch: Batch | None = None
        self._inputs: Sequence[Mapping[str, Any]] = ()
        self._random_state = RandomState()
        self._said_graded = False
        self._seconds: dict[str, float] = defaultdict(float)
        self._step_seconds = 0.0
        by_adapter = args.use_vllm and args.vllm_sync == "adapter"
        args.use_vllm = args.use_vllm and not by_adapter  # else TRL would open its NCCL connection
        super().__init__(
            model=model,
            reward_funcs=[self.outcome_reward],
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            rollout_func=self._roll_out,
            callbacks=[*(callbacks or ()), self.progress],
            **kwargs,
        )
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
        self._rows_count_alone = rows_count_alone(self.args, self.model)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's; a run that loses too many rollouts leaves a checkpoint of the last whole step.

        Raises:
            TooManyFailuresError: says what failed, and where the checkpoint is.
        """
        try:
            return super().train(*args, **kwargs)
        except TooManyFailuresError as error:
            self.progress.close()
            raise TooManyFailuresError(f"{error} {self._checkpoint_of_last_step()}") from error

    def _checkpoint_of_last_step(self) -> str:
        step = self.state.global_step
        if not step:
            return "(no step was done: start it again with --overwrite)."
        folder = Path(self.args.output_dir or "") / f"checkpoint-{step}"
        if not (folder / "trainer_state.json").exists():
            self._random_state.restore()  # as it was before the batch that is lost
            self._save_checkpoint(self.model, None)
        return f"({folder} holds the run as of step {step})."

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._random_state = RandomState.now()
        self._inputs = inputs
        output = super()._generate_and_score_completions(inputs)
        if self.args.algorithm != "grpo":
            start = time.perf_counter()
            advantages_B_T = self._token_advantages(output["completion_ids"].shape[1])
            output["advantages"] = advantages_B_T.to(output["completion_ids"].device)
            if self.log_completions:
                self._log_advantages(advantages_B_T)
            self._seconds["credit"] += time.perf_counter() - start
        self.progress.phase("update")
        return output

    def _roll_out(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`: from prompts, with each group's duplicates in place, to rollouts with their credit."""
        trajectories = self._trajectories(prompts)
        self._batch = batch = self._scored(trajectories)
        return {
            "prompt_ids": [list(t.prompt_ids) for t in trajectories],
            "completion_ids": [t.completion_ids for t in trajectories],
            "logprobs": [t.logprobs or [0.0] * len(t.mask) for t in trajectories] if self.use_vllm else None,
            "env_mask": batch.masks,
        }

    def _trajectories(self, prompts: list[Any]) -> tuple[Trajectory, ...]:
        start = time.perf_counter()
        self.progress.phase("rollouts")
        with self._backend() as backend:
            batch = self.engine.run(
                prompts,
                backend,
                seed=int(torch.randint(0, 2**31, ())),  # TRL seeds each process on its own, and checkpoints it
                progress=self.progress.within_phase,
                mask_failures=True,
            )
        if not all(t.token_exact or t.stop_reason.is_failure for t in batch.trajectories):
            raise BackendError("the server did not give the ids that it sampled, so they can't be trained on")
        self._seconds["rollout"] += time.perf_counter() - start
        self._seconds["tools"] += batch.tools_s
        return batch.trajectories

    @contextmanager
    def _backend(self) -> Iterator[Backend]:
        """What generates, for one batch."""
        if self.use_vllm:
            if self.args.vllm_sync == "adapter":
                yield self.vllm_generation.backend(self._tokenizer)
            elif self.args.vllm_mode == "server":
                timeout_s = self.args.vllm_server_timeout
                yield OpenAIBackend(server_url(self.args), self._tokenizer, server_timeout_s=timeout_s)
            else:
                yield colocated(self.vllm_generation)
            return
        with (
            unwrapped_for_generation(self) as model,
            whole_weights(self.model_wrapped, gathered=self.args.ds3_gather_for_generation),
            self.accelerator.autocast(),  # around the whole batch, so that weights are cast once and not for each token
        ):
            yield TransformersBackend(model, batch_size=self.args.max_concurrency or 64)

    def _scored(self, trajectories: tuple[Trajectory, ...]) -> Batch:
        """Verdicts and credit, given the rollouts of all processes; logged and recorded.

        Raises:
            TooManyFailuresError: too many of them failed; those of this process that did not are kept in a file.
        """
        training = self.model.training
        group_size = cast(int, self.num_generations if training else self.num_generations_eval)
        batch = self.scorer.score(trajectories, tuple(map(problem_of, self._inputs)), group_size, self.progress.phase)
        self._seconds["verify"] += batch.verify_s
        self._seconds["credit"] += batch.credit_s
        try:
            failures = self._failures.note(batch.failures, self.state.global_step + 1)
        except TooManyFailuresError:
            if kept := {i: t for i, t in enumerate(trajectories) if not t.stop_reason.is_failure}:
                write_partial(kept, self._partial_path())
            raise
        self._log_batch(batch, failures)
        if training and self.recorder and self._records_now():
            self._record(batch)
        return batch

    def _log_batch(self, batch: Batch, failures: Mapping[str, float]) -> None:
        training = self.model.training
        metrics = {**credit_metrics(batch.inputs, batch.credit), **failures}
        scores = gather_object([verdict.score for verdict in batch.verdicts])
        if graded := any(0 < score < 1 for score in scores):
            metrics["score"] = sum(scores) / len(scores)
        counts = gather_object([rollout_counts(batch.trajectories)])
        for name, value in {**metrics, **rollout_metrics(counts)}.items():
            self._metrics["train" if training else "eval"][name].append(value)
        if not (training and self.accelerator.is_main_process):
            return
        if graded and not self._said_graded:
            self._said_graded = True
            self._say("the verifier gave scores between 0 and 1: they are recorded, but only a score of 1 is rewarded.")
        if said := self._rare_success.note(metrics["groups/frac_all_failed"]):
            self._say(said)

    def _say(self, text: str) -> None:
        self.progress.say(f"gtpo: step {self.state.global_step + 1}: {text}")

    def _record(self, batch: Batch) -> None:
        start = time.perf_counter()
        tokens = gather_object([len(t.mask) for t in batch.trajectories])
        kept = recorded_groups(batch.credit.group_B.tolist(), tokens, self.args.record_max_tokens)
        rows = gather_on_main(rollout_rows(batch, self._pieces, kept))
        if self.recorder and self.accelerator.is_main_process:
            self.recorder.write_rollouts(self.state.global_step + 1, rows)
        self._seconds["record"] += time.perf_counter() - start

    def _partial_path(self) -> Path:
        """Where rollouts of a batch go that was not finished."""
        process = self.accelerator.process_index
        return Path(self.args.run_dir) / "rollouts" / f"unfinished_{self.state.global_step + 1:06d}_{process}.jsonl"

    def outcome_reward(self, prompts: Sequence[Any], **columns: Any) -> list[float | None]:
        """TRL's reward function: the paper's one reward per rollout (GRPO) or the accuracy (others); None if masked."""
        assert self._batch is not None
        if (log_extra := columns.get("log_extra")) and self.log_completions:
            for name, values in turn_columns(self._batch).items():
                log_extra(name, values)
        return list(self._batch.rewards)

    def _token_advantages(self, width: int) -> Tensor:
        """Advantages of this process's completion tokens, shape (B, width)."""
        assert self._batch is not None
        trajectories, credit, first = self._batch.trajectories, self._batch.credit, self._batch.first
        turn_ids_B_T = torch.full((len(trajectories), width), -1)
        for row, trajectory in enumerate(trajectories):
            turn_ids = trajectory.turn_ids
            turn_ids_B_T[row, : len(turn_ids)] = torch.tensor(turn_ids)
        return F.spread_to_tokens(credit.advantages_B_K[first : first + len(trajectories)], turn_ids_B_T)

    def _log_advantages(self, advantages_B_T: Tensor) -> None:
        """In the table of `log_completions`, the mean over sampled tokens in place of TRL's own, which is not used."""
        assert self._batch is not None
        sampled_B = torch.tensor([sum(t.mask) for t in self._batch.trajectories])
        means = gather_object((advantages_B_T.sum(dim=1) / sampled_B.clamp(min=1)).tolist())
        logged = cast("deque[float]", self._logs["advantages"])
        for _ in means:
            logged.pop()
        logged.extend(means)

    def _records_now(self) -> bool:
        every = self.args.record_every
        return every > 0 and self.state.global_step % every == 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of a checkpoint: ours, in place of TRL's template."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir or ".", self.args, self.model, self.state.log_history)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's step, timed as a whole."""
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_seconds += time.perf_counter() - start
        return loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's loss, on the rows and columns that the micro-batch needs."""
        if not (self.model.training and self._rows_count_alone):
            return super().compute_loss(model, trimmed(inputs), *args, **kwargs)
        inputs, teaches = with_signal(inputs, self._largest)
        logged = {name: len(values) for name, values in self._metrics["train"].items()}
        loss = super().compute_loss(model, trimmed(inputs), *args, **kwargs)
        if not teaches:  # what TRL found in the one row that is left says nothing
            self._forget_metrics(since=logged)
        return loss

    def _forget_metrics(self, since: Mapping[str, int]) -> None:
        """Leave out of the log what TRL has added since there were so many values by name."""
        metrics = self._metrics["train"]
        for name in list(metrics):
            del metrics[name][since.get(name, 0) :]
            if not metrics[name]:
                del metrics[name]

    def _get_train_sampler(self, dataset: Any = None) -> EpochOrder:
        """TRL's, in an order that a resumed run takes up."""
        sampler = cast(RepeatSampler, super()._get_train_sampler(dataset))
        return EpochOrder(sampler, lambda: int(self.state.epoch or 0))

    def _largest(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with where the time of the steps since the last one went."""
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
