"""What both trainers have in common: settling the host's arguments, and saving what was trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM

from gtpo._malloc import keep_freed_memory
from gtpo.errors import ConfigError

logger = logging.getLogger(__name__)


def apply_defaults(args: Any) -> None:
    """Fill in, before the host checks its arguments, what follows from the run's directory and the machine.

    Checkpoints go into the run's directory. Without an accelerator the host wants to be told that the CPU is meant
    before it computes in bfloat16 there, and the allocator is told to keep what was freed.
    """
    if args.output_dir is None:
        args.output_dir = str(Path(args.run_dir) / "checkpoints")
    if not torch.accelerator.is_available():
        args.use_cpu = True
        keep_freed_memory()


def save_policy(trainer: Any, run_dir: str | Path) -> Path:
    """Save what was trained to `<run_dir>/model`, as a whole model that any library loads.

    A PEFT adapter is saved to `<run_dir>/adapter` as it is, and merged in float32 into a copy of its base for `model`:
    in bfloat16 most of a small change would be rounded away. The copy is loaded anew, on the CPU; a base that was
    never on disk can't be, and then the adapter is all that is saved. All processes wait until it is there.

    Returns:
        The folder of the model, or of the adapter if there is no model.
    """
    saved = _save_policy(trainer, Path(run_dir) / "model", Path(run_dir) / "adapter")
    trainer.accelerator.wait_for_everyone()
    return saved


def _save_policy(trainer: Any, model_dir: Path, adapter_dir: Path) -> Path:
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if not is_peft_model(policy):
        trainer.save_model(str(model_dir))
        return model_dir
    trainer.save_model(str(adapter_dir))
    if not policy.active_peft_config.base_model_name_or_path:
        logger.warning("the base of the adapter has no name or folder: saved %s, merged nothing", adapter_dir)
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
        gathered: DeepSpeed ZeRO-3's weights have been put together by the host.

    Raises:
        ConfigError: the wrapper has no way to do that: FSDP 1, or ZeRO-3 with `ds3_gather_for_generation` off.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

        if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
            raise ConfigError("rollouts in process need FSDP 2 (fsdp_config: {version: 2}), or --use_vllm true")
        if not gathered and any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise ConfigError(
                "rollouts in process under ZeRO-3 need --ds3_gather_for_generation true, or --use_vllm true"
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


def is_peft_model(model: Any) -> bool:
    """Whether a model is a base with an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")
