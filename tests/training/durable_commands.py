"""Commands of `gtpo` with faults at chosen places (`durable_run.py`), on a start that has learnt nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def command_server():
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


def make_start(folder):
    """A model that has learnt nothing, problems, and a verifier."""
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
        return [
            int(path.name.removeprefix("checkpoint-"))
            for path in sealed_checkpoints(self.folder / name / "checkpoints")
        ]


def figures_of(folder):
    """What a run came to, but for times: metrics, rollouts, weights."""
    run = RunFiles(folder)
    metrics = [{k: v for k, v in line.items() if not k.startswith(("time/", "step_time"))} for line in run.metrics()]
    rollouts = {step: run.rollouts(step) for step in run.steps()}
    for row in (row for rows in rollouts.values() for row in rows):
        for turn in row["turns"]:
            turn.pop("tool_wall_s")
    return metrics, rollouts, (folder / "model" / "model.safetensors").read_bytes()
