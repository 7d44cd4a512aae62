"""`gtpo compare` for real: cells in processes of their own, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from gtpo.tiny.families import get_family
from gtpo.tiny.model import make_model, make_tokenizer

FAMILY = get_family("hops")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that has learnt nothing, and problems."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = make_tokenizer(FAMILY.phrases)
    make_model(tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, seed in (("train", 1), ("held_out", 2)):
        rows = [
            {"id": p.id, "question": p.question, "answer": p.answer, "domain": p.domain, **p.extras}
            for p in FAMILY.make_problems(16, seed=seed)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_study(path, start, output, **changes):
    train = {
        "model": str(start / "model"),
        "train_file": str(start / "train.jsonl"),
        "tools": FAMILY.tools,
        "tool_format": "fenced",
        "system_prompt": "",
        "max_turns": 3,
        "max_turn_tokens": 6,
        "max_completion_length": 40,
        "num_generations": 2,
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "save_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    study = {
        "output": str(output),
        "train": {**train, **changes},
        "evaluate": {"problems": [str(start / "held_out.jsonl")]},
        "variants": {"grpo": {"algorithm": "grpo"}, "gtpo": {}},
        "seeds": [1],
    }
    path.write_text(yaml.safe_dump(study))
    return path


def compare(path, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "gtpo.cli", "compare", str(path), "--threads", "1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def figures_of(output, cell):
    folder = output / "cells" / cell
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/", "step_time")
    metrics = [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]
    result = json.loads((folder / "eval" / "result.json").read_text())
    return metrics, [sample["turns"] for sample in result["samples"]]


def test_a_killed_study_goes_on_and_comes_to_the_same_numbers(start, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = compare(write_study(tmp_path / "whole.yaml", start, whole), "--jobs", "2")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "[2/2]" in output

    path = write_study(tmp_path / "broken.yaml", start, broken)
    process = compare(path)
    deadline = time.monotonic() + 200
    while not list((broken / "cells").glob("*/checkpoints/checkpoint-2/trainer_state.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # the study alone: its cell has to notice
    process.communicate(timeout=60)
    assert not (broken / "cells" / "gtpo-1" / "cell.json").exists()

    process = compare(path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for cell in ("grpo-1", "gtpo-1"):
        assert figures_of(broken, cell) == figures_of(whole, cell)
    assert "2 of 2 cells are done" in (broken / "report.md").read_text()

    process = compare(path)
    output, _ = process.communicate(timeout=100)
    assert "2 cells, 2 done already" in output

    process = compare(write_study(path, start, broken, max_steps=5))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "was run with other options" in output


def test_a_cell_that_fails_is_named_with_its_last_word_and_the_others_are_run(start, tmp_path):
    path = write_study(tmp_path / "study.yaml", start, tmp_path / "out", max_steps=1)
    study = yaml.safe_load(path.read_text())
    study["variants"] = {"bad": {"gamma": 7.0}, "gtpo": {}}
    path.write_text(yaml.safe_dump(study))
    process = compare(path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "bad-1 FAILED" in output
    assert "gamma must be in [0, 1]" in output
    assert "1 of 2 cells are done" in (tmp_path / "out" / "report.md").read_text()
