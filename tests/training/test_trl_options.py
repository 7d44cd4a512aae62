"""Nothing of TRL is accepted and ignored: each option and argument has its effect or is refused by name."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import ClassVar

import pytest
from quiet import QUIET
from trl import GRPOConfig, GRPOTrainer, ModelConfig, SFTConfig

from gtpo.cli import main
from gtpo.commands.model_options import load_model
from gtpo.errors import ConfigError
from gtpo.rollout import RolloutConfig
from gtpo.training.config import GTPOConfig
from gtpo.training.trainer import GTPOTrainer
from gtpo.training.trl_options import FIXED, REFUSED, REFUSED_ARGUMENTS

BY_US = {
    *(item.name for item in fields(RolloutConfig)),
    *(
        "output_dir",
        "model_init_kwargs",
        "reward_weights",
        "eval_strategy",
        "epsilon_high",
        "use_vllm",
        "use_cpu",
        "vllm_mode",
    ),
    *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout"),
    *("vllm_tensor_parallel_size", "vllm_enable_sleep_mode", "ds3_gather_for_generation", "log_completions"),
}
"""Options that our own code reads, with TRL's meaning."""
BY_TRL = {
    # what the loss is
    *("beta", "num_iterations", "epsilon", "delta", "importance_sampling_level", "loss_type", "top_entropy_quantile"),
    *("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg"),
    *("vespo_lambda_neg", "entropy_coef", "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max"),
    *("entropy_coef_delta", "entropy_target", "off_policy_mask_threshold", "use_bias_correction_kl"),
    *("router_aux_loss_coef", "cast_lm_head_to_fp32", "disable_dropout", "sync_ref_model", "ref_model_mixup_alpha"),
    *("ref_model_sync_steps", "use_liger_kernel", "liger_kernel_config"),
    *("vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max"),
    *("vllm_importance_sampling_clip_min", "vllm_importance_sampling_cap"),
    # how rollouts are grouped, and the engine of a colocated vLLM
    *("num_generations", "num_generations_eval", "generation_batch_size", "steps_per_generation", "shuffle_dataset"),
    *("pad_to_multiple_of", "vllm_model_impl", "vllm_group_port", "vllm_gpu_memory_utilization"),
    *("vllm_max_model_length", "trust_remote_code"),
    "learning_rate",
    # what is logged
    *("log_multimodal", "num_completions_to_print", "log_unique_prompts", "log_completions_hub_repo"),
}
"""Options of `GRPOConfig` itself that TRL reads on the way that our rollouts take."""


def trainer_options():
    """Options of transformers' `TrainingArguments`, which its trainer reads."""
    own = {name for kind in (GRPOConfig,) for name in inspect.get_annotations(kind)}
    return {item.name for item in fields(GRPOConfig)} - own


def test_every_option_of_grpo_config_has_its_effect_or_is_refused():
    named = BY_US | BY_TRL | set(REFUSED) | set(FIXED) | trainer_options()
    unnamed = {item.name for item in fields(GRPOConfig)} - named
    assert unnamed == set(), "decide for each: has it an effect (name it here) or not (gtpo.training.trl_options)?"
    assert not (BY_US | BY_TRL) & (set(REFUSED) | set(FIXED)), "an option is in both lists"


OTHER_VALUES = {
    "generation_kwargs": {"num_beams": 2},
    "cache_implementation": "static",
    "use_transformers_paged": True,
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"max_batch_tokens": 4},
    "vllm_structured_outputs_regex": ".*",
    "max_tool_calling_iterations": 3,
    "mask_truncated_completions": True,
    "resume_from_checkpoint": "runs/x",
    "data_seed": 3,
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "label_names": ["x"],
    "label_smoothing_factor": 0.1,
    "include_for_metrics": ["loss"],
    "batch_eval_metrics": True,
    "remove_unused_columns": True,
    "do_train": True,
    "do_predict": True,
    "enable_jit_checkpoint": True,
    "use_cache": True,
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_without_effect_are_refused_with_what_to_use(name):
    if name not in {item.name for item in fields(GRPOConfig)}:
        pytest.skip(f"this TRL has no {name}")
    with pytest.raises(ConfigError, match=f"{name} has no effect here: "):
        GTPOConfig(**{**QUIET, name: OTHER_VALUES[name]})


