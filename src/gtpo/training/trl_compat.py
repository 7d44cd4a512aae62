"""What leans on TRL, transformers and accelerate: filling in arguments, several processes, saving what was trained."""

from __future__ import annotations

import inspect
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import AutoPeftModelForCausalLM
from torch import Tensor
from transformers import AutoConfig
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, get_config_model_id

from gtpo._files import partial_folder, replace_folder
from gtpo._malloc import keep_freed_memory
from gtpo.errors import ConfigError
from gtpo.run_directory import CHECKPOINTS
from gtpo.training.checkpoints import is_write_failure, write_failure

logger = logging.getLogger(__name__)
T = TypeVar("T")

_SAVING = timedelta(hours=4)


__all__ = [
    "RandomState",
    "RepeatSampler",
    "TRLTrainer",
    "apply_defaults",
    "gather_on_main",
    "get_config_model_id",
    "is_peft_model",
    "longest_context",
    "on_main",
    "save_policy",
    "send_weights",
    "unwrapped_for_generation",
    "whole_weights",
]


class TRLTrainer(GRPOTrainer):
    """`GRPOTrainer`, with names for those of its internals that we use: no other module touches them.

    `tests/training/test_trl_compat.py` checks each of them against the TRL that is installed.
    """

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self.score_batch(inputs)

    def score_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Rollouts, rewards and advantages of the rows of one generation batch, as the loss takes them."""
        return cast("dict[str, Any]", super()._generate_and_score_completions(inputs))

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return self.order_of(cast(RepeatSampler, super()._get_train_sampler(dataset)))

    def order_of(self, sampler: RepeatSampler) -> Any:
        """The sampler of the training data, given TRL's."""
        return sampler

    def call_reward_functions(
        self, rows: list[Any], prompts: list[Any], completions: list[Any], completion_ids: list[Any]
    ) -> Tensor:
        """What each reward function gives the rollouts of all processes, shape (B, functions); NaN for None."""
        return cast(Tensor, self._calculate_rewards(rows, prompts, completions, completion_ids))

    @property
    def own_metrics(self) -> Any:
        """What is averaged and logged next, by name: of training or, in the middle of an evaluation, of that."""
        return self._metrics["train" if cast(Any, self.model).training else "eval"]

    @property
    def logged_table(self) -> Any:
        """The columns of the table of `log_completions`, by name."""
        return self._logs

    @property
    def buffered(self) -> tuple[int, Any]:
        """Micro-steps done, and the generation batch that the next ones train on; None before the first."""
        return self._step, self._buffered_inputs

    @buffered.setter
    def buffered(self, value: tuple[int, Any]) -> None:
        self._step, self._buffered_inputs = value

    @property
    def weights_sent_at(self) -> int:
        """The optimizer step whose weights vLLM samples from; -1: none was sent."""
        return cast(int, self._last_loaded_step)

    @weights_sent_at.setter
    def weights_sent_at(self, step: int) -> None:
        self._last_loaded_step = step

    @property
    def rows_per_batch(self) -> int:
        """Rollouts of this process in a generation batch."""
        return cast(int, self._train_batch_size) * (cast(Any, self.args).steps_per_generation or 1)

    @property
    def tokenizer_of_policy(self) -> Any:
        """The tokenizer, also of a processor."""
        return self._tokenizer


def apply_defaults(args: Any, default_run_dir: str) -> None:
    """Fill in, before TRL checks its arguments, what follows from the run's directory and the machine.

    `output_dir`, TRL's name for the directory of a run, may be given in place of `run_dir`; checkpoints go into a
    folder of it. Without an accelerator TRL wants to be told that the CPU is meant before it computes in bfloat16
    there, and the allocator is told to keep what was freed.

    Raises:
        ConfigError: both are given and differ.
    """
    checkpoints = str(Path(args.run_dir) / CHECKPOINTS)
    if args.output_dir not in (None, checkpoints):
        if args.run_dir not in (default_run_dir, args.output_dir):
            raise ConfigError(
                f"run_dir {args.run_dir!r} and output_dir {args.output_dir!r} name different directories; give one"
            )
        args.run_dir = args.output_dir
    args.output_dir = str(Path(args.run_dir) / CHECKPOINTS)
    if not torch.accelerator.is_available():
        args.use_cpu = True
        keep_freed_memory()


def save_policy(trainer: Any, run_dir: str | Path) -> Path:
    """Save what was trained to `<run_dir>/model`, as a whole model that any library loads.

    A PEFT adapter is saved to `<run_dir>/adapter` as it is, and merged in float32 into a copy of its base for `model`:
    in bfloat16 most of a small change would be rounded away. The copy is loaded anew, on the CPU; a base that was
    never on disk can't be, and then the adapter is all that is saved. All processes wait until it is there, however
    long that takes: a barrier of NCCL would give up after its time limit.

    Each folder is written beside its place and moved there, so none is ever half written.

    Returns:
        The folder of the model, or of the adapter if there is no model.

    Raises:
        RecordError: it can't be written. The checkpoints are as they were.
    """
    patient = _patient_group()
    places = {name: partial_folder(Path(run_dir) / name) for name in ("model", "adapter")}
    if trainer.accelerator.is_main_process:
        for folder in places.values():
            shutil.rmtree(folder, ignore_errors=True)
    _wait_in(patient)  # else a process that comes late would delete what another is writing
    try:
        saved = _save_policy(trainer, places["model"], places["adapter"])
        _wait_in(patient)
        if trainer.accelerator.is_main_process:
            for name, folder in places.items():
                if folder.is_dir():
                    replace_folder(Path(run_dir) / name, folder)
    except Exception as error:
        for folder in places.values():
            shutil.rmtree(folder, ignore_errors=True)
        if is_write_failure(error):
            raise write_failure(
                Path(run_dir) / "model", error, "give the same command with --resume true: it saves the last checkpoint"
            ) from error
        raise
    _wait_in(patient)
    return Path(run_dir) / next(name for name, folder in places.items() if folder == saved)


