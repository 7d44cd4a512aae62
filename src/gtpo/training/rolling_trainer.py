"""TRL's trainer with our rollouts: where they are generated, from which weights, and when.

Rollouts are generated in process, by a colocated vLLM engine or on a server; on a server also ahead of the update
(`gtpo.training.overlap`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import IterableDataset

from gtpo._async import run_async
from gtpo._files import write_text
from gtpo.errors import BackendError, ConfigError
from gtpo.rollout import RolloutEngine
from gtpo.rollout.backends import Backend, OpenAIBackend, TransformersBackend
from gtpo.rollout.encoding import Messages
from gtpo.rollout.loop import Progress
from gtpo.training.base_trainer import BaseTrainer
from gtpo.training.config import GTPOConfig
from gtpo.training.data import RowProblems
from gtpo.training.groups import Counts, Draw, Group, GroupRollouts, Row, Spread
from gtpo.training.overlap import FRAC_CUT, BatchOrder, Overlap, share_cut
from gtpo.training.progress import StepProgress
from gtpo.training.trl_compat import send_weights, unwrapped_for_generation, whole_weights
from gtpo.training.vllm import AdapterSync, check_takes_weights, colocated, server_url
from gtpo.types import Trajectory


@dataclass(frozen=True)
class RolledOut:
    """The rollouts of this process that are trained on next.

    Attributes:
        groups: the groups, in the order in which they are trained on.
        counts: counts of the rollouts that have ended since the last batch.
    """

    groups: Sequence[Group]
    counts: Counts

    @property
    def rows(self) -> list[Any]:
        """Rows of the data set, one per rollout."""
        return [row for group in self.groups for row in group.draw.rows]

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """The rollouts."""
        return tuple(trajectory for group in self.groups for trajectory in group.trajectories)

    @property
    def environments(self) -> list[Any]:
        """The rollouts' environments; empty if there are none."""
        return [environment for group in self.groups for environment in group.environments]

    @property
    def weights_steps(self) -> list[int]:
        """For each rollout, the optimizer step after which its weights were taken."""
        return [group.weights_step for group in self.groups for _ in group.trajectories]


