"""`gtpo study` for real: cells in processes of their own, killed and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from gtpo._signals import STOPPED_STATUS
from gtpo.cli import main
from gtpo.errors import DataError
from gtpo.lab.study import read_study, run_cells
from gtpo.lab.tiny.families import get_family
from gtpo.lab.tiny.model import make_model, make_tokenizer

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
        [sys.executable, "-m", "gtpo.cli", "study", str(path), "--threads", "1", *options],
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


def wait_for(process, folder, pattern):
    deadline = time.monotonic() + 200
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def done(start, tmp_path_factory):
    """The file and the output of a study that nothing happened to."""
    folder = tmp_path_factory.mktemp("done")
    path = write_study(folder / "study.yaml", start, folder / "out")
    process = compare(path, "--jobs", "2")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "[2/2]" in output
    return path, folder / "out"


def test_a_killed_study_goes_on_and_comes_to_the_same_numbers(start, done, tmp_path, capsys):
    _, whole = done
    broken = tmp_path / "broken"
    path = write_study(tmp_path / "broken.yaml", start, broken)
    process = compare(path)
    wait_for(process, broken, "cells/*/checkpoints/checkpoint-1/manifest.json")
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does it: the study, the server of its cells, and the cell
    output, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED_STATUS, output
    assert "grpo-1 stopped" in output
    assert "stopped by SIGTERM; 2 of 2 cells are left" in output
    assert "stopped by SIGTERM after step" in (broken / "cells" / "grpo-1" / "log.txt").read_text()

    process = compare(path)
    wait_for(process, broken, "cells/grpo-1/checkpoints/checkpoint-3/trainer_state.json")
    os.kill(process.pid, signal.SIGKILL)  # the study alone: its cell has to notice
    process.communicate(timeout=60)
    assert not (broken / "cells" / "gtpo-1" / "cell.json").exists()

    process = compare(path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for cell in ("grpo-1", "gtpo-1"):
        assert figures_of(broken, cell) == figures_of(whole, cell)
    assert "2 of 2 cells are done" in (broken / "report.md").read_text()

    assert main(["study", str(path)]) == 0
    assert "2 cells, 2 done already" in capsys.readouterr().err
    assert main(["study", str(write_study(path, start, broken, max_steps=5))]) == 2
    assert "its training was done with other options" in capsys.readouterr().err


def test_a_cell_that_fails_is_named_with_its_last_word_and_the_others_are_run(start, tmp_path):
    path = write_study(tmp_path / "study.yaml", start, tmp_path / "out", max_steps=1)
    study = yaml.safe_load(path.read_text())
    study["variants"] = {"bad": {"model": str(tmp_path / "nowhere")}, "gtpo": {}}
    path.write_text(yaml.safe_dump(study))
    process = compare(path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "bad-1 FAILED" in output
    assert "nowhere: no such folder" in output
    assert "1 of 2 cells are done" in (tmp_path / "out" / "report.md").read_text()


def changed(path, **changes):
    study = yaml.safe_load(path.read_text())
    for part, options in changes.items():
        study[part] |= options
    path.write_text(yaml.safe_dump(study))
    return path


def unreadable(cells):
    raise DataError("no text", path="problems.jsonl", line=3)


def test_a_fault_that_the_check_finds_is_told_as_if_it_ran_here(start, tmp_path):
    study = read_study(write_study(tmp_path / "study.yaml", start, tmp_path / "out"))
    with pytest.raises(DataError, match=r"^problems\.jsonl:3: no text$"):
        run_cells(study.cells, check=unreadable)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluate": {"tempratur": 0.5}}, "evaluate, variant grpo: unknown key 'tempratur'"),
        ({"train": {"gamm": 0.5}}, "train, variant grpo: unknown key 'gamm'"),
        ({"variants": {"gtpo": {"gamma": 7.0}}}, "train, variant gtpo: gamma must be in [0, 1]"),
        ({"evaluate": {"problems": ["nowhere.jsonl"]}}, "nowhere.jsonl: no such problem file"),
    ],
)
def test_a_slip_in_the_study_file_is_found_before_anything_is_trained(start, tmp_path, changes, said, capsys):
    path = changed(write_study(tmp_path / "study.yaml", start, tmp_path / "out"), **changes)
    assert main(["study", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_cell_killed_after_its_last_checkpoint_does_not_train_further(done):
    path, out = done
    cell = out / "cells" / "gtpo-1"
    before = figures_of(out, "gtpo-1")
    weights = (cell / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(cell / "model")
    (cell / "eval" / "result.json").unlink()
    (cell / "cell.json").unlink()
    (cell / "checkpoints" / "checkpoint-5").mkdir()  # what a kill left of one more
    process = compare(path)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert figures_of(out, "gtpo-1") == before
    assert (cell / "model" / "model.safetensors").read_bytes() == weights
    assert not (cell / "checkpoints" / "checkpoint-5").exists()


def test_a_report_of_cells_with_other_options_is_refused_and_names_the_part(done, tmp_path, capsys):
    path, _ = done
    other = tmp_path / "study.yaml"
    other.write_text(path.read_text())
    changed(other, train={"learning_rate": 0.5})
    assert main(["study", str(other), "--report_only", "true"]) == 2
    assert "its training was done with other options" in capsys.readouterr().err
    other.write_text(path.read_text())
    changed(other, evaluate={"temperature": 0.5})
    assert main(["study", str(other), "--report_only", "true"]) == 2
    assert "its evaluation was done with other options" in capsys.readouterr().err