@pytest.mark.parametrize(
    ("name", "value"), [("scale_rewards", "none"), ("multi_objective_aggregation", "normalize_then_sum")]
)
def test_options_with_one_value_that_fits_are_refused_otherwise(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be"):
        GTPOConfig(**{**QUIET, name: value})


def test_every_argument_of_grpo_trainer_is_taken_or_refused():
    ours = inspect.signature(GTPOTrainer.__init__).parameters
    theirs = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert list(ours)[: len(theirs)] == theirs, "in TRL's order"
    assert set(REFUSED_ARGUMENTS) <= set(theirs)


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_arguments_without_effect_are_refused_with_what_to_use(name, small_model, tiny_tokenizer, config):
    with pytest.raises(ConfigError, match=f"takes no {name}: "):
        GTPOTrainer(small_model, args=config(), processing_class=tiny_tokenizer, **{name: print})


def test_an_evaluation_within_training_without_problems_is_refused(small_model, tiny_tokenizer, config):
    with pytest.raises(ConfigError, match=r"needs an eval_dataset.*use gtpo eval"):
        GTPOTrainer(small_model, args=config(eval_strategy="steps"), processing_class=tiny_tokenizer)


def test_the_first_argument_is_the_directory_of_the_run_as_in_trl(tmp_path):
    args = GTPOConfig(str(tmp_path / "out"), **QUIET)
    assert args.run_dir == str(tmp_path / "out")
    assert args.output_dir == str(tmp_path / "out" / "checkpoints"), "one folder holds all of the run"
    again = GTPOConfig(output_dir=args.output_dir, run_dir=args.run_dir, **QUIET)
    assert (again.run_dir, again.output_dir) == (args.run_dir, args.output_dir)
    with pytest.raises(ConfigError, match="name different directories"):
        GTPOConfig("one", run_dir="two", **QUIET)


MODEL_OPTIONS = {
    "model_revision": ("v2", "revision", "v2"),
    "dtype": ("bfloat16", "dtype", "torch.bfloat16"),
    "attn_implementation": ("eager", "attn_implementation", "eager"),
    "load_in_4bit": (True, "quantization_config", "load_in_4bit"),
    "load_in_8bit": (True, "quantization_config", "load_in_8bit"),
}
QUANTISATION = {"bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"}
PEFT = {"use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"}
PEFT |= {"lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"}


def test_every_option_of_model_config_has_its_effect():
    """Those of the adapter through TRL's `get_peft_config`, those of quantisation through `get_quantization_config`."""
    named = {"model_name_or_path", *MODEL_OPTIONS, *QUANTISATION, *PEFT}
    assert {item.name for item in fields(ModelConfig)} == named


@pytest.mark.parametrize("name", MODEL_OPTIONS)
def test_options_of_the_model_reach_its_loading(monkeypatch, name):
    seen = {}

    class Loaded:
        hf_device_map: ClassVar = {}

    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda path, **options: seen.update(options) or Loaded()
    )
    value, option, wanted = MODEL_OPTIONS[name]
    load_model(ModelConfig(model_name_or_path="/", **{name: value}), training=True, trust_remote_code=True)
    assert wanted in str(seen[option])
    assert seen["trust_remote_code"] is True


@pytest.mark.parametrize("command", ["train", "sft"])
def test_trust_remote_code_and_further_options_reach_the_model_of_a_command(monkeypatch, tmp_path, command):
    seen = []

    def load(name, **options):
        seen.append(options)
        raise ConfigError("seen")

    monkeypatch.setattr("gtpo.models.load_tokenizer", load)
    (tmp_path / "p.jsonl").write_text(
        '{"question": "1", "answer": "1", "messages": [{"role": "user", "content": "x"}]}\n'
    )
    data = "--train_file" if command == "train" else "--traces"
    argv = [command, "--model", "m/m", data, str(tmp_path / "p.jsonl"), "--run_dir", str(tmp_path / "r")]
    assert main([*argv, "--use_cpu", "true", "--bf16", "false", "--trust_remote_code", "true"]) == 2
    assert seen[0]["trust_remote_code"] is True


def test_the_cold_start_knows_what_its_base_has():
    assert "trust_remote_code" in {item.name for item in fields(SFTConfig)}