class RollingTrainer(BaseTrainer):
    """`BaseTrainer` with rollouts.

    Args:
        engine: generates rollouts.
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
        self._rolled = RolledOut((), Counts())
        self._streams = self._checked_stream(train_dataset, args, progress)
        self._overlap = Overlap(args.overlap, self._begin, args.min_groups) if args.overlap else None
        self._owed: dict[int, list[int]] = {}
        self._order: BatchOrder | None = None
        self._next_batch = 0
        by_adapter = args.use_vllm and args.vllm_sync == "adapter"
        args.use_vllm = args.use_vllm and not by_adapter  # else TRL would open its NCCL connection
        super().__init__(progress=progress, args=args, train_dataset=train_dataset, **kwargs)
        if by_adapter:
            folder = Path(args.run_dir) / "adapters"
            self.use_vllm = args.use_vllm = True
            self.vllm_generation: Any = AdapterSync(
                self.model, self.accelerator, server_url(args), folder, args.vllm_server_timeout
            )
            self.weights_sent_at = -1
            corrects = args.vllm_importance_sampling_correction and self.accelerator.is_main_process
            if corrects and (said := self.vllm_generation.wrong_logprobs()):
                self.progress.say(f"gtpo: {said}")
        elif args.use_vllm and args.vllm_mode == "colocate":
            check_takes_weights(self.vllm_generation)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's `train`; rollouts that were started ahead end with it."""
        self._order = None
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._overlap:
                self._overlap.close()

    def score_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """See `TRLTrainer.score_batch`; the rollouts are generated now, or taken from those generated ahead."""
        if self._overlap and self.args.vllm_sync == "nccl" and self.state.global_step != self.weights_sent_at:
            self._overlap.wait()  # the weights that rollouts under way are sampled from are about to be replaced
        send_weights(self)
        self._roll(inputs)
        output = super().score_batch(self._rolled.rows)
        if (ratio_B_T := output.get("importance_sampling_ratio")) is not None:
            share = share_cut(ratio_B_T, output["completion_mask"] * output.get("tool_mask", 1), self.args)
            self.own_metrics[FRAC_CUT].append(share)
        if self._overlap:
            self._owed = self._overlap.owed()  # not before: a batch that is lost is to be given again
        return cast("dict[str, Any]", output)

    def _save_more(self, folder: Path) -> None:
        """Also save the problems of late groups from earlier batches."""
        super()._save_more(folder)
        if self._owed:
            write_text(self._late_path(folder), json.dumps(self._owed))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None or not (path := self._late_path(Path(checkpoint))).exists():
            return
        if not self._overlap:
            raise ConfigError(f"{path}: late groups (min_groups) are still to be trained on: keep --overlap")
        self._owed = {int(number): indices for number, indices in json.loads(path.read_text()).items()}
        self._overlap.resume(self._owed)

    def _late_path(self, folder: Path) -> Path:
        return folder / f"late_groups_{self.accelerator.process_index}.json"

    def _roll(self, rows: Sequence[Row]) -> None:
        """Generate the rollouts of these rows, or take those generated ahead; hand out the environments again."""
        start = time.perf_counter()
        self.progress.phase("rollouts")
        order = self._batch_order() if self.model.training else None
        rolled = self._taken(self._overlap, order, rows) if order and self._overlap else self._rolled_now(rows, order)
        if order:
            self._next_batch += 1
        if self.engine.environments:
            self.engine.environments.release(self._rolled.environments)  # those of the batch before
        self._rolled, self._weights_steps = rolled, rolled.weights_steps
        if not all(t.token_exact or t.stop_reason.is_failure for t in rolled.trajectories):
            raise BackendError(
                "the server did not return the token ids that it sampled, so its rollouts can't be trained on"
            )
        self._seconds["rollout"] += time.perf_counter() - start
        self._seconds["tools"] += rolled.counts.tools_s

    def _batch_order(self) -> BatchOrder | None:
        """The problems of all batches of the run; None if the data set is streamed."""
        if self._order is None and not self._streams:
            self._order = BatchOrder(
                self._epoch_order,
                self.train_dataset,
                batch_size=self.rows_per_batch,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
                group_size=self.args.group_size,
            )
            self._next_batch = self._order.number_at(self.state.epoch or 0.0)
        return self._order

    def _rolled_now(self, rows: Sequence[Row], order: BatchOrder | None) -> RolledOut:
        """The rollouts of these rows, from the current weights; they are training rollouts if the order is known."""
        draws = [Draw(tuple(rows))] if order is None else order.in_groups(rows)
        groups: list[Group] = []
        run = self._begin(self._next_batch, draws, self.progress.within_phase, groups.append, order)
        counts = run_async(run)
        return RolledOut(sorted(groups, key=lambda group: group.number), counts)

    @property
    def _inputs(self) -> list[Any]:
        """Rows of the data set, one per rollout of this process."""
        return self._rolled.rows

    def _prompt(self, row: Row) -> Messages:
        """The prompt of a row, as chat messages."""
        if isinstance(row["prompt"], str):
            return self.engine.prompts.messages(self._rows.problem(row))
        return cast(Messages, row["prompt"])

    def _spread(self, group: Group) -> Spread:
        """The `Spread` of a group's rewards."""
        raise NotImplementedError

    def _begin(
        self,
        number: int,
        draws: Sequence[Draw],
        progress: Progress,
        on_group: Callable[[Group], None],
        order: BatchOrder | None,
    ) -> Coroutine[Any, Any, Counts]:
        """The rollouts of a batch, from the current weights; see `gtpo.training.overlap.Begin`."""
        context = ExitStack()
        backend = context.enter_context(self._backend())
        resamples = order is not None and self.args.resample_uniform > 1
        most = (self.args.resample_uniform - 1) * len(draws)
        spare = order.spare(number, self.args.seed, most) if order and resamples else []
        rolling = GroupRollouts(self.engine, self._prompt, self._spread if resamples else None)
        seed = int(torch.randint(0, 2**31, ()))  # TRL seeds each process on its own, and checkpoints it
        weights_step = self.weights_sent_at if self.use_vllm else self.state.global_step

        async def roll_out() -> Counts:
            with context:
                return await rolling.run(
                    backend,
                    draws,
                    iter(spare),
                    weights_step=weights_step,
                    seed=seed,
                    progress=progress,
                    on_group=on_group,
                )

        return roll_out()

    def _checked_stream(self, dataset: Any, args: GTPOConfig, progress: StepProgress) -> bool:
        """Whether the data set is streamed, so that nothing can be read ahead.

        Raises:
            ConfigError: it is streamed, but `resample_uniform` needs further problems from it.
        """
        if not isinstance(dataset, IterableDataset):
            return False
        if args.resample_uniform > 1:
            raise ConfigError(
                "resample_uniform: no further problems can be drawn from a streamed train_dataset; set it to 0"
            )
        if args.overlap:
            args.overlap = 0
            if args.process_index == 0:
                progress.say("gtpo: overlap is set to 0: a streamed train_dataset can't be read ahead")
        return True

    def _taken(self, overlap: Overlap, order: BatchOrder, rows: Sequence[Row]) -> RolledOut:
        """The rollouts of this batch, which were started earlier; starts those of the next batches."""
        last = -(-self.state.max_steps // self.args.updates_per_batch) - 1
        groups = overlap.take(self._next_batch, rows, order, last, self.progress.within_phase)
        self.own_metrics["time/server_idle_s"].append(overlap.idle_s())
        return RolledOut(groups, overlap.counts())

    @contextmanager
    def _backend(self) -> Iterator[Backend]:
        """The generation backend for one batch."""
        if self.use_vllm:
            if self.args.vllm_sync == "adapter":
                with self.vllm_generation.backend(self.tokenizer_of_policy) as backend:
                    yield backend
            elif self.args.vllm_mode == "server":
                timeout_s = self.args.vllm_server_timeout
                yield OpenAIBackend(server_url(self.args), self.tokenizer_of_policy, server_timeout_s=timeout_s)
            else:
                yield colocated(self.vllm_generation)
            return
        with self._whole_policy() as model:
            yield TransformersBackend(model, batch_size=self.args.max_concurrency or 64)

    @contextmanager
    def _whole_policy(self) -> Iterator[Any]:
        """The policy in a form that one process can run by itself, for one batch."""
        with (
            unwrapped_for_generation(self) as model,
            whole_weights(self.model_wrapped, gathered=self.args.ds3_gather_for_generation),
            self.accelerator.autocast(),  # around the whole batch, so that weights are cast once and not for each token
        ):
            yield model
