"""Two steps on rollouts that are given, by one process or several; started by test_distributed with accelerate.

    accelerate launch --config_file FILE --num_processes N same_update_run.py FOLDER PROCESSES ALGORITHM ...

Writes what was computed to FOLDER/ALGORITHM_of_PROCESSES.pt: the rewards, advantages and losses of all rollouts
in their order, and the weights before and after, put together.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import gather_object
from judge import Passes
from quiet import QUIET

from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.rollout import build_prompts
from gtpo.rollout.one_rollout import Clock
from gtpo.sandbox import LocalSandbox
from gtpo.tasks.problems import Problem
from gtpo.training import config
from gtpo.training.config import GTPOConfig
from gtpo.training.data import problem_dataset
from gtpo.training.trainer import GTPOTrainer
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn

BATCH, GROUP, STEPS = 12, 4, 2
"""Three groups of four: two processes of six rollouts cut the middle one."""


class Given:
    """In the place of the rollout engine: rollout i of step s is the same whoever makes it."""

    environments, clock = None, Clock()

    def __init__(self, tokenizer):
        self.tokenizer, self.step = tokenizer, 0

    @asynccontextmanager
    async def session(self, backend, rollouts, **_):
        self.step += 1
        yield self

    def start(self, number, prompt, row, on_rollout_end):
        async def made():
            return self.rollout(self.step, self.first + number, prompt)

        return asyncio.ensure_future(made())

    def rollout(self, step, number, prompt):
        rng = random.Random(f"{step} {number}")
        turns = []
        for last in [False] * rng.randint(0, 3) + [True]:
            ids = tuple(rng.randrange(4, len(self.tokenizer)) for _ in range(rng.randint(2, 9)))
            call = InvalidCall("made up") if rng.random() < 0.3 else ToolCall(f"print({rng.randint(0, 3)})")
            seen = None if last else Observation("1", ("ok",), tuple(range(5, 5 + rng.randint(1, 4))))
            turns.append(Turn("yes" if rng.random() < 0.5 else "no", ids, () if last else (call,), seen))
        tool_failure = rng.random() < 0.1
        text = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        prompt_ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Trajectory(prompt_ids, tuple(turns), StopReason.TOOL_FAILURE if tool_failure else StopReason.ANSWER)


def spread_on_cpu() -> None:
    """Let accelerate take its way to FSDP and DeepSpeed: without an accelerator it goes to DDP whatever it is told."""
    kind = DistributedType.MULTI_GPU
    PartialState._prepare_backend = lambda self, cpu, sagemaker, backend=None: ("gloo", kind)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    config.apply_defaults = lambda args, default: setattr(args, "output_dir", str(Path(args.run_dir) / "checkpoints"))


def main(folder: str, processes: str, *algorithms: str) -> None:
    sharded = bool({"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(os.environ))
    if sharded:
        spread_on_cpu()
    for algorithm in algorithms:
        update(folder, processes, algorithm, sharded)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def update(folder: str, processes: str, algorithm: str, sharded: bool) -> None:
    tokenizer = make_tokenizer()
    problems = [Problem(id=f"p/{i}", question=f"{i}+{9 - i}", answer="9") for i in range(10)]
    args = GTPOConfig(
        run_dir=str(Path(folder, f"{algorithm}_run_of_{processes}")),
        algorithm=algorithm,
        tool_format="fenced",
        system_prompt="",
        max_completion_length=128,
        num_generations=GROUP,
        per_device_train_batch_size=BATCH // int(processes),
        max_steps=STEPS,
        learning_rate=1.0,
        optim="sgd",  # Adam divides by gradients that may be nothing but rounding
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        use_cpu=not sharded,
        **QUIET,
        overwrite=True,
    )
    found = {"advantages": [], "rewards": [], "losses": []}

    class Watched(GTPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            advantages = output["advantages"].tolist()
            found["advantages"].append(gather_object(advantages))
            found["rewards"].append(self._batch.credit.rewards_B_K.tolist())
            return output

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            found["losses"].append(self.accelerator.gather(loss.detach().reshape(1)).mean().item())
            return loss

    model = make_model(tokenizer, seed=0, hidden_size=32, layers=2)
    dataset = problem_dataset(problems, build_prompts(args))
    trainer = Watched(
        model,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        sandbox=LocalSandbox(max_workers=1),
        verifier=Passes(lambda text: text == "yes"),
    )
    trainer.engine = Given(tokenizer)
    trainer.engine.first = trainer.accelerator.process_index * (BATCH // int(processes))
    trainer.engine.encoder = None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    after = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        kind = trainer.accelerator.distributed_type.value
        torch.save(
            {**found, "before": before, "after": after, "kind": kind}, Path(folder, f"{algorithm}_of_{processes}.pt")
        )
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
