"""The examples of rewards, turn rewards and tools of one's own train a tiny model."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from families import template_tokenizer

from gtpo.lab.tiny.model import make_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = (
    "max_steps=1, use_cpu=True, bf16=False, report_to='none', save_strategy='no', per_device_train_batch_size=8, "
    "max_turn_tokens=8, num_generations=4, "
)
NAMES = (
    *("graded_reward", "weighted_rewards", "turn_reward", "function_tool", "async_tool", "final_tool", "mcp_server"),
    *("environment", "dialogue_environment"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = template_tokenizer("qwen3.jinja")
    model = make_model(tokenizer, seed=0, hidden_size=32, layers=1)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains(name, model, tmp_path, monkeypatch):
    if name == "mcp_server":
        pytest.importorskip("mcp", reason="needs the extra: pip install 'gtpo[mcp]'")
    code = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"examples/{name}.py", str(model)])
    small = re.sub(r"max_steps=20,\s+num_generations=8,", SMALL, code)
    assert small != code
    found = {"__name__": "__main__", "__file__": str(EXAMPLES / f"{name}.py")}
    exec(compile(small, f"examples/{name}.py", "exec"), found)
    assert found["trainer"].state.global_step == 1
    wanted = {"weighted_rewards": "rewards/short/mean", "turn_reward": "turn_reward/brief"}
    wanted |= {"environment": "turn_reward/Safe", "dialogue_environment": "rewards/Riddle/mean"}
    assert wanted.get(name, "pass_rate") in found["trainer"].state.log_history[0]
