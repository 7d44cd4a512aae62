"""The sections of gpu.py: what each section runs, and the lines that it adds to the report."""

from __future__ import annotations

import gc
import hashlib
import json
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "smollm2-gsm8k"
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    rollouts: int
    micro_batch: int
    completion: int
    turn: int
    steps: int
    problems: int
    cold_start: Mapping[str, Any]
    study_steps: int
    seeds: tuple[int, ...]
    loop: tuple[str, ...]
    random: Mapping[str, int]


FULL = Size(
    rollouts=64,
    micro_batch=16,
    completion=512,
    turn=256,
    steps=4,
    problems=200,
    cold_start={"max_traces": None, "num_train_epochs": 2, "per_device_train_batch_size": 32},
    study_steps=30,
    seeds=(1, 2),
    loop=("--cases", "A1,B1", "--rounds", "2", "--continuous-rounds", "0"),
    random={
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
)
DRY = Size(
    rollouts=8,
    micro_batch=4,
    completion=24,
    turn=12,
    steps=2,
    problems=4,
    cold_start={"max_traces": 16, "num_train_epochs": 1, "per_device_train_batch_size": 8},
    study_steps=1,
    seeds=(1,),
    loop=("--cases", "B2", "--rounds", "1", "--continuous-rounds", "0", "--rollouts", "8"),
    random={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
)


@dataclass(frozen=True)
class Job:
    """What a section is run on."""

    output: Path
    model: Path
    data: Path | None
    size: Size
    device: str

    @property
    def questions(self) -> Path:
        """Problems of any kind: what is measured on them is speed."""
        path = self.output / "questions.jsonl"
        if not path.exists():
            rows = [{"question": f"What is {n} times {n + 7}?", "answer": str(n * (n + 7))} for n in range(64)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def options(self, run: str, *more: str, model: Path | None = None) -> list[str]:
        """Those of `gtpo train` that all measured runs share."""
        size = self.size
        options = {
            "model": model or self.model,
            "train_file": self.questions,
            "run_dir": self.output / "runs" / run,
            "overwrite": "true",
            "tool_format": "fenced",
            "reward_funcs": f"{__file__}:by_chance",
            "max_steps": size.steps,
            "num_generations": 8,
            "per_device_train_batch_size": size.micro_batch,
            "gradient_accumulation_steps": size.rollouts // size.micro_batch,
            "max_concurrency": size.rollouts,
            "max_completion_length": size.completion,
            "max_turn_tokens": size.turn,
            "dtype": "float32",
            "bf16": str(self.device == "cuda").lower(),
            "gradient_checkpointing": "false",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": "true",
            "seed": 1,
        }
        return [*(word for name, value in options.items() for word in (f"--{name}", str(value))), *more]


def by_chance(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward for every other completion, by its text: groups have a spread, so that all rollouts are trained on."""
    digests = (hashlib.sha256(json.dumps(completion, default=str).encode()).digest() for completion in completions)
    return [float(digest[0] % 2) for digest in digests]


def steps(job: Job) -> list[str]:
    """Speed and memory of training."""
    random = random_model(job)
    adapter = ("--use_peft", "true", "--lora_r", "16", "--lora_target_modules", "all-linear")
    sides = {
        "whole weights": job.options("whole"),
        "LoRA": job.options("lora", *adapter),
        "1.5B shape, LoRA": job.options("lora-1.5b", *adapter, "--gradient_checkpointing", "true", model=random),
    }
    lines = [
        "| run | s per step | rollouts, s | update, s | sampled tokens per second | peak GiB, update | planned | "
        "peak GiB, rollouts | planned |",
        "|---" * 9 + "|",
    ]
    for name, options in sides.items():
        row, peaks = train_measured(job, options)
        planned = plan(job, options)
        kept = row[1:] or row  # the first step warms up
        rollout_s, update_s = (median(line[f"time/{part}_s"] for line in kept) for part in ("rollout", "update"))
        tokens = fmean(line["completions/mean_length"] for line in kept) * job.size.rollouts
        cells = [
            f"{median(line['step_time'] for line in kept):.2f}",
            f"{rollout_s:.2f}",
            f"{update_s:.2f}",
            f"{tokens / rollout_s:.0f}",
            *(
                text
                for part in ("training", "rollout")
                for text in (f"{peaks[part] / GIB:.2f}", f"{sum(planned[part + '_gib'].values()):.2f}")
            ),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def train_measured(job: Job, options: list[str]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The lines of metrics, and the device's peak memory while it updates and while it generates (0 on a CPU)."""
    import torch

    from gtpo.commands.model_options import adapter_config, load_model, load_tokenizer
    from gtpo.commands.train import arguments
    from gtpo.run_directory import read_metrics
    from gtpo.tasks.sources import problems_from
    from gtpo.training.run import train
    from gtpo.training.trainer import GTPOTrainer

    problem_args, args, model_args = arguments(options)
    peaks = {"training": 0, "rollout": 0}
    generate = GTPOTrainer._generate_and_score_completions

    def lap(part: str | None) -> None:
        if job.device == "cuda":
            if part:
                peaks[part] = max(peaks[part], torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()

    def timed(self: GTPOTrainer, inputs: Any) -> Any:
        lap("training" if self.state.global_step else None)
        found = generate(self, inputs)
        lap("rollout")
        return found

    model = load_model(model_args, training=True)
    with patch.object(GTPOTrainer, "_generate_and_score_completions", timed):
        train(
            model,
            load_tokenizer(model_args),
            problems_from(problem_args.train_file),
            args,
            peft_config=adapter_config(model_args, model),
        )
    del model
    lap("training")
    gc.collect()
    if job.device == "cuda":
        torch.cuda.empty_cache()
    return [line for line in read_metrics(args.run_dir) if "time/update_s" in line], peaks


def plan(job: Job, options: list[str]) -> dict[str, Any]:
    """What `gtpo plan` says of these options."""
    from gtpo.commands.plan import main as plan_main

    path = job.output / "plan.json"
    plan_main([*options, "--device", "h200", "--prompt_tokens", "64", "--output", str(path)])
    return json.loads(path.read_text())["plan"]


def random_model(job: Job) -> Path:
    """A model that has learnt nothing, with the shape of Qwen2.5-1.5B and the tokenizer of the job's model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    folder = job.output / "random"
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(job.model)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
            **job.size.random,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def loop(job: Job) -> list[str]:
    """Rollouts per second beside TRL's."""
    path = job.output / "loop.rows.json"
    sys.argv = ["rollouts.py", "--model", str(job.model), *job.size.loop, "--output", str(path)]
    try:
        runpy.run_path(str(ROOT / "benchmarks" / "rollouts.py"), run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise
    lines = ["| comparison | ratio, by round | ours, sampled tokens per second | TRL's |", "|---" * 4 + "|"]
    for row in json.loads(path.read_text())["rows"]:
        rates = [fmean(row["detail"][f"{side}sampled_tokens_per_s"]) for side in ("", "peer_")]
        values = ", ".join(f"{value:.2f}" for value in row["values"])
        lines.append(f"| {row['what']} | {values} | {rates[0]:.0f} | {rates[1]:.0f} |")
    return lines


def evaluated(job: Job, name: str, model: Path, problems: Path, *more: str) -> dict[str, Any]:
    """The result of `gtpo eval`."""
    path = job.output / f"{name}.eval.json"
    dtype = "bfloat16" if job.device == "cuda" else "float32"
    limits = ("--max_completion_length", str(job.size.completion), "--max_turn_tokens", str(job.size.turn))
    command("eval", "--model", model, "--problems", problems, "--output", path, "--dtype", dtype, *limits, *more)
    return json.loads(path.read_text())


def evaluate(job: Job) -> list[str]:
    """Speed of an evaluation."""
    options = ("--max_problems", str(job.size.problems), "--tool_format", "fenced")
    result = evaluated(job, "evaluate", job.model, job.questions, *options)
    seconds, tokens = result["seconds"]["wall"], result["sampled_tokens_per_rollout"] * result["rollouts"]
    return [f"{result['rollouts']} rollouts in {seconds:.1f} s: {tokens / seconds:.0f} sampled tokens per second"]


def determinism(job: Job) -> list[str]:
    """Two runs with one seed."""
    runs = []
    for name in ("first", "second"):
        options = job.options(name, "--deterministic", "true", "--max_steps", "2")
        lines, _ = train_measured(job, options)
        figures = [
            {key: value for key, value in line.items() if not key.startswith(("time/", "step_time"))} for line in lines
        ]
        weights = (job.output / "runs" / name / "model" / "model.safetensors").read_bytes()
        runs.append((figures, hashlib.sha256(weights).hexdigest()))
    (figures, weights), (other_figures, other_weights) = runs
    apart = sorted({key for a, b in zip(figures, other_figures, strict=True) for key in a if a[key] != b.get(key)})
    return [
        f"figures of two steps: {'equal' if not apart else 'differ in ' + ', '.join(apart)}",
        f"weights after them: {'equal' if weights == other_weights else 'differ'}",
    ]


def cold_start(job: Job) -> list[str]:
    """The cold start of recipes/smollm2-gsm8k on all worked solutions."""
    assert job.data is not None
    options = yaml.safe_load((RECIPE / "cold_start.yaml").read_text())
    traces, config = job.output / "traces.jsonl", job.output / "cold_start.yaml"
    if not traces.exists():
        solutions, most = job.data / "gsm8k_train.jsonl", job.size.cold_start["max_traces"]
        limit = () if most is None else ("--max_solutions", most)
        command("make-traces", "--solutions", solutions, "--output", traces, "--tool_format", "fenced", *limit)
    folder = job.output / "cold-start"
    options |= {"run_dir": str(folder), "traces": str(traces), "model": str(job.model), **job.size.cold_start}
    options |= {"bf16": job.device == "cuda", "gradient_accumulation_steps": 1}
    config.write_text(yaml.safe_dump(options))
    began = time.perf_counter()
    if not (folder / "model").exists():
        command("sft", "--config", config, "--resume", "auto")
    seconds = time.perf_counter() - began
    limits = yaml.safe_load((RECIPE / "gtpo.yaml").read_text())
    more = [word for name in ("tool_format", "system_prompt", "max_turns") for word in (f"--{name}", str(limits[name]))]
    svamp = job.data / "svamp.jsonl"
    result = evaluated(job, "cold_start", folder / "model", svamp, "--max_problems", str(job.size.problems), *more)
    return [
        f"{sum(1 for _ in traces.open())} traces, {seconds:.0f} s in this call; on SVAMP: pass rate "
        f"{result['pass_rate']:.3f}, {result['calls_per_rollout']:.2f} calls per rollout, of which "
        f"{result['invalid_calls_per_rollout']:.2f} invalid"
    ]


def study(job: Job) -> list[str]:
    """GRPO and the defaults from the cold start."""
    assert job.data is not None
    document = yaml.safe_load((RECIPE / "study.yaml").read_text())
    document["output"] = str(job.output / "study")
    del document["train"]["gamma"]  # that of the defaults of today
    document["train"] |= {
        "model": str(job.output / "cold-start" / "model"),
        "train_file": str(job.data / "gsm8k_train.jsonl"),
        "max_steps": job.size.study_steps,
        "bf16": job.device == "cuda",
        "disable_tqdm": True,
    }
    document["evaluate"] |= {"problems": [f"{job.data / 'svamp.jsonl'}?limit={job.size.problems}"]}
    if job.device != "cuda":
        document["train"] |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
        document["evaluate"] |= {"dtype": "float32"}
    document["variants"] = {"grpo": {"algorithm": "grpo"}, "defaults": {}}
    document["seeds"] = list(job.size.seeds)
    path = job.output / "study.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    command("study", path, "--jobs", 4)
    return (job.output / "study" / "report.md").read_text().splitlines()[1:]


def command(name: str, *words: object) -> None:
    """A command of gtpo's, in this process; a failure ends it."""
    from gtpo.cli import main as gtpo

    if status := gtpo([name, *map(str, words)]):
        sys.exit(status)


SECTIONS: dict[str, Callable[[Job], list[str]]] = {
    function.__name__: function for function in (steps, loop, evaluate, determinism, cold_start, study)
}
NEED_DATA = ("cold_start", "study")
