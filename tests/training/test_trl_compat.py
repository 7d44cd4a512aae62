"""Each of TRL's internals that we use is there, in the TRL that is installed; a failure names its version."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import pytest
import trl
from transformers import Trainer
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, get_config_model_id

import gtpo.training
from gtpo.training.trl_compat import TRLTrainer

HERE = f"TRL {trl.__version__}: "
PARAMETERS = {
    GRPOTrainer._generate_and_score_completions: ["self", "inputs"],
    GRPOTrainer._calculate_rewards: ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    GRPOTrainer._get_train_sampler: ["self", "dataset"],
    RepeatSampler.__init__: [
        "self", "data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed",
    ],
    unwrap_model_for_generation: ["model", "accelerator", "gather_deepspeed3_params"],
    get_config_model_id: ["config"],
}  # fmt: skip
ATTRIBUTES = {
    "_step", "_buffered_inputs", "_last_loaded_step", "_metrics", "_logs", "_tokenizer", "rollout_func",
    "use_vllm", "vllm_generation", "num_generations", "num_generations_eval", "num_iterations", "reward_funcs",
    "reward_processing_classes", "reward_func_names", "reward_weights", "log_completions", "environments",
}  # fmt: skip
OUTPUT = ("completion_ids", "completion_mask", "tool_mask", "importance_sampling_ratio", "advantages")
ROLLOUT = ("prompt_ids", "completion_ids", "logprobs", "env_mask")


@pytest.mark.parametrize("function", PARAMETERS, ids=lambda function: function.__qualname__)
def test_functions_take_what_we_give_them(function):
    found = list(inspect.signature(function).parameters)
    assert found[: len(PARAMETERS[function])] == PARAMETERS[function], f"{HERE}{function.__qualname__}"


def assigned(cls):
    """The attributes that the methods of a class assign to its objects."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    stored = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in stored if isinstance(node.value, ast.Name) and node.value.id == "self"}


def test_attributes_that_we_read_or_set_are_those_that_trl_uses():
    there = assigned(GRPOTrainer) | {"_tokenizer"} if hasattr(GRPOTrainer, "_tokenizer") else assigned(GRPOTrainer)
    assert not ATTRIBUTES - there, f"{HERE}GRPOTrainer no longer has {sorted(ATTRIBUTES - there)}"
    assert "_train_batch_size" in assigned(Trainer), f"{HERE}Trainer no longer has _train_batch_size"


@pytest.mark.parametrize("name", OUTPUT)
def test_the_batch_has_the_entries_that_we_read_or_replace(name):
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert f'"{name}"' in source, f"{HERE}no {name!r} in the batch"
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    assert name == "completion_ids" or f'"{name}"' in loss, f"{HERE}the loss does not use {name!r}"


@pytest.mark.parametrize("name", ROLLOUT)
def test_a_rollout_function_gives_the_entries_that_trl_reads(name):
    assert f'"{name}"' in inspect.getsource(GRPOTrainer._generate), f"{HERE}rollout_func: {name!r} is not read"


def test_weights_are_sent_once_per_step_whoever_sends_them():
    source = inspect.getsource(GRPOTrainer._generate)
    guard, sent = (source.index(part) for part in ("!= self._last_loaded_step", "self.vllm_generation.sync_weights()"))
    assert guard < sent < source.index("self.rollout_func("), f"{HERE}weights are sent in another way"


def test_only_the_compatibility_module_touches_internals():
    private = {name for name in ATTRIBUTES if name.startswith("_")} | {
        "_train_batch_size", "_calculate_rewards", "_generate_and_score_completions", "_get_train_sampler",
    }  # fmt: skip
    private -= {"_step"}  # a name of our own classes, too
    folder = Path(gtpo.training.__file__).parent
    for path in folder.glob("*.py"):
        if path.name == "trl_compat.py":
            continue
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & private, f"{path.name}: use TRLTrainer's names for {sorted(names & private)}"


def test_the_supported_range_holds_the_installed_version():
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    wanted = next(Requirement(line) for line in requires("gtpo") if Requirement(line).name == "trl")
    assert wanted.specifier.contains(trl.__version__), f"{HERE}outside of {wanted}"
    assert issubclass(TRLTrainer, GRPOTrainer)
