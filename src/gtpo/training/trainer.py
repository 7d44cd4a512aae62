"""`GTPOTrainer`: TRL's `GRPOTrainer` with our rollouts and, for GTPO, per-token advantages in place of its own.

TRL does everything else: batching, loss, clipping, distributed training, checkpoints, logging. Of its methods one is
extended here and none is copied (TRL 1.16, `trl/trainer/grpo_trainer.py`; others in `base_trainer.py`):
`_generate_and_score_completions`. Afterwards `output["advantages"]`, which TRL's loss takes as (B,) or (B, T), is
replaced, unless the algorithm is GRPO: then TRL's own advantages stay, computed from one reward per rollout.

A rollout that failed for reasons of its surroundings is dropped: no reward, no advantage, no token in the loss. The
same can be asked for rollouts without an answer or that were cut (`gtpo.training.loss_policy`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from gtpo import functional as F
from gtpo.advice import where_groups_are_small, where_success_is_rare
from gtpo.credit_assignment import credit_metrics
from gtpo.errors import BackendError, ConfigError, TooManyFailuresError
from gtpo.failures import FailurePolicy
from gtpo.models import load_tokenizer
from gtpo.reward_functions import columns_of, completion_messages, guarded, is_verifier
from gtpo.rollout import FunctionTool, RolloutEngine, build_engine
from gtpo.rollout.backends import Backend, OpenAIBackend, TransformersBackend
from gtpo.rollout.loop import write_partial
from gtpo.rollout.token_offsets import TokenPieces
from gtpo.sandbox import Sandbox
from gtpo.scoring import Rewards, make_scorer
from gtpo.similarity import CodeSimilarity, get_similarity
from gtpo.tasks.verifiers import Verdict, Verifier
from gtpo.training.base_trainer import BaseTrainer
from gtpo.training.batch import Batch, BatchScorer
from gtpo.training.config import GTPOConfig, check_enough_problems
from gtpo.training.data import RowProblems
from gtpo.training.loss_policy import FailureWatch
from gtpo.training.metrics import rollout_counts, rollout_metrics
from gtpo.training.progress import StepProgress
from gtpo.training.recorder import RunRecorder
from gtpo.training.reward_functions import RewardSources
from gtpo.training.serialize import recorded_groups, rollout_rows, turn_columns
from gtpo.training.trl_compat import RandomState, gather_on_main, unwrapped_for_generation, whole_weights
from gtpo.training.trl_options import check_arguments
from gtpo.training.vllm import AdapterSync, check_takes_weights, colocated, server_url
from gtpo.turn_rewards import TurnRewardFunction
from gtpo.types import Trajectory


class GTPOTrainer(BaseTrainer):
    """Trains a model that reasons with tools. Its arguments are those of `GRPOTrainer`, in their order and meaning.

    Args:
        model: a model, or a folder or Hub id.
        reward_funcs: as in TRL; "auto" or a verifier among them stands for the verdict on the final answer. None: that
            alone. The outcome reward of a rollout is their sum, weighted by `args.reward_weights`.
        args: settings.
        train_dataset: a `Dataset` or `IterableDataset` with a column `prompt` (text, which is put as a problem's
            question is, with the system prompt; or chat messages, which are taken as they are) and any others, which
            reach reward functions by name; `answer` (text or a list of aliases) and, if there, `id`, `question`,
            `domain` and `extras` are what a verifier reads. Or rows of a published data set as they are; see
            `gtpo.tasks.row_forms`.
        eval_dataset: likewise.
        processing_class: the tokenizer; its chat template frames the observations. By default the model's.
        reward_processing_classes, callbacks, optimizers, quantization_config, peft_config: as in TRL.
        tools: functions with type hints and a docstring, or tools of ours; in place of those of `args.tools`.
        rollout_func, environment_factory: not taken.
        engine: rolls out; by default the one that `args` and `tools` ask for.
        sandbox: runs the model's code, in the default engine; by default the one that `args` ask for.
        verifier: checks final answers; by default the one that `args` ask for.
        similarity: of codes, for shaping; by default `args.similarity`.
        turn_reward_funcs: see `gtpo.turn_rewards`; by default those of `args`.
        recorder: writes the run's directory; None writes nothing.
        progress: says on the terminal what a step is doing; None says nothing.

    Raises:
        ConfigError: fewer problems than a generation batch holds, or an argument that is not taken.
        TemplateError: the chat template can't express a conversation with the tools.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GTPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Sequence[Any] | None = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        *,
        engine: RolloutEngine | None = None,
        sandbox: Sandbox | None = None,
        verifier: Verifier | None = None,
        similarity: CodeSimilarity | None = None,
        turn_reward_funcs: Sequence[TurnRewardFunction] | None = None,
        recorder: RunRecorder | None = None,
        progress: StepProgress | None = None,
    ):
        check_arguments({"rollout_func": rollout_func, "environment_factory": environment_factory})
        args = GTPOConfig() if args is None else args
        if args.eval_strategy != "no" and eval_dataset is None:
            raise ConfigError(
                f"eval_strategy {str(args.eval_strategy)!r} needs an eval_dataset; `gtpo train` has none: use gtpo eval"
            )
        if isinstance(train_dataset, Dataset):
            check_enough_problems(len(train_dataset), args)
        if processing_class is None:
            processing_class = load_tokenizer(model if isinstance(model, str) else get_config_model_id(model.config))
        own_tools = None if tools is None else [tool if hasattr(tool, "spec") else FunctionTool(tool) for tool in tools]
        self.engine = engine or build_engine(args, processing_class, tools=own_tools, sandbox=sandbox)
        scorer = make_scorer(args, reward_funcs=reward_funcs, verifier=verifier, turn_reward_funcs=turn_reward_funcs)
        self.scorer = BatchScorer(args, scorer, similarity or get_similarity(args.similarity))
        self._rows = RowProblems(verifies=scorer.verifier is not None)
        train_dataset, eval_dataset = (self._prompted(data) for data in (train_dataset, eval_dataset))
        self.recorder = recorder
        progress = progress or StepProgress(enabled=False)
        settings = {"algorithm": args.algorithm, "max_turns": args.max_turns, **asdict(args.credit_settings())}
        self._rare_success = FailureWatch(where_success_is_rare(settings))
        said = where_groups_are_small(settings, args.num_generations or 1)
        if said and args.process_index == 0:
            progress.say(f"gtpo: {said}")
        self._failures = FailurePolicy(args.max_failed_fraction, args.max_failed_batches)
        self._pieces = TokenPieces(self.engine.encoder.decode)
        self._batch: Batch | None = None
        self._inputs: Sequence[Mapping[str, Any]] = ()
        self._said_graded = False
        by_adapter = args.use_vllm and args.vllm_sync == "adapter"
        args.use_vllm = args.use_vllm and not by_adapter  # else TRL would open its NCCL connection
        super().__init__(
            progress=progress,
            model=model,
            reward_funcs=[cast(Any, self.verified) if is_verifier(one) else guarded(one) for one in scorer.sources],
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            rollout_func=self._roll_out,
            callbacks=[*(callbacks or ()), progress],
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self._sources = RewardSources(self, self.outcome_reward)
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
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

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
        prompts = [
            self.engine.prompts.messages(self._rows.problem(row)) if isinstance(prompt, str) else prompt
            for prompt, row in zip(prompts, self._inputs, strict=True)
        ]
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

    def _prompted(self, dataset: Any) -> Any:
        """The data set with a column `prompt`; of several by name, each of them."""
        if isinstance(dataset, Mapping):
            return {name: self._prompted(part) for name, part in dataset.items()}
        if not isinstance(dataset, Dataset | IterableDataset):
            return dataset
        return self._rows.prompted(dataset, self.engine.prompts)

    def _rewards(self, trajectories: Sequence[Trajectory], verdicts: Sequence[Verdict]) -> Rewards:
        """What TRL gets from each reward function for the rollouts of this process."""
        self._verdicts = verdicts
        completions = list(map(completion_messages, trajectories))
        ids = [trajectory.completion_ids for trajectory in trajectories]
        prompts = [row["prompt"] for row in self._inputs]
        columns = columns_of(self._inputs)
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(prompts))]
        with self._sources.in_use():
            found = self._calculate_rewards(rows, prompts, completions, ids)
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, mean in self._sources.means(found).items():
            metrics[f"rewards/{name}/mean"].append(mean)
        first = self.accelerator.process_index * len(trajectories)
        return self._sources.by_rollout(found[first : first + len(trajectories)])

    def verified(self, prompts: Sequence[Any], **columns: Any) -> list[float]:
        """The verifier as a reward function: 1 for a rollout that passed, or its score under `graded`."""
        return self.scorer.scorer.verified(self._verdicts)

    def _scored(self, trajectories: tuple[Trajectory, ...]) -> Batch:
        """Verdicts and credit, given the rollouts of all processes; logged and recorded.

        Raises:
            TooManyFailuresError: too many of them failed; those of this process that did not are kept in a file.
        """
        training = self.model.training
        group_size = cast(int, self.num_generations if training else self.num_generations_eval)
        batch = self.scorer.score(
            trajectories,
            tuple(self._rows.problem(row, place) for place, row in enumerate(self._inputs)),
            group_size,
            self.progress.phase,
            rewards=lambda verdicts: self._rewards(trajectories, verdicts),
            columns=columns_of(self._inputs),
        )
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
        rewards_passing = self.scorer.scorer.by_verdict and not self.args.graded
        if graded and rewards_passing and not self._said_graded:
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
