"""The identity of a run: its settings, problems and model. A resumed run must have the same, or records the changes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gtpo._files import fingerprint
from gtpo.tasks.problems import Problem

_SAMPLED_VALUES = 256
_FREE = """
    output_dir run_dir overwrite resume resume_with_changes resume_from_checkpoint do_train do_eval do_predict
    save_only_model save_strategy save_steps save_minutes save_on_each_node save_total_limit enable_jit_checkpoint
    load_best_model_at_end metric_for_best_model greater_is_better restore_callback_states_from_checkpoint
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level
    log_level_replica log_completions log_multimodal num_completions_to_print log_unique_prompts
    log_completions_hub_repo include_num_input_tokens_seen disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id skip_memory_metrics debug
    eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start eval_packing
    eval_do_concat_batches eval_use_gather_object eval_accumulation_steps num_generations_eval bf16_full_eval
    fp16_full_eval prepare_only
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    use_cpu local_rank torch_empty_cache_steps activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs activation_offloading ds3_gather_for_generation
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataset_num_proc
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port
    vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_enable_sleep_mode vllm_sync
    sandbox sandbox_require max_concurrency record_every record_max_tokens max_failed_fraction max_failed_batches
    trust_remote_code model_name_or_path model_revision attn_implementation
"""
FREE = frozenset(_FREE.split())
"""Settings that decide where and how a run is executed, not what is learnt: they may change when it is resumed."""
HASHED = ("problems", "traces", "weights", "adapter")
"""Parts of a run's identity that config.yaml stores as hashes."""
_LENGTH = ("max_steps", "num_train_epochs")
_CONSTANT = ("constant", "constant_with_warmup")


@dataclass(frozen=True)
class Difference:
    """One difference between a run and its record.

    Attributes:
        name: the setting.
        before: its value in config.yaml.
        now: its value now.
    """

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        if self.name in HASHED:
            return f"the {self.name} (other contents)"
        return f"{self.name} (was {_shown(self.before)}, now {_shown(self.now)})"


def problems_id(problems: Sequence[Problem]) -> str:
    """A hash of the problems of a run, by their contents and order."""
    return _hash([asdict(problem) for problem in problems])


def traces_id(traces: Sequence[Any]) -> str:
    """A hash of the traces of a cold start, by their contents and order."""
    return _hash(list(traces))


def model_id(model: Any) -> str | None:
    """A hash of the model that a run starts from, by names, shapes and a sample of the values of its weights.

    Args:
        model: a model, or a folder or Hub id; the result is None for a Hub id.
    """
    if isinstance(model, str):
        return fingerprint(model)
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        digest.update(f"{name} {tuple(weights.shape)} {weights.dtype}".encode())
        if weights.device.type != "meta" and weights.numel():
            values = weights.detach().flatten()[:: max(1, weights.numel() // _SAMPLED_VALUES)]
            digest.update(values.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_id(peft_config: Any) -> str | None:
    """A hash of the configuration of an adapter; None if there is none."""
    return _hash(peft_config.to_dict()) if peft_config is not None else None


def settings_of(args: Any) -> dict[str, Any]:
    """All settings in the form that config.yaml stores."""
    settings: dict[str, Any] = json.loads(json.dumps(args.to_dict(), default=str))
    return settings


def differences(document: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The differences between a new run and the existing one.

    Args:
        document: config.yaml of the existing run.
        now: the same for the new run, as far as it is known; missing parts are not compared.
    """
    now = json.loads(json.dumps(now, default=str))
    found = []
    for part in ("identity", "model", "demo", "config"):
        before, asked = document.get(part), now.get(part)
        if not isinstance(before, Mapping) or not isinstance(asked, Mapping):
            continue
        for name in sorted(before.keys() & asked.keys() - FREE):
            if not _equal(before[name], asked[name]):
                found.append(Difference(name, before[name], asked[name]))
    settings = now.get("config", {})
    if settings.get("lr_scheduler_type") in _CONSTANT:  # then a longer run has the same steps, and more of them
        found = [item for item in found if item.name not in _LENGTH]
    return found


def _equal(before: Any, now: Any) -> bool:
    if isinstance(before, float) and isinstance(now, float) and math.isnan(before) and math.isnan(now):
        return True
    return bool(before == now)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda item: sorted(item) if isinstance(item, set) else str(item))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
