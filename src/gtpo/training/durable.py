"""Protection against losing a run, shared by the trainers of GTPO and of the cold start.

Transformers' own `enable_jit_checkpoint` is not used: it handles SIGTERM only, saves in the middle of a step, lets each
process decide for itself, and exits with a success status.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gtpo._malloc import KeptMemory
from gtpo._signals import StopSignals
from gtpo.errors import ModelError, StoppedError
from gtpo.training.checkpoints import is_write_failure, newest_whole, rotate, seal, step_of, unseal, write_failure

RESUME = "resume from the last checkpoint with --resume true; what was saved before is intact"


class DivergedError(ModelError):
    """A loss, gradient or weight is not finite; names the step and how to resume."""


class DurableTrainer:
    """A mixin for trainers, placed before transformers' `Trainer` among the bases.

    Checkpoints are sealed when they are whole, and older ones are deleted only then. A full disk, and a loss, gradient
    or weight that is not finite, end the run before a checkpoint is touched.

    Attributes:
        check_place: raises if the run's directory is no longer there.
        rolling_save: whether later checkpoints replace the next one; see `gtpo.training.checkpoints.seal`.
        whole_save: whether the next checkpoint must allow resuming, whatever `save_only_model` says.
    """

    check_place: Callable[[], None] | None = None
    rolling_save = False
    whole_save = False
    _sealed_step: int | None = None

    args: Any
    state: Any
    model: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        rolling, self.rolling_save = self.rolling_save, False
        if self._sealed_step == step:
            return
        if self.check_place:
            self.check_place()
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # nothing goes before this one is whole
        weights_only = self.args.save_only_model
        self.args.save_only_model = weights_only and not self.whole_save
        self.whole_save = False
        try:
            if self.args.should_save:
                unseal(folder)
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self._save_more(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(folder, rolling=rolling)
        except Exception as error:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            if is_write_failure(error):
                raise write_failure(folder, error, RESUME) from error
            raise
        finally:
            self.args.save_total_limit = limit
            self.args.save_only_model = weights_only
        self._sealed_step = step
        if self.args.should_save:
            rotate(self.args.output_dir, limit, self.state.best_model_checkpoint)

    def _save_more(self, folder: Path) -> None:
        """Save what else a checkpoint needs; each process writes its own files."""

    def go_on(self, checkpoint: str | None) -> Any:
        """Train to the end, from a checkpoint or from the start; returns what `train` returns, None if all is done."""
        if checkpoint and step_of(checkpoint) >= self.args.max_steps > 0:
            self._load_from_checkpoint(checkpoint)  # type: ignore[attr-defined]  # train would do one step more
            self.state.global_step = step_of(checkpoint)
            return None
        return self.train(resume_from_checkpoint=checkpoint)  # type: ignore[attr-defined]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Transformers' method takes the optimizer's settings from the checkpoint; here the given settings apply."""
        asked = [{name: value for name, value in group.items() if name != "params"} for group in self._groups()]
        rates = list(getattr(self.lr_scheduler, "base_lrs", ()))
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None or self._is_deepspeed():
            return
        for group, settings in zip(self._groups(), asked, strict=True):
            group.update({name: value for name, value in settings.items() if name not in ("lr", "initial_lr")})
        if hasattr(self.lr_scheduler, "lr_lambdas"):
            self._take_rates(rates)

    def _take_rates(self, rates: list[float]) -> None:
        scheduler = self.lr_scheduler
        scheduler.base_lrs = rates
        scheduler._last_lr = [
            rate * factor(scheduler.last_epoch) for rate, factor in zip(rates, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate, now in zip(self._groups(), rates, scheduler._last_lr, strict=True):
            group.update(initial_lr=rate, lr=now)

    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def _is_deepspeed(self) -> bool:
        return bool(getattr(self, "is_deepspeed_enabled", False))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Transformers' step.

        Raises:
            ModelError: the loss is not finite.
        """
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if not math.isfinite(value := loss.item()):
            raise self._diverged(f"the loss is not finite ({value})")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        scales = getattr(self.accelerator, "scaler", None) is not None or self._is_deepspeed()
        value = norm.item() if isinstance(norm, torch.Tensor) else norm
        if value is not None and not scales and not math.isfinite(value):  # a scaler skips such a step
            raise self._diverged(f"the gradient is not finite (norm {value})")
        return norm

    def located(self, error: ModelError) -> ModelError:
        """A model error in a rollout, with the step and the newest whole checkpoint."""
        whole = newest_whole(self.args.output_dir)
        place = f"The newest whole checkpoint is {whole}." if whole else "There is no checkpoint yet."
        return ModelError(f"step {self.state.global_step + 1}: {error}. {place}")

    def _diverged(self, what: str, step: int | None = None) -> DivergedError:
        return DivergedError(
            f"step {self.state.global_step + 1 if step is None else step}: {what}: training has diverged, and nothing "
            f"of this step was saved. {self._way_back()}"
        )

    def _way_back(self) -> str:
        """How to resume a run that diverged, and from which checkpoint."""
        whole = newest_whole(self.args.output_dir)
        if whole is None:
            return "There is no checkpoint yet: restart the run with --overwrite true and a lower --learning_rate."
        return (
            f"Resume from {whole} with a lower learning rate: --resume true --resume_with_changes true --learning_rate "
            f"{self.args.learning_rate / 2:g}, or delete that checkpoint to resume from the one before it."
        )


class DurabilityCallback(TrainerCallback):
    """Ends a run after the step in which a signal came, and saves when `save_minutes` have passed, on all processes.

    Args:
        stop: records the signals.

    Attributes:
        trainer: a `DurableTrainer`; set once it exists.
        stopped_by: the name of the signal that ended the run before its last step.
    """

    def __init__(self, stop: StopSignals):
        self.stop = stop
        self.trainer: Any = None
        self.stopped_by: str | None = None
        self._saved = time.monotonic()
        self._kept = KeptMemory()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start counting the minutes."""
        self._saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide, with all processes, whether to save or end after this step.

        Raises:
            ModelError: a weight is not finite.
        """
        if args.use_cpu:
            self._kept.check()
        minutes = getattr(args, "save_minutes", 0)
        due = minutes > 0 and args.save_strategy != "no" and time.monotonic() - self._saved >= 60 * minutes
        number, due_now, bad = self._agreed(
            [int(self.stop.requested or 0), int(due), int(not _are_finite(self.trainer.model))], args
        )
        if bad:
            raise self.trainer._diverged("weights are not finite after the update", state.global_step)
        if number or due_now:
            self.trainer.rolling_save = not control.should_save
            self.trainer.whole_save = True
            control.should_save = True
        self._end(number, state, control)

    def _end(self, number: int, state: TrainerState, control: TrainerControl) -> None:
        if number and state.global_step < state.max_steps:
            self.stopped_by = _name(number)
            control.should_log = True  # what was measured since the last line is in no checkpoint
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Restart counting the minutes; end if a signal came while the checkpoint was written."""
        self._saved = time.monotonic()
        (number,) = self._agreed([int(self.stop.requested or 0)], args)
        self._end(number, state, control)

    def check_requested(self, args: TrainingArguments) -> None:
        """End before the first step if a signal has come by then.

        Raises:
            StoppedError: a signal has come.
        """
        (number,) = self._agreed([int(self.stop.requested or 0)], args)
        if number:
            raise StoppedError(f"stopped by {_name(number)} before the first step; there was nothing to save")

    def check_stopped(self, args: TrainingArguments, state: TrainerState) -> None:
        """Raise if a signal ended the run before its last step.

        Raises:
            StoppedError: a signal ended the run.
        """
        if self.stopped_by:
            folder = Path(args.output_dir or "") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            raise StoppedError(
                f"stopped by {self.stopped_by} after step {state.global_step} of {state.max_steps}; {folder} holds the "
                "run: resume it with --resume true (or auto)"
            )

    @staticmethod
    def _agreed(numbers: list[int], args: TrainingArguments) -> list[int]:
        """The largest of each number over the processes."""
        if args.world_size == 1:
            return numbers
        together = torch.tensor(numbers, device=args.device)
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
        return [int(number) for number in together.tolist()]


def _are_finite(model: Any) -> bool:
    """Whether all trained weights of this process are finite."""
    held = [getattr(weight, "ds_tensor", weight).detach() for weight in model.parameters() if weight.requires_grad]
    local = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in held]
    local = [weight for weight in local if weight.is_floating_point() and weight.numel()]
    return not local or math.isfinite(float(torch.nn.utils.get_total_norm(local, math.inf)))


def _name(number: int) -> str:
    return signal.Signals(number).name
