"""Code that relies on TRL, transformers and accelerate: default arguments, several processes, saving the model."""

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
    """`GRPOTrainer`, with names for the internals that we use; no other module accesses them.

    `tests/training/test_trl_compat.py` checks each of them against the installed TRL.
    """

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self.score_batch(inputs)

    def score_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Rollouts, rewards and advantages for the rows of one generation batch, in the form that the loss takes."""
        return cast("dict[str, Any]", super()._generate_and_score_completions(inputs))

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return self.order_of(cast(RepeatSampler, super()._get_train_sampler(dataset)))

    def order_of(self, sampler: RepeatSampler) -> Any:
        """The sampler of the training data, given TRL's."""
        return sampler

    def call_reward_functions(
        self, rows: list[Any], prompts: list[Any], completions: list[Any], completion_ids: list[Any]
    ) -> Tensor:
        """The reward of each function for the rollouts of all processes, shape (B, functions); NaN for None."""
        return cast(Tensor, self._calculate_rewards(rows, prompts, completions, completion_ids))

    @property
    def own_metrics(self) -> Any:
        """The values to be averaged and logged next, by name: those of training or, during an evaluation, of that."""
        return self._metrics["train" if cast(Any, self.model).training else "eval"]

    @property
    def logged_table(self) -> Any:
        """The columns of the table of `log_completions`, by name."""
        return self._logs

    @property
    def buffered(self) -> tuple[int, Any]:
        """Number of micro-steps done, and the generation batch that the next ones use; None before the first."""
        return self._step, self._buffered_inputs

    @buffered.setter
    def buffered(self, value: tuple[int, Any]) -> None:
        self._step, self._buffered_inputs = value

    @property
    def weights_sent_at(self) -> int:
        """The optimizer step whose weights vLLM samples from; -1 if none were sent."""
        return cast(int, self._last_loaded_step)

    @weights_sent_at.setter
    def weights_sent_at(self, step: int) -> None:
        self._last_loaded_step = step

    @property
    def rows_per_batch(self) -> int:
        """Number of rollouts of this process in a generation batch."""
        return cast(int, self._train_batch_size) * (cast(Any, self.args).steps_per_generation or 1)

    @property
    def tokenizer_of_policy(self) -> Any:
        """The tokenizer; for a processor, the processor's tokenizer."""
        return self._tokenizer


def apply_defaults(args: Any, default_run_dir: str) -> None:
    """Set defaults that follow from the run's directory and the machine, before TRL checks its arguments.

    `output_dir`, TRL's name for the directory of a run, may be given instead of `run_dir`; checkpoints go into a
    subfolder. Without an accelerator, `use_cpu` is set, which TRL requires for bfloat16 on a CPU, and the allocator is
    told to keep freed memory.

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
    """Save what was trained to `<run_dir>/model`, as a complete model that any library can load.

    A PEFT adapter is saved to `<run_dir>/adapter` as it is, and merged in float32 into a copy of its base for `model`:
    in bfloat16 most of a small change would be rounded away. The copy is loaded from disk, on the CPU; if the base was
    never on disk, only the adapter is saved. All processes wait until saving is done, however long it takes: an NCCL
    barrier would give up after its timeout.

    Each folder is written under another name and then moved into place, so none is ever half written.

    Returns:
        The folder of the model, or of the adapter if there is no model.

    Raises:
        RecordError: the model can't be written. The checkpoints are unchanged.
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
                Path(run_dir) / "model",
                error,
                "run the same command with --resume true, which saves the model of the last checkpoint",
            ) from error
        raise
    _wait_in(patient)
    return Path(run_dir) / next(name for name, folder in places.items() if folder == saved)


def _wait_in(group: Any) -> None:
    if group is not None:
        torch.distributed.barrier(group)


def _patient_group() -> Any:
    """A process group whose barrier waits for hours; None if there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.new_group(backend="gloo", timeout=_SAVING)


def on_main(compute: Callable[[], T]) -> T:
    """The main process's result, on every process: so an endpoint is asked once, and all processes see one answer.

    Raises:
        Exception: the exception of the main process.
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
    """On the main process, the items of all processes; on the others, their own items only."""
    state = PartialState()
    if state.num_processes == 1:
        return items
    gathered: list[Any] | None = [None] * state.num_processes if state.is_main_process else None
    torch.distributed.gather_object(items, gathered, dst=0)
    return [item for part in gathered for item in part] if gathered is not None else items


@dataclass(frozen=True)
class RandomState:
    """States of the random generators that a checkpoint stores; nothing to restore by default."""

    python: Any = None
    numpy: Any = None
    cpu: Any = None
    cuda: Any = None

    @classmethod
    def now(cls) -> RandomState:
        """The current states."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Restore the states."""
        if self.cpu is None:
            return
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


def send_weights(trainer: TRLTrainer) -> None:
    """Make vLLM sample from the current weights, before rollouts start. TRL does the same later if needed."""
    if trainer.use_vllm and trainer.state.global_step != trainer.weights_sent_at:
        trainer.vllm_generation.sync_weights()
        trainer.weights_sent_at = trainer.state.global_step


def unwrapped_for_generation(trainer: Any) -> AbstractContextManager[Any]:
    """TRL's `unwrap_model_for_generation` with the trainer's options; the second one is new in TRL 1.16."""
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
        logger.warning(
            "the base model of the adapter has no name or folder: the adapter was saved, but not merged into a model"
        )
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

    Each rollout runs at its own pace, so processes make different numbers of passes; weights that are sharded over
    processes (FSDP 2) are gathered before, and sharded again afterwards.

    Args:
        model: the model as wrapped by accelerate.
        gathered: whether TRL has gathered the weights of DeepSpeed ZeRO-3.

    Raises:
        ConfigError: the wrapper does not support this: FSDP 1, or ZeRO-3 with `ds3_gather_for_generation` off.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

        if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
            raise ConfigError(
                "rollouts in process and information_gain, where each process runs the model by itself, need FSDP 2 "
                "(fsdp_config: {version: 2}); rollouts may also use --use_vllm true"
            )
        if not gathered and any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise ConfigError(
                "rollouts in process and information_gain, where each process runs the model by itself, need "
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
    """Longest context of the rollouts of a run in tokens, as far as it is known before they start.

    Args:
        model: a model, or a folder or Hub id.
        args: a `GTPOConfig`; `max_context` limits the result.
    """
    config = AutoConfig.from_pretrained(model) if isinstance(model, str) else model.config
    stated = getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31
    return min(args.max_context or stated, stated)


def is_peft_model(model: Any) -> bool:
    """Whether a model is a base with an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")
