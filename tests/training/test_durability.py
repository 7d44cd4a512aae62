"""No single fault loses a run: signals, kills and full disks at each phase, and what the same command makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gtpo._signals import STOPPED_STATUS
from gtpo.lab.tiny.families import get_family
from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.run_directory import RunFiles
from gtpo.training.checkpoints import sealed_checkpoints

FAMILY = get_family("hops")
STEPS = 4
JUDGE = """
def score(answer_text, problem):
    return float(bool(answer_text))
"""


@pytest.fixture(scope="module")
def server():
    """Runs one command at a time in a process of its own; its imports are paid for once."""
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("durable_run.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield process
    process.stdin.close()
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that has learnt nothing, problems, and the options of a run."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = make_tokenizer(FAMILY.phrases)
    make_model(tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [
        {"id": p.id, "question": p.question, "answer": p.answer, "domain": p.domain, **p.extras}
        for p in FAMILY.make_problems(16, seed=1)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text(JUDGE)
    return folder


class Runs:
    """Commands on one start; what they said is in `log`."""

    def __init__(self, server, start, folder):
        self.server, self.start, self.folder = server, start, folder
        self.log = folder / "log.txt"

    def command(self, argv, fault=None):
        self.log.write_text("")
        job = {"argv": [str(part) for part in argv], "log": str(self.log), "fault": fault}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def train(self, name="run", fault=None, **options):
        chosen = {
            "model": self.start / "model",
            "train_file": self.start / "train.jsonl",
            "run_dir": self.folder / name,
            "resume": "auto",
            "tools": FAMILY.tools,
            "verifier": f"{self.start / 'judge.py'}:score",
            "tool_format": "fenced",
            "max_turns": 3,
            "max_turn_tokens": 50,
            "max_completion_length": 60,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_steps": STEPS,
            "save_steps": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            **options,
        }
        flags = [part for key, value in chosen.items() for part in (f"--{key}", value)]
        return self.command(["train", "--system_prompt", "", *flags], fault)

    def said(self):
        return " ".join(self.log.read_text().split())

    def steps(self, name="run"):
        return [int(path.name.removeprefix("checkpoint-")) for path in sealed_checkpoints(self.folder / name / "checkpoints")]


def figures_of(folder):
    """What a run came to, but for times: metrics, rollouts, weights."""
    run = RunFiles(folder)
    metrics = [{k: v for k, v in line.items() if not k.startswith(("time/", "step_time"))} for line in run.metrics()]
    rollouts = {step: run.rollouts(step) for step in run.steps()}
    for row in (row for rows in rollouts.values() for row in rows):
        for turn in row["turns"]:
            turn.pop("tool_wall_s")
    return metrics, rollouts, (folder / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def runs(server, start, tmp_path):
    return Runs(server, start, tmp_path)


@pytest.fixture(scope="module")
def unbroken(server, start, tmp_path_factory):
    runs = Runs(server, start, tmp_path_factory.mktemp("unbroken"))
    assert runs.train() == 0, runs.log.read_text()
    found = figures_of(runs.folder / "run")
    assert [line["step"] for line in found[0]] == list(range(1, STEPS + 1))
    assert all(line["grad_norm"] > 0 for line in found[0]), "something is learnt in every step"
    return found


KILLS = [
    # place, step, whole checkpoints that it leaves
    ("rollouts", 1, []),
    ("rollouts", 3, [2]),
    ("update", 3, [2]),
    ("record", 3, [2]),
    ("checkpoint", 2, []),
    ("end of checkpoint", 4, [2]),
    ("final save", 4, [2, 4]),
    ("end of final save", 4, [2, 4]),
]


@pytest.mark.parametrize(("at", "step", "left"), KILLS)
def test_a_killed_run_goes_on_with_the_same_command_and_ends_as_an_unbroken_one(runs, unbroken, at, step, left):
    assert runs.train(fault={"at": at, "step": step, "signal": signal.SIGKILL}) == -signal.SIGKILL
    assert runs.steps() == left
    assert runs.train() == 0, runs.said()
    assert figures_of(runs.folder / "run") == unbroken
    assert not list((runs.folder / "run").rglob(".*.partial"))


SIGNALS = [
    # place, step, signal, whole checkpoints that it leaves
    ("rollouts", 1, signal.SIGUSR1, [1]),
    ("rollouts", 3, signal.SIGTERM, [2, 3]),
    ("update", 3, signal.SIGHUP, [2, 3]),
    ("record", 1, signal.SIGTERM, [1]),
    ("checkpoint", 2, signal.SIGTERM, [2]),
    ("end of checkpoint", 2, signal.SIGUSR1, [2]),
]


@pytest.mark.parametrize(("at", "step", "number", "left"), SIGNALS)
def test_a_signal_ends_the_step_with_a_checkpoint_and_status_75(runs, unbroken, at, step, number, left):
    assert runs.train(fault={"at": at, "step": step, "signal": number}) == STOPPED_STATUS, runs.said()
    assert f"stopped by {number.name} after step {left[-1]} of {STEPS}" in runs.said()
    assert runs.steps() == left
    assert not (runs.folder / "run" / "model").exists()
    assert runs.train() == 0, runs.said()
    assert figures_of(runs.folder / "run") == unbroken


@pytest.mark.parametrize(("at", "step"), [("update", 4), ("final save", 4)])
def test_a_signal_in_the_last_step_or_after_it_lets_the_run_end(runs, unbroken, at, step):
    assert runs.train(fault={"at": at, "step": step, "signal": signal.SIGTERM}) == 0, runs.said()
    assert figures_of(runs.folder / "run") == unbroken


def test_a_second_signal_ends_the_process_at_once_and_one_right_after_the_first_does_not(runs, unbroken):
    twice = {"at": "update", "step": 3, "signals": [signal.SIGTERM, signal.SIGTERM]}
    assert runs.train("first", fault={**twice, "between_s": 0.7}) == 128 + signal.SIGTERM
    assert runs.steps("first") == [2]
    assert runs.train("second", fault=twice) == STOPPED_STATUS
    assert runs.steps("second") == [2, 3]
