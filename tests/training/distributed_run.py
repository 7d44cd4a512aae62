"""A short training run of one process among several; started by test_distributed with torchrun.

    torchrun --nproc_per_node 2 distributed_run.py RUN_DIR plain|peft

Writes what each process saw to RUN_DIR/process_N.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from judge import Passes, ended
from peft import LoraConfig
from quiet import QUIET
from transformers import TrainerCallback

from gtpo.errors import StoppedError
from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.rollout import build_prompts
from gtpo.sandbox import LocalSandbox
from gtpo.tasks.problems import Problem
from gtpo.training.config import GTPOConfig
from gtpo.training.data import problem_dataset
from gtpo.training.recorder import RunRecorder
from gtpo.training.run import train
from gtpo.training.trainer import GTPOTrainer


def main(run_dir: str, kind: str) -> None:
    tokenizer = make_tokenizer()
    problems = [Problem(id=f"p/{i}", question=f"{i}+{9 - i}", answer="9") for i in range(10)]
    options = dict(
        run_dir=run_dir,
        tool_format="fenced",
        system_prompt="",
        max_turns=2,
        max_turn_tokens=12,
        max_completion_length=64,
        num_generations=8,  # a group of 8 lies in two processes of 4 rollouts each
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=1e-3,
        turn_reward_funcs=["information_gain"],
        use_cpu=True,
        **QUIET,
        overwrite=True,
    )
    args = GTPOConfig(**options)
    model = make_model(tokenizer, seed=0, hidden_size=32, layers=2)
    seen = []

    class Watched(GTPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            credit, first = self._batch.credit, self._batch.first
            mine = credit.advantages_B_K[first : first + len(self._batch.trajectories)]
            seen.append(
                {
                    "first": first,
                    "groups": len(credit.accuracy_B),
                    "advantages": mine.tolist(),
                    "texts": [[turn.text for turn in t.turns] for t in self._batch.trajectories],
                    "all": credit.advantages_B_K.tolist(),
                }
            )
            return output

    trainer = Watched(
        model,
        args=args,
        train_dataset=problem_dataset(problems, build_prompts(args)),
        processing_class=tokenizer,
        sandbox=LocalSandbox(max_workers=1),
        verifier=Passes(ended),
        recorder=RunRecorder(run_dir),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if kind == "peft" else None,
    )
    before = _total(trainer)
    trainer.train()
    process = trainer.accelerator.process_index
    found = {
        "rounds": seen,
        "before": before,
        "after": _total(trainer),
        "processes": trainer.accelerator.num_processes,
    }
    if kind == "plain":
        found["stopped"] = stopped_and_gone_on_with(tokenizer, problems, {**options, "run_dir": f"{run_dir}/stopped"})
    Path(run_dir, f"process_{process}.json").write_text(json.dumps(found))
    trainer.accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


class Asked(TrainerCallback):
    """The second process is asked to end, in its second step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


CAN_GO_ON = find_spec("deepspeed") is None
"""With DeepSpeed a CPU's device is called cpu:0, under which torch 2.13 loads no optimizer of several processes."""


def stopped_and_gone_on_with(tokenizer: Any, problems: list[Problem], options: dict[str, Any]) -> tuple[str, int]:
    """What ended the run, and how many steps it has in the end: 3, or 2 where it can't be gone on with."""

    def run(*callbacks: Any) -> int:
        model = make_model(tokenizer, seed=0, hidden_size=32, layers=1)
        args = GTPOConfig(**{**options, "max_steps": 3, "overwrite": False})
        parts = {"sandbox": LocalSandbox(max_workers=1), "verifier": Passes(ended), "callbacks": callbacks}
        return train(model, tokenizer, problems, args, resume="auto", **parts).steps

    try:
        said = f"{run(Asked())} steps"
    except StoppedError as stopped:
        said = str(stopped)
    return said, run() if CAN_GO_ON else 2


def _total(trainer: GTPOTrainer) -> float:
    """A number that changes with any weight."""
    return sum(parameter.detach().double().abs().sum().item() for parameter in trainer.model.parameters())


if __name__ == "__main__":
    main(*sys.argv[1:])
