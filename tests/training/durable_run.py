"""Commands of `gtpo` in processes forked from one that has the libraries loaded, with a fault at a chosen place.

    python durable_run.py

Reads a job a line from its input, as JSON, and writes its exit status as a line: {"argv": [...], "log": FILE, "fault":
{"at": PLACE, "step": N, WHAT}}. WHAT is "signals": those that the process gets at that place; "file_bytes": what files
can't grow beyond from there on, as on a full disk; or "delete": a folder.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

import gtpo.rollout.choosing  # noqa: F401 (takes a second)
import gtpo.training.durable as durable
import gtpo.training.recorder as recorder
import gtpo.training.trl_compat as trl_compat
from gtpo.cli import main as gtpo_main
from gtpo.commands import demo, evaluate, sft, train  # noqa: F401 (loaded once, before anything is forked)
from gtpo.evaluation.journal import Journal
from gtpo.training.progress import StepProgress

PLACES = {
    "rollouts": (StepProgress, "within_phase"),
    "update": (durable.DurableTrainer, "_get_grad_norm"),
    "after update": (Trainer, "_get_learning_rate"),
    "record": (recorder, "write_bytes"),
    "checkpoint": (Trainer, "_save_optimizer_and_scheduler"),
    "end of checkpoint": (durable, "seal"),
    "final save": (trl_compat, "_save_policy"),
    "end of final save": (trl_compat, "replace_folder"),
    "sample": (Journal, "add"),
}
"""Where a fault strikes: just before this is called."""


def inject(fault: dict[str, Any]) -> None:
    """Make the fault happen at its place, once, from its step on."""
    owner, name = PLACES[fault["at"]]
    original = getattr(owner, name)
    steps = {"now": 0, "struck": 0}
    honest_step = durable.DurableTrainer.training_step

    def training_step(self, *args, **kwargs):
        steps["now"] = self.state.global_step + 1
        return honest_step(self, *args, **kwargs)

    def struck(*args, **kwargs):
        if steps["now"] >= fault.get("step", 0) and not steps["struck"]:
            steps["struck"] = 1
            strike(fault)
        return original(*args, **kwargs)

    durable.DurableTrainer.training_step = training_step
    setattr(owner, name, struck)


def strike(fault: dict[str, Any]) -> None:
    if "delete" in fault:
        shutil.rmtree(fault["delete"])
    if "file_bytes" in fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["file_bytes"], resource.RLIM_INFINITY))
    for number in fault.get("signals", ()):
        os.kill(os.getpid(), number)
        time.sleep(fault.get("between_s", 0.1))  # until the thread that reads signals has read it


def run(job: dict[str, Any], output: int) -> int:
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    if job.get("fault"):
        inject(job["fault"])
    return gtpo_main(job["argv"])


def main() -> None:
    gc.collect()
    gc.freeze()  # children need not look through what was loaded
    for line in sys.stdin:
        job = json.loads(line)
        read, write = os.pipe()  # a file could not grow where the disk is full
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = run(job, write)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        os.close(write)
        with os.fdopen(read, "rb") as output:
            Path(job["log"]).write_bytes(output.read())
        _, ended = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    main()
