"""The scripts of docs/from-trl.md run, and differ by the lines that the page says."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest
from families import template_tokenizer

from gtpo.lab.tiny.model import make_model

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "from-trl.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```", PAGE, flags=re.S))


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """A script made small: a tiny model with the template of Qwen 3."""
    tokenizer = template_tokenizer("qwen3.jinja")
    model = make_model(tokenizer, seed=0, hidden_size=32, layers=1)
    model.config.max_position_embeddings = 2048
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    small = "per_device_train_batch_size=4, use_cpu=True, bf16=False, report_to='none', save_strategy='no', "
    small += "logging_steps=1, "

    def of(name: str) -> str:
        script = SCRIPTS[name].replace('"MODEL"', '"model"').replace('output_dir="out",', f'output_dir="out", {small}')
        return script.replace("max_completion_length=64", "max_completion_length=12").replace("(12, 20)", "(12, 14)")

    return of


def test_three_lines_differ():
    lines = [SCRIPTS[name].splitlines() for name in ("trl", "gtpo")]
    changed = [line for line in difflib.ndiff(*lines) if line.startswith("+ ")]
    assert len(changed) == 3, changed


@pytest.mark.parametrize("name", ["trl", "gtpo"])
def test_the_script_trains(ready, name):
    found: dict = {}
    exec(compile(ready(name), f"docs/from-trl.md, {name}", "exec"), found)
    assert found["trainer"].state.global_step == 2


def test_turn_rewards_are_one_more_argument(ready):
    script = ready("gtpo").replace("trainer.train()\n", "") + ready("turns")
    found: dict = {}
    exec(compile(script, "docs/from-trl.md, turns", "exec"), found)
    found["trainer"].train()
    assert "turn_reward/brief" in found["trainer"].state.log_history[0]