def _wait_in(group: Any) -> None:
    if group is not None:
        torch.distributed.barrier(group)


def _patient_group() -> Any:
    """A process group whose barrier waits for hours; None where there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.new_group(backend="gloo", timeout=_SAVING)


def on_main(compute: Callable[[], T]) -> T:
    """What the main process computes, on every process: so an endpoint is asked once, and all see one answer.

    Raises:
        Exception: what the main process raised.
    """
    state = PartialState()
    if state.num_processes == 1:
        return compute()
    found: list[Any] = [None]
    if state.is_main_process:
        try:
            found = [compute()]
        except Exception as error:
            found = [error]
    (result,) = broadcast_object_list(found)
    if isinstance(result, Exception):
        raise result
    return cast(T, result)


def gather_on_main(items: list[T]) -> list[T]:
    """The items of all processes on the main one, those of this process alone on the others."""
    state = PartialState()
    if state.num_processes == 1:
        return items
    gathered: list[Any] | None = [None] * state.num_processes if state.is_main_process else None
    torch.distributed.gather_object(items, gathered, dst=0)
    return [item for part in gathered for item in part] if gathered is not None else items


@dataclass(frozen=True)
class RandomState:
    """States of the generators that a checkpoint keeps; nothing to restore by default."""

    python: Any = None
    numpy: Any = None
    cpu: Any = None
    cuda: Any = None

    @classmethod
    def now(cls) -> RandomState:
        """As they are."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """As they were."""
        if self.cpu is None:
            return
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


def send_weights(trainer: TRLTrainer) -> None:
    """Have vLLM sample from the weights as they are, before rollouts are begun. TRL does the same later, if need be."""
    if trainer.use_vllm and trainer.state.global_step != trainer.weights_sent_at:
        trainer.vllm_generation.sync_weights()
        trainer.weights_sent_at = trainer.state.global_step


def unwrapped_for_generation(trainer: Any) -> AbstractContextManager[Any]:
    """TRL's `unwrap_model_for_generation` with the trainer's options; the second came with TRL 1.16."""
    options = {
        "gather_deepspeed3_params": trainer.args.ds3_gather_for_generation,
        "gradient_checkpointing_kwargs": trainer.args.gradient_checkpointing_kwargs,
    }
    known = inspect.signature(unwrap_model_for_generation).parameters
    chosen = {name: value for name, value in options.items() if name in known}
    return unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, **chosen)


def _save_policy(trainer: Any, model_dir: Path, adapter_dir: Path) -> Path:
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if not is_peft_model(policy):
        trainer.save_model(str(model_dir))
        return model_dir
    trainer.save_model(str(adapter_dir))
    if not policy.active_peft_config.base_model_name_or_path:
        logger.warning("the base of the adapter has no name or folder: saved the adapter, merged nothing")
        return adapter_dir
    if trainer.accelerator.is_main_process:
        base_dtype = policy.get_base_model().dtype
        merged = AutoPeftModelForCausalLM.from_pretrained(adapter_dir, dtype=base_dtype).float().merge_and_unload()
        merged.save_pretrained(str(model_dir))
        trainer.processing_class.save_pretrained(str(model_dir))
    return model_dir


@contextmanager
def whole_weights(model: Any, *, gathered: bool = False) -> Iterator[None]:
    """Inside, a forward pass of one process needs no other process.

    Rollouts go each at its own pace, so processes make different numbers of passes; weights that are spread over
    processes (FSDP 2) are put together before, and spread again afterwards.

    Args:
        model: as accelerate wrapped it.
        gathered: DeepSpeed ZeRO-3's weights have been put together by TRL.

    Raises:
        ConfigError: the wrapper has no way to do that: FSDP 1, or ZeRO-3 with `ds3_gather_for_generation` off.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

        if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
            raise ConfigError(
                "a process that computes on its own (rollouts in process, information_gain) needs FSDP 2 (fsdp_config: "
                "{version: 2}); rollouts may also use --use_vllm true"
            )
        if not gathered and any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise ConfigError(
                "a process that computes on its own (rollouts in process, information_gain) needs "
                "--ds3_gather_for_generation true under ZeRO-3; rollouts may also use --use_vllm true"
            )
        spread = [module for module in model.modules() if isinstance(module, FSDPModule)]
    else:
        spread = []
    for module in spread:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in spread:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)  # torch keeps the root's whole


def longest_context(model: Any, args: Any) -> int:
    """Longest context that the rollouts of a run can have, as far as it is known before they start, in tokens.

    Args:
        model: a model, or a folder or Hub id.
        args: a `GTPOConfig`; `max_context` bounds it.
    """
    config = AutoConfig.from_pretrained(model) if isinstance(model, str) else model.config
    stated = getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31
    return min(args.max_context or stated, stated)


def is_peft_model(model: Any) -> bool:
    """Whether a model is a base with an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")
