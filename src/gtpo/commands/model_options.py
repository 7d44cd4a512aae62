"""The options of a model, shared by the subcommands that load one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.nn import Linear
from trl import ModelConfig, get_peft_config, get_quantization_config

from gtpo import models
from gtpo.errors import ConfigError
from gtpo.rollout.config import PromptConfig
from gtpo.run_directory import read_config


@dataclass
class GenerationModelConfig(ModelConfig):
    """Model."""

    dtype: str | None = field(
        default="auto",
        metadata={"help": "Data type of the weights: auto (the checkpoint's own), float32, bfloat16 or float16."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow running code that comes with the model."})


def load_tokenizer(model_args: ModelConfig, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of `--model`; see `gtpo.models`."""
    return models.load_tokenizer(
        model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=trust_remote_code
    )


def load_model(
    model_args: ModelConfig,
    *,
    training: bool = False,
    trust_remote_code: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Any:
    """The weights of `--model`, in the data type and quantisation that the options set; see `gtpo.models`.

    Args:
        model_args: the options.
        training: whether the model is for a trainer.
        trust_remote_code: whether the model's own code may be run.
        more: further options of `from_pretrained`.

    Raises:
        ConfigError: the model can't be loaded.
    """
    return models.load_model(
        model_args.model_name_or_path,
        training=training,
        dtype=model_args.dtype,
        revision=model_args.model_revision,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
        trust_remote_code=trust_remote_code or None,
        **(more or {}),
    )


def adapter_config(model_args: ModelConfig, model: Any) -> Any:
    """The LoRA configuration of `--use_peft`; None without it.

    Raises:
        ConfigError: the model has no module of a name in `--lora_target_modules`.
    """
    config: Any = get_peft_config(model_args)
    targets = config.target_modules if config is not None else None
    if targets is None or targets == "all-linear":
        return config
    if isinstance(targets, str) and targets.isidentifier():  # TRL takes a list of one name for a pattern
        config.target_modules = targets = {targets}
    names = {targets: targets} if isinstance(targets, str) else {name: rf"(.*\.)?{re.escape(name)}" for name in targets}
    modules = dict(model.named_modules())
    for name, pattern in sorted(names.items()):
        if not any(re.fullmatch(pattern, module) for module in modules):
            linear = {module.rpartition(".")[2] for module, layer in modules.items() if isinstance(layer, Linear)}
            known = ", ".join(sorted(linear))
            raise ConfigError(
                f"lora_target_modules: the model has no module {name}; give all-linear, or some of: {known}"
            )
    return config


def unlike_training(model: str | None, args: PromptConfig) -> str | None:
    """A sentence if the prompt options differ from those that a model was trained with; None if equal or unknown.

    Args:
        model: folder or Hub id; a run of `gtpo sft`, `train` or `demo` leaves its model in `RUN_DIR/model`.
        args: the prompt options now.
    """
    folder = Path(model or "")
    try:
        trained = read_config(folder.parent).get("config") if folder.name == "model" else None
        if not isinstance(trained, dict) or not set(_TOLD) <= set(trained):
            return None
        before = _told(PromptConfig(**{name: trained[name] for name in _TOLD}))
    except ConfigError:  # it may be anybody's file
        return None
    now = _told(args)
    if "auto" in (before["tool_format"], now["tool_format"]):  # may well be the same one
        before["tool_format"] = now["tool_format"]
    unlike = [name for name in _TOLD if before[name] != now[name]]
    if not unlike:
        return None
    was, new = (", ".join(_option(name, told[name]) for name in unlike) for told in (before, now))
    return f"note: {model} was trained with {was}; now it has {new}. The model may not know how to use that"


_TOLD = ("system_prompt", "tools", "environment", "tool_format", "chat_template_kwargs")
"""Options of `PromptConfig` that decide what the model reads and what it should write."""


def _told(args: PromptConfig) -> dict[str, Any]:
    return {**{name: getattr(args, name) for name in _TOLD}, "tools": ",".join(args.tool_names()) or "none"}


def _option(name: str, value: Any) -> str:
    return f"the default {name}" if value is None else f"{name} {value!r}"


def take_model_options(args: Any) -> dict[str, Any]:
    """The trainer's `model_init_kwargs`, for the command to use when it loads the model.

    They are removed from the arguments, since TRL would warn that it ignores them. What a reference model needs stays.

    Args:
        args: a trainer's configuration.
    """
    options = dict(args.model_init_kwargs or {})
    args.model_init_kwargs = dict(options) if getattr(args, "beta", 0) and options else None
    return options
