"""TRL options that would have no effect on our rollouts and our credit: each is refused by name.

All other options of `GRPOConfig` and `ModelConfig` and all other arguments of `GRPOTrainer` take effect, through TRL or
through gtpo; `tests/training/test_trl_options.py` requires each of them to be in one of the two lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from trl import GRPOConfig

from gtpo.errors import ConfigError

_TURNS = "rollouts have turns: use --max_turns, --max_turn_tokens and --max_completion_length"
_SAMPLING = "use --temperature, --top_p, --top_k, --min_p and --repetition_penalty"
_OWN_BATCHING = "generation in process batches continuously by itself: use --max_concurrency"
_NO_LABELS = "the loss is that of rollouts, which has no labels"
REFUSED: Mapping[str, str] = {
    "generation_kwargs": _SAMPLING,
    "cache_implementation": _OWN_BATCHING,
    "use_transformers_paged": _OWN_BATCHING,
    "use_transformers_continuous_batching": _OWN_BATCHING,
    "transformers_continuous_batching_config": _OWN_BATCHING,
    "vllm_structured_outputs_regex": "turns are free text with tool calls",
    "max_tool_calling_iterations": _TURNS,
    "mask_truncated_completions": "use --truncated_rollouts mask",
    "resume_from_checkpoint": "use --resume",
    "data_seed": "use --seed",
    "train_sampling_strategy": "problems are drawn in groups: use --shuffle_dataset",
    "length_column_name": "problems are drawn in groups",
    "label_names": _NO_LABELS,
    "label_smoothing_factor": _NO_LABELS,
    "include_for_metrics": _NO_LABELS,
    "batch_eval_metrics": _NO_LABELS,
    "remove_unused_columns": "the verifier reads the columns of a row",
    "do_train": "`gtpo train` trains; this flag is for scripts that read it",
    "do_predict": "use gtpo eval",
    "enable_jit_checkpoint": "SIGTERM, SIGUSR1 and SIGHUP always end a run with a checkpoint",
    "use_cache": "generation in process keeps its own cache",
}
"""Refused options by name, and what to use instead."""

_FOR_GROUPS = "GTPO normalises returns over the group"
FIXED: Mapping[str, tuple[Any, str]] = {
    "scale_rewards": ("group", f"{_FOR_GROUPS}; for GRPO without division use --algorithm dr_grpo"),
    "multi_objective_aggregation": ("sum_then_normalize", _FOR_GROUPS),
}
"""Options of which only one value works, and why."""

REFUSED_ARGUMENTS: Mapping[str, str] = {
    "rollout_func": "the trainer generates rollouts itself: give engine=",
}
"""Arguments of `GRPOTrainer` that `GTPOTrainer` does not take, and what to use instead."""


def check_options(args: GRPOConfig) -> None:
    """Refuse options without effect that differ from TRL's default.

    Raises:
        ConfigError: there is one; names it and what to use.
    """
    defaults = {item.name: _default(item) for item in fields(GRPOConfig)}
    for name, instead in REFUSED.items():
        if name in defaults and getattr(args, name) != defaults[name]:
            raise ConfigError(f"{name} has no effect here: {instead}")
    for name, (value, why) in FIXED.items():
        if getattr(args, name) != value:
            raise ConfigError(f"{name} must be {value!r}, got {getattr(args, name)!r}: {why}")


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse arguments of `GRPOTrainer` that have no effect.

    Raises:
        ConfigError: there is one; names it and what to use.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"GTPOTrainer takes no {name}: {REFUSED_ARGUMENTS[name]}")


def _default(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default
