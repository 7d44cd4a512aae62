"""TRL's trainer with everything unrelated to turn credit: micro-batches, order, timing, checkpoints, model card."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor

from gtpo.errors import ModelError, TooManyFailuresError
from gtpo.training.checkpoints import MANIFEST
from gtpo.training.config import GTPOConfig
from gtpo.training.durable import DivergedError, DurableTrainer
from gtpo.training.metrics import time_metrics
from gtpo.training.micro_batch import rows_count_alone, trimmed, with_signal
from gtpo.training.model_card import PAPER, write_model_card
from gtpo.training.progress import StepProgress
from gtpo.training.sampler import EpochOrder
from gtpo.training.trl_compat import RandomState, RepeatSampler, TRLTrainer


class BaseTrainer(DurableTrainer, TRLTrainer):
    """`GRPOTrainer` that computes only the rows and columns that a micro-batch needs, and logs where time was spent.

    Args:
        progress: shows on the terminal what a step is doing.
        kwargs: see `GRPOTrainer`.
    """

    _tag_names = ["trl", "gtpo"]  # noqa: RUF012 (as TRL declares it)
    _name = "GTPO"
    _paper = PAPER

    args: GTPOConfig
    model: Any

    def __init__(self, *, progress: StepProgress, **kwargs: Any):
        self.progress = progress
        self._random_state = RandomState()
        self._seconds: dict[str, float] = defaultdict(float)
        self._step_seconds = 0.0
        self._weights_steps, self._staleness = list[int](), list[int]()
        super().__init__(**kwargs)
        self._rows_count_alone = rows_count_alone(self.args, self.model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's `train`; a run that loses too many rollouts leaves a checkpoint of the last complete step.

        Raises:
            TooManyFailuresError: too many rollouts failed; says what failed, and where the checkpoint is.
            ModelError: a number computed by the model is not finite; names the step and the checkpoint to resume from.
        """
        try:
            return super().train(*args, **kwargs)
        except DivergedError:
            self.progress.close()
            raise
        except ModelError as error:
            self.progress.close()
            raise self.located(error) from error
        except TooManyFailuresError as error:
            self.progress.close()
            raise TooManyFailuresError(f"{error} {self._checkpoint_of_last_step()}") from error

    def _checkpoint_of_last_step(self) -> str:
        step = self.state.global_step
        if not step:
            return "(no step was completed: restart the run with --overwrite true)."
        folder = Path(self.args.output_dir or "") / f"checkpoint-{step}"
        if not (folder / MANIFEST).exists():
            self._random_state.restore()  # as it was before the batch that is lost
            self._save_checkpoint(self.model, None)
        return f"({folder} holds the run as of step {step})."

    def _save_more(self, folder: Path) -> None:
        """Save the rollouts that later steps train on, if a generation batch serves several steps."""
        step, inputs = self.buffered
        if step % self._steps_per_batch and inputs is not None:
            kept = {"step": step, "weights_steps": self._weights_steps, "inputs": inputs}
            torch.save(kept, self._buffer_path(folder))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and (path := self._buffer_path(Path(checkpoint))).exists():
            found = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            self.buffered = found["step"], found["inputs"]
            self._weights_steps = found["weights_steps"]

    def _buffer_path(self, folder: Path) -> Path:
        return folder / f"generation_batch_{self.accelerator.process_index}.pt"

    @property
    def _steps_per_batch(self) -> int:
        return cast(int, self.args.steps_per_generation) * self.num_iterations

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our model card into a checkpoint, instead of TRL's template."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir or ".", self.args, self.model, self.state.log_history)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's step, timed as a whole."""
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_seconds += time.perf_counter() - start
        self._staleness += [self.state.global_step - step for step in self._weights_steps]
        return loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's loss, on the rows and columns that the micro-batch needs."""
        if not (self.model.training and self._rows_count_alone):
            return super().compute_loss(model, trimmed(inputs), *args, **kwargs)
        inputs, teaches = with_signal(inputs, self._largest)
        logged = {name: len(values) for name, values in self.own_metrics.items()}
        loss = super().compute_loss(model, trimmed(inputs), *args, **kwargs)
        if not teaches:  # what TRL found in the one row that is left says nothing
            self._forget_metrics(since=logged)
        return loss

    def _forget_metrics(self, since: Mapping[str, int]) -> None:
        """Remove from the log what TRL has added since there were this many values by name."""
        metrics = self.own_metrics
        for name in list(metrics):
            del metrics[name][since.get(name, 0) :]
            if not metrics[name]:
                del metrics[name]

    def order_of(self, sampler: RepeatSampler) -> EpochOrder:
        """TRL's sampler, in an order that a resumed run continues."""
        self._epoch_order = EpochOrder(sampler, lambda: int(self.state.epoch or 0))
        return self._epoch_order

    def _largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the time spent per phase since the last log."""
        if self.model.training and self._step_seconds > 0:
            logs = {**logs, **time_metrics(self._seconds, self._step_seconds)}
            logs |= {"staleness/mean": fmean(self._staleness), "staleness/max": float(max(self._staleness))}
            self._seconds.clear()
            self._staleness.clear()
            self._step_seconds = 0.0
        super().log(logs, start_time)
