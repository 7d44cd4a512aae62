"""`gtpo plan`: shapes against real models, sums by hand, and what it says of options."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from gtpo.cli import main
from gtpo.errors import ConfigError
from gtpo.planning import HARDWARE, ModelShape, Workload, make_plan, shape_of
from gtpo.planning.hardware import GIB
from gtpo.planning.memory import Sharding, kv_bytes_per_token, layer_token_bytes, static_bytes
from gtpo.planning.shape import KNOWN, shape_of_config

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 128,
}


def models():
    llama = LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)
    wide = LlamaConfig(**SMALL, num_key_value_heads=4, head_dim=32, tie_word_embeddings=False)
    qwen = Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=False)
    return [LlamaForCausalLM(llama), LlamaForCausalLM(wide), Qwen2ForCausalLM(qwen)]


@pytest.mark.parametrize("which", range(3))
def test_weights_are_counted_as_the_model_has_them(which):
    model = models()[which]
    shape = shape_of_config(model.config)
    assert shape.parameters == model.num_parameters()
    adapter = get_peft_model(model, LoraConfig(r=5, target_modules=["q_proj", "down_proj"]))
    trained = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    assert shape.lora_parameters(5, ["q_proj", "down_proj"]) == trained
    whole = get_peft_model(models()[which], LoraConfig(r=3, target_modules="all-linear"))
    assert shape.lora_parameters(3, ["all-linear"]) == sum(p.numel() for p in whole.parameters() if p.requires_grad)


def test_known_models_have_the_sizes_that_their_names_say():
    billions = {name: shape.parameters / 1e9 for name, shape in KNOWN.items()}
    assert billions["Qwen/Qwen2.5-7B-Instruct"] == pytest.approx(7.6156, abs=1e-4)
    assert billions["Qwen/Qwen2.5-32B-Instruct"] == pytest.approx(32.7639, abs=1e-4)
    assert billions["Qwen/Qwen2.5-1.5B-Instruct"] == pytest.approx(1.5437, abs=1e-4)
    assert billions["meta-llama/Llama-3.1-8B-Instruct"] == pytest.approx(8.0303, abs=1e-4)
    assert billions["HuggingFaceTB/SmolLM2-135M-Instruct"] == pytest.approx(0.1345, abs=1e-4)


def test_keys_and_values_are_those_of_the_cache():
    model = models()[0]
    with torch.no_grad():
        cache = model(torch.arange(7)[None], use_cache=True).past_key_values
    held = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    assert 7 * kv_bytes_per_token(shape_of_config(model.config), element_bytes=4) == held


def test_what_a_layer_keeps_is_what_autograd_saves():
    """Without attention scores; counted by the hooks of autograd, each storage once."""
    model = models()[0].model
    shape = shape_of_config(model.config)
    tokens = 96
    kept = {}

    def save(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        out = model(torch.arange(tokens)[None], use_cache=False).last_hidden_state
    saved = sum(size for pointer, size in kept.items() if pointer not in own)
    assert out.requires_grad
    assert shape.layers * layer_token_bytes(shape, bits16=False) * tokens == pytest.approx(saved, rel=0.2)


def test_sharding_divides_what_it_spreads():
    shape = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    n = shape.parameters
    whole = static_bytes(shape, n, 2, 2, 4, Sharding.of("none", 8))
    assert whole == {"weights": 2 * n, "gradients": 2 * n, "optimizer": 4 * n}
    assert static_bytes(shape, n, 2, 2, 4, Sharding.of("zero2", 8)) == {
        "weights": 2 * n,
        "gradients": n / 4,
        "optimizer": n / 2,
    }
    assert sum(static_bytes(shape, n, 2, 2, 4, Sharding.of("fsdp2", 8)).values()) == n
    adapter = static_bytes(shape, 1000, 2, 4, 8, Sharding())
    assert adapter == {"weights": 2 * n + 4000, "gradients": 4000, "optimizer": 8000}


WORK = Workload(
    rollouts=64,
    micro_batch=2,
    prompt_tokens=512,
    completion_tokens=4096,
    mean_completion_tokens=1500,
    sharding="fsdp2",
    devices=8,
)


def test_more_devices_and_smaller_batches_take_less_memory_each():
    shape, device = KNOWN["Qwen/Qwen2.5-7B-Instruct"], HARDWARE["h100-80gb"]
    eight = make_plan(shape, WORK, device)
    sixteen = make_plan(shape, replace(WORK, devices=16), device)
    single = make_plan(shape, replace(WORK, micro_batch=1), device)
    assert sum(sixteen.training_gib.values()) < sum(eight.training_gib.values())
    assert single.training_gib["activations"] < eight.training_gib["activations"]
    assert sixteen.step_s["update"] == pytest.approx(eight.step_s["update"] / 2)
    assert eight.fits


def test_what_does_not_fit_is_named_with_what_helps():
    plan = make_plan(KNOWN["Qwen/Qwen2.5-7B-Instruct"], replace(WORK, devices=1, sharding="none"), HARDWARE["rtx4090"])
    assert not plan.fits
    assert "the largest part is optimizer; LoRA" in plan.problems[0]
    cramped = replace(WORK, generation="colocate", gpu_memory_utilization=0.2)
    plan = make_plan(KNOWN["Qwen/Qwen2.5-7B-Instruct"], cramped, HARDWARE["h100-80gb"])
    assert "no room for one rollout of 4,608 tokens" in plan.problems[0]
    assert plan.rollouts_at_once == 0


def test_times_by_hand():
    shape = ModelShape(layers=1, hidden=1000, mlp=1000, heads=10, kv_heads=1, head_dim=100, vocab=10, tied=True)
    work = Workload(
        rollouts=10,
        micro_batch=1,
        prompt_tokens=100,
        completion_tokens=100,
        mean_completion_tokens=100,
        turns=3,
        tool_s=2,
    )
    plan = make_plan(shape, work, replace(HARDWARE["l4"], tflops=1, bandwidth_gbs=1))
    n = shape.parameters
    assert plan.step_s["update"] == pytest.approx((6 + 2) * (n + 1000 * 200) * 10 * 200 / (1e12 * 0.35))
    assert plan.step_s["tools"] == 4
    assert plan.step_s["rollouts"] == pytest.approx(100 * (2 * n + 10 * 150 * 2 * 1 * 100 * 2) / 0.5e9)
    assert plan.tokens == 1000


def test_the_command_reads_the_options_of_train(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: Qwen/Qwen2.5-1.5B-Instruct\nuse_peft: true\nlora_r: 16\ndtype: bfloat16\nuse_vllm: true\n"
        "vllm_mode: server\nvllm_sync: nccl\nnum_generations: 8\nper_device_train_batch_size: 8\n"
        "gradient_accumulation_steps: 4\nmax_completion_length: 2048\nmax_turns: 6\nlearning_rate: 1.0e-5\n"
    )
    out = tmp_path / "plan.json"
    argv = ["plan", "--config", str(config), "--device", "a100-80gb", "--generation_devices", "1", "--output", str(out)]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "everything fits" in said
    assert "1.54 billion weights, 32 rollouts per step" in said
    document = json.loads(out.read_text())
    work = document["workload"]
    assert (work["trainable"], work["state_bytes"], work["weight_bytes"]) == (18464768, 8, 2)
    assert (work["turns"], work["mean_completion_tokens"]) == (3.0, 819)
    assert document["plan"]["server_gib"]["weights"] == pytest.approx(2 * KNOWN[document["model"]].parameters / GIB)


def planned(tmp_path, *options):
    out = tmp_path / "plan.json"
    main(["plan", "--model", "Qwen/Qwen2.5-1.5B-Instruct", "--num_generations", "8", "--output", str(out), *options])
    return json.loads(out.read_text())


def test_options_mean_what_the_host_makes_of_them(tmp_path, capsys):
    spread = ["--dtype", "bfloat16", "--devices", "2", "--sharding"]
    weights = {kind: planned(tmp_path, *spread, kind)["workload"]["weight_bytes"] for kind in ("zero3", "fsdp2")}
    assert weights == {"zero3": 2, "fsdp2": 4}, "accelerate trains float32 under FSDP 2"
    assert planned(tmp_path)["workload"]["passes"] == 0
    vllm = ["--use_vllm", "true", "--vllm_mode", "colocate"]
    served = planned(tmp_path, *vllm)
    assert served["workload"]["passes"] == 1, "TRL corrects for vLLM's log-probabilities"
    assert "vLLM's share" in served["plan"]["training_gib"]
    asleep = planned(tmp_path, *vllm, "--vllm_enable_sleep_mode", "true")
    assert "vLLM's share" not in asleep["plan"]["training_gib"]
    once, twice = (planned(tmp_path, "--num_iterations", str(n))["plan"]["step_s"]["update"] for n in (1, 2))
    assert twice == pytest.approx(once * (2 * 8 + 2) / 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "abacus"], "device: 'abacus' is unknown; known devices: rtx4090"),
        (["--model", "no/such-model-here"], "without a network these are known"),
        (["--use_vllm", "true", "--vllm_mode", "server"], "vllm_mode server needs --generation_devices"),
        (["--per_device_train_batch_size", "3"], "are not a multiple of num_generations"),
        (["--devices", "0"], "devices must be at least 1"),
        (["--use_peft", "true", "--lora_target_modules", "nose"], "lora_target_modules: nose: known are q_proj"),
    ],
)
def test_options_that_can_not_be_planned_are_refused(options, said, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    argv = ["plan", "--model", "Qwen/Qwen2.5-0.5B-Instruct", *options]
    assert main(argv) == 2
    assert said in capsys.readouterr().err


SCALE = Path(__file__).resolve().parents[2] / "recipes" / "scale"


@pytest.mark.parametrize("name", ["24gb", "node", "nodes"])
def test_the_recipes_fit_where_they_say(name, capsys):
    """With the command that stands at the top of each."""
    text = (SCALE / f"{name}.yaml").read_text()
    command = next(line for line in text.splitlines() if "gtpo plan" in line).split("gtpo plan")[1].split()
    command[1] = str(SCALE.parents[1] / command[1])
    assert main(["plan", *command]) == 0
    assert "everything fits" in capsys.readouterr().out


def test_a_mixture_of_experts_is_refused():
    with pytest.raises(ConfigError, match="mixture-of-experts"):
        shape_of_config(LlamaConfig(**SMALL, num_experts=4))
    assert shape_of("Qwen/Qwen2.5-7B-Instruct") is KNOWN["Qwen/Qwen2.5-7B-Instruct"]


@pytest.mark.parametrize(
    ("changes", "gb"),
    [
        ({"record_tokens": 0}, 512 * 8000 * 3.5 / 1e6),  # 14 GB, where plain files took 45
        ({}, 3.5),
        ({"record_every": 10}, 0.35),
        ({"record_every": 0}, 0.0),
        ({"rollouts": 8}, 8 * 8000 * 3.5 / 1e6),
    ],
)
def test_what_recorded_rollouts_take_on_disk_is_told(changes, gb):
    work = replace(WORK, **{"rollouts": 512, "mean_completion_tokens": 8000, **changes})
    assert make_plan(shape_of("Qwen/Qwen2.5-7B-Instruct"), work, HARDWARE["h100-80gb"]).recorded_gb == pytest.approx(gb)
