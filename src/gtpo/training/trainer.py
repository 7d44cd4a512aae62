"""`GTPOTrainer`: TRL's `GRPOTrainer` with our rollouts and, for GTPO, per-token advantages in place of its own.

TRL does everything else: batching, loss, clipping, distributed training, checkpoints, logging. This class copies none
of its methods and extends one, for which `TRLTrainer.score_batch` stands (TRL 1.16). Afterwards `output["advantages"]`,
which TRL's loss takes as (B,) or (B, T), is replaced, unless the algorithm is GRPO.

A rollout that failed through no fault of the model is dropped: no reward, no advantage, no token in the loss. Rollouts
without an answer and truncated ones can be dropped too (`gtpo.training.loss_policy`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOTrainer

from gtpo import functional as F
from gtpo.advice import where_groups_are_small
from gtpo.credit_assignment import TURN_REWARDS, credit_metrics
from gtpo.errors import ConfigError, TooManyFailuresError
from gtpo.failures import FailurePolicy
from gtpo.models import load_tokenizer
from gtpo.reward_functions import columns_of, completion_messages, guarded, is_verifier
from gtpo.rollout import RolloutEngine
from gtpo.rollout.loop import write_partial
from gtpo.rollout.token_offsets import TokenPieces
from gtpo.sandbox import Sandbox
from gtpo.scoring import EnvironmentReward, Rewards, make_scorer
from gtpo.similarity import CodeSimilarity, get_similarity
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict, Verifier
from gtpo.training.answer_scoring import AnswerScorer
from gtpo.training.batch import Batch, BatchScorer, spread_of
from gtpo.training.completions_table import make_printable, replace_last, turn_columns
from gtpo.training.config import GTPOConfig, check_enough_problems
from gtpo.training.data import RowProblems
from gtpo.training.groups import Group, Spread
from gtpo.training.loss_policy import stale
from gtpo.training.metrics import resample_metrics, rollout_counts, rollout_metrics
from gtpo.training.own_environment import check_data, made_engine
from gtpo.training.progress import StepProgress
from gtpo.training.recorder import RunRecorder
from gtpo.training.remarks import Remarks
from gtpo.training.reward_functions import RewardSources
from gtpo.training.rolling_trainer import RollingTrainer
from gtpo.training.serialize import recorded_groups, rollout_rows
from gtpo.training.trl_compat import RandomState, gather_on_main, get_config_model_id
from gtpo.training.trl_options import check_arguments
from gtpo.turn_rewards import TurnRewardFunction, asks_for_answers
from gtpo.types import Trajectory


class GTPOTrainer(RollingTrainer):
    """Trains a model that reasons with tools. Its arguments have the order and meaning of those of `GRPOTrainer`.

    Args:
        model: a model, or a folder or Hub id.
        reward_funcs: as in TRL; "auto" or a verifier among them stands for the verdict on the final answer. None: the
            verdict alone. The outcome reward of a rollout is their sum, weighted by `args.reward_weights`.
        args: settings.
        train_dataset: a `Dataset` or `IterableDataset` with a column `prompt`: text, which is treated like a problem's
            question and gets the system prompt, or chat messages, which are used as they are. Other columns are passed
            to reward functions by name. A verifier reads `answer` (text or a list of aliases) and, if present, `id`,
            `question`, `domain` and `extras`. Rows of published data sets are also read as they are; see
            `gtpo.tasks.row_forms`.
        eval_dataset: like `train_dataset`.
        processing_class: the tokenizer; its chat template frames the observations. By default the model's.
        reward_processing_classes, callbacks, optimizers, quantization_config, peft_config: as in TRL.
        tools: functions with type hints and a docstring, names as in `args.tools` (such as "mcp:URL"), `MCPTools`, or
            gtpo tools; they replace those of `args.tools`.
        rollout_func: not supported.
        environment_factory: as in TRL, with extensions (`gtpo.rollout.environment`): a class with `reset`, whose public
            methods are tools. Its `get_reward` is one more reward function with weight 1, and the only one if none is
            given. With an environment, there are no `tools` by default, and `train_dataset` may be omitted if
            `args.max_steps` is set.
        engine: generates rollouts; by default the one that `args` and `tools` describe.
        sandbox: runs the model's code, in the default engine; by default the one that `args` describe.
        verifier: checks final answers; by default the one that `args` name.
        similarity: code similarity for shaping; by default `args.similarity`.
        turn_reward_funcs: see `gtpo.turn_rewards`; by default those of `args`.
        recorder: writes the run's directory, which the caller has prepared. None: if `args` name a directory, `train`
            records the run there, as `gtpo train` does. False: nothing is recorded.
        progress: shows on the terminal what a step is doing; None shows nothing.

    Raises:
        ConfigError: there are fewer problems than a generation batch holds, or an argument is not supported.
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
        recorder: RunRecorder | Literal[False] | None = None,
        progress: StepProgress | None = None,
    ):
        check_arguments({"rollout_func": rollout_func})
        args = GTPOConfig() if args is None else args
        if args.eval_strategy != "no" and eval_dataset is None:
            raise ConfigError(
                f"eval_strategy {str(args.eval_strategy)!r} needs an eval_dataset, which `gtpo train` does not have: "
                "use gtpo eval"
            )
        if isinstance(train_dataset, Dataset):
            check_enough_problems(len(train_dataset), args)
        if processing_class is None:
            processing_class = load_tokenizer(model if isinstance(model, str) else get_config_model_id(model.config))
        self.engine = engine or made_engine(args, processing_class, tools, environment_factory, sandbox)
        environments = self.engine.environments
        if environments:
            train_dataset = check_data(environments, train_dataset, args, self.engine.prompts)
        scorer = make_scorer(
            args,
            reward_funcs=reward_funcs,
            verifier=verifier,
            turn_reward_funcs=turn_reward_funcs,
            environments=environments,
            turns=args.algorithm in TURN_REWARDS,
        )
        self.scorer = BatchScorer(args, scorer, similarity or get_similarity(args.similarity))
        self._scoring = threading.Lock()  # a verifier need not stand being called from two threads
        self._outcomes = scorer.without_turn_rewards() if args.resample_uniform > 1 else scorer
        rows = RowProblems(verifies=scorer.verifier is not None)
        train_dataset, eval_dataset = (_prompted(rows, data, self.engine) for data in (train_dataset, eval_dataset))
        self.recorder = recorder or None
        self._records_itself = recorder is None and args.run_dir != type(args).run_dir
        progress = progress or StepProgress(enabled=False)
        settings = {"algorithm": args.algorithm, "max_turns": args.max_turns, **asdict(args.credit_settings())}
        tools = [spec.name for spec in self.engine.encoder.format.specs]
        self._remarks = Remarks(settings, tools, pass_or_fail=scorer.by_verdict and not args.graded)
        said = where_groups_are_small(settings, args.group_size)
        if said and args.process_index == 0:
            progress.say(f"gtpo: {said}")
        unused = environments and environments.has_turn_reward and args.algorithm not in TURN_REWARDS
        if environments and unused and args.process_index == 0:
            progress.say(f"gtpo: algorithm {args.algorithm} does not use get_turn_reward of {environments.name}")
        self._failures = FailurePolicy(args.max_failed_fraction, args.max_failed_batches)
        self._pieces = TokenPieces(self.engine.encoder.decode)
        self._batch: Batch | None = None
        asks = any(map(asks_for_answers, scorer.turn_reward_funcs))
        self._answers = AnswerScorer(self.engine.encoder, self.engine.prompts) if asks else None
        super().__init__(
            engine=self.engine,
            rows=rows,
            progress=progress,
            model=model,
            reward_funcs=[self._reward_function(source) for source in scorer.sources_of_trainer],
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
        self._sources = RewardSources(self, self.outcome_reward, self._reward_function(scorer.added))
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def score_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """See `TRLTrainer.score_batch`; the advantages are ours, except for GRPO."""
        self._random_state = RandomState.now()
        output = super().score_batch(inputs)
        if self.args.algorithm != "grpo":
            start = time.perf_counter()
            advantages_B_T = self._token_advantages(output["completion_ids"].shape[1])
            output["advantages"] = advantages_B_T.to(output["completion_ids"].device)
            if self.log_completions:
                sampled_B = torch.tensor([sum(t.mask) for t in self._rolled.trajectories])
                means_B = advantages_B_T.sum(dim=1) / sampled_B.clamp(min=1)
                replace_last(self.logged_table["advantages"], gather_object(means_B.tolist()))
            self._seconds["credit"] += time.perf_counter() - start
        if self.log_completions:
            make_printable(self.logged_table)
        self.progress.phase("update")
        return output

    def train(
        self, resume_from_checkpoint: Any = None, *args: Any, resume_with_changes: bool = False, **kwargs: Any
    ) -> Any:
        """TRL's `train`, recorded in `args.run_dir`.

        Args:
            resume_from_checkpoint: True, or the path of the newest whole checkpoint, to resume the run.
            args, kwargs: see `GRPOTrainer.train`.
            resume_with_changes: resume although settings differ from those that the run started with.

        Raises:
            ConfigError: the directory already holds a run, which is neither resumed nor overwritten.
            StoppedError: a signal ended the run; it can be resumed from its checkpoint.
        """
        if not self._records_itself:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        from gtpo.training.run import train_recorded  # it makes trainers

        self._records_itself = False  # in the call of `train` that comes of this
        try:
            return train_recorded(self, resume_from_checkpoint, with_changes=resume_with_changes)
        finally:
            self._records_itself = True

    def _roll_out(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's `rollout_func`: from prompts, repeated for each rollout of a group, to rollouts with their credit."""
        trajectories = self._rolled.trajectories
        self._batch = batch = self._scored(trajectories)
        return {
            "prompt_ids": [list(t.prompt_ids) for t in trajectories],
            "completion_ids": [t.completion_ids for t in trajectories],
            "logprobs": [t.logprobs or [0.0] * len(t.mask) for t in trajectories] if self.use_vllm else None,
            "env_mask": batch.masks,
        }

    def _scored_answers(
        self, trajectories: Sequence[Trajectory], problems: Sequence[Problem], group_size: int
    ) -> dict[str, list[Any]]:
        """What turn reward functions get besides the data set's columns: scored answers, if one of them needs them."""
        if not self._answers:
            return {}
        start = time.perf_counter()
        self.progress.phase("scoring")
        with self._whole_policy() as model:
            found = self._answers.columns(model, trajectories, problems, group_size)
        self._seconds["scoring"] += time.perf_counter() - start
        return found

    def _reward_function(self, source: Any) -> Any:
        """A reward source as a function that TRL can call; None for None."""
        if source is None:
            return None
        if isinstance(source, EnvironmentReward):
            return source.as_function(lambda: self._rolled_out)
        return cast(Any, self.verified) if is_verifier(source) else guarded(source)

    def _rewards(
        self, trajectories: Sequence[Trajectory], verdicts: Sequence[Verdict], columns: Mapping[str, Sequence[Any]]
    ) -> Rewards:
        """The result of each reward function, called by TRL, for the rollouts of this process."""
        self._verdicts, self._rolled_out = verdicts, trajectories
        completions = list(map(completion_messages, trajectories))
        ids = [trajectory.completion_ids for trajectory in trajectories]
        prompts = [t.asked(row["prompt"]) for t, row in zip(trajectories, self._inputs, strict=True)]
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(prompts))]
        self.environments: Any = (
            self._rolled.environments or None
        )  # for reward functions; TRL would reset those that it finds later
        try:
            with self._sources.in_use():
                found = self.call_reward_functions(rows, prompts, completions, ids)
        finally:
            self.environments = None
        for name, mean in self._sources.means(found).items():
            self.own_metrics[f"rewards/{name}/mean"].append(mean)
        first = self.accelerator.process_index * len(trajectories)
        return self._sources.by_rollout(found[first : first + len(trajectories)])

    def verified(self, prompts: Sequence[Any], **columns: Any) -> list[float]:
        """The verifier as a reward function: 1 for a rollout that passed, else 0; its score under `graded`."""
        return self.scorer.scorer.verified(self._verdicts)

    def _scored(self, trajectories: tuple[Trajectory, ...]) -> Batch:
        """Verdicts and credit, given the rollouts of all processes; logged and recorded.

        Raises:
            TooManyFailuresError: too many of them failed; the other rollouts of this process are kept in a file.
        """
        training = self.model.training
        group_size = cast(int, self.num_generations if training else self.num_generations_eval)
        problems = tuple(self._rows.problem(row, place) for place, row in enumerate(self._inputs))
        columns = columns_of(self._inputs, self._rows.further)
        answers = self._scored_answers(trajectories, problems, group_size)
        last_update = self.state.global_step + self.args.updates_per_batch - 1
        with self._scoring:
            batch = self.scorer.score(
                trajectories,
                problems,
                group_size,
                self.progress.phase,
                lost=stale(self._weights_steps, last_update, self.args.max_staleness) if training else None,
                rewards=lambda verdicts: self._rewards(trajectories, verdicts, columns),
                columns={**columns, **answers},
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

    def _spread(self, group: Group) -> Spread:
        rows, trajectories = group.draw.rows, group.trajectories
        columns = columns_of(rows, self._rows.further)
        if group.environments:
            columns["environments"] = list(group.environments)
        prompts = [t.asked(row["prompt"]) for t, row in zip(trajectories, rows, strict=True)]
        problems = [self._rows.problem(row) for row in rows]
        with self._scoring:
            scored = self._outcomes.score(trajectories, problems, prompts=prompts, columns=columns)
        return spread_of(trajectories, scored, self.args.algorithm)

    def _log_batch(self, batch: Batch, failures: Mapping[str, float]) -> None:
        training = self.model.training
        metrics = {**credit_metrics(batch.inputs, batch.credit), **failures}
        scores = gather_object([verdict.score for verdict in batch.verdicts])
        if any(0 < score < 1 for score in scores):
            metrics["score"] = sum(scores) / len(scores)
        metrics |= rollout_metrics(gather_object([rollout_counts(batch.trajectories)]))
        if training and self.args.resample_uniform > 1:
            metrics |= resample_metrics(gather_object([self._rolled.counts]))
        for name, value in metrics.items():
            self.own_metrics[name].append(value)
        if not (training and self.accelerator.is_main_process):
            return
        for text in self._remarks.of(metrics, batch.trajectories):
            self.progress.say(f"gtpo: step {self.state.global_step + 1}: {text}")

    def _record(self, batch: Batch) -> None:
        start = time.perf_counter()
        tokens = gather_object([len(t.mask) for t in batch.trajectories])
        kept = recorded_groups(batch.credit.group_B.tolist(), tokens, self.args.record_max_tokens)
        rows = gather_on_main(rollout_rows(batch, self._pieces, kept, self._weights_steps))
        if self.recorder and self.accelerator.is_main_process:
            self.recorder.write_rollouts(self.state.global_step + 1, rows)
        self._seconds["record"] += time.perf_counter() - start

    def _partial_path(self) -> Path:
        """The file for the rollouts of an unfinished batch."""
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

    def _records_now(self) -> bool:
        every = self.args.record_every
        return every > 0 and self.state.global_step % every == 0


def _prompted(rows: RowProblems, dataset: Any, engine: RolloutEngine) -> Any:
    """The data set with a column `prompt`; of several by name, each of them."""
    if isinstance(dataset, Mapping):
        return {name: _prompted(rows, part, engine) for name, part in dataset.items()}
    if not isinstance(dataset, Dataset | IterableDataset):
        return dataset
    return rows.prompted(dataset, engine.prompts)
