"""Where a model goes, in which number format, and what is said when it can't be loaded."""

from __future__ import annotations

import time

import pytest
import torch
from trl import ModelConfig

from gtpo import models
from gtpo.commands.backends import BackendArguments, make_backend
from gtpo.commands.model_options import GenerationModelConfig, load_model
from gtpo.errors import ConfigError
from gtpo.lab.tiny.model import make_model
from gtpo.models import Placement, placement
from gtpo.rollout import RolloutConfig


@pytest.fixture
def accelerator(monkeypatch):
    """A device that is not the CPU, on a machine that has none."""
    device = torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
    return device


@pytest.fixture(scope="module")
def half_precision_model(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("half") / "model"
    make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=1).bfloat16().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("dtype", "training", "expected"),
    [
        (None, True, Placement(None, "float32")),
        ("bfloat16", True, Placement(None, "bfloat16")),
        (None, False, Placement(torch.device("meta"), "auto")),
        ("float16", False, Placement(torch.device("meta"), "float16")),
    ],
)
def test_generation_uses_the_accelerator_and_a_trainer_moves_the_model_itself(accelerator, dtype, training, expected):
    assert placement(dtype, training=training) == expected


def test_without_an_accelerator_a_model_stays_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert placement(None, training=False) == Placement(None, "auto")


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="--dtype int8: must be one of auto, float32"):
        placement("int8", training=True)


def test_what_gtpo_eval_generates_with_is_on_the_accelerator_in_the_checkpoints_own_format(
    accelerator, half_precision_model, tiny_tokenizer
):
    args = GenerationModelConfig(model_name_or_path=half_precision_model)
    backend = make_backend(BackendArguments(), RolloutConfig(max_concurrency=3), args, tiny_tokenizer)
    assert {p.device.type for p in backend.model.parameters()} == {"meta"}
    assert {p.dtype for p in backend.model.parameters()} == {torch.bfloat16}
    assert backend.batch_size == 3


def test_a_trainer_gets_float32_on_the_cpu(accelerator, half_precision_model):
    model = load_model(ModelConfig(model_name_or_path=half_precision_model), training=True)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.float32)}


def test_a_model_of_the_hub_without_a_network_fails_in_seconds(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    models._hub_answers.cache_clear()
    start = time.monotonic()
    for load in (models.load_tokenizer, models.load_model):
        with pytest.raises(ConfigError, match=r"--model nobody/nothing: .* the Hugging Face Hub does not answer"):
            load("nobody/nothing")
    models._hub_answers.cache_clear()
    assert time.monotonic() - start < 20, "far from the minute that retries of every file take"
