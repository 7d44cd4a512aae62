"""What rollouts from older weights cost in learning: --overlap 1 against 0 on the embedded default, equal rollouts.

    gtpo demo --run_dir FOLDER --prepare_only true
    python benchmarks/overlap_learning.py FOLDER OUTPUT_FOLDER [--seeds 1 2 3 4 5] [--steps 36]

Copies of the model in this process replace the vLLM server: a sync copies the weights, and rollouts are sampled from
the copy, with log-probabilities, in the overlap's thread. So the weights are as old as with a server, and TRL's
importance sampling correction is active on both sides. Each run ends with an evaluation on held-out problems. Finished
runs are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from gtpo.evaluation import evaluate, protocol_of
from gtpo.rollout import build_engine
from gtpo.rollout.backends import TransformersBackend
from gtpo.run_directory import read_metrics
from gtpo.tasks.problems import load_problems
from gtpo.tasks.verifiers import get_verifier
from gtpo.training import rolling_trainer
from gtpo.training.config import GTPOConfig
from gtpo.training.run import train


class Copies:
    """Takes the place of `AdapterSync`: samples from copies of the model."""

    def __init__(self, model: Any, accelerator: Any, *_: Any) -> None:
        self.model, self.accelerator = model, accelerator
        self.copy: Any = None

    def wrong_logprobs(self) -> None:
        """Nothing."""

    def sync_weights(self) -> None:
        """A copy as the model is now; one under way keeps its own."""
        self.copy = copy.deepcopy(self.accelerator.unwrap_model(self.model)).eval()
        self.copy.gradient_checkpointing_disable()

    @contextmanager
    def backend(self, tokenizer: Any) -> Iterator[TransformersBackend]:
        """Samples from the copy as it was synced last."""
        yield TransformersBackend(self.copy, batch_size=128)


def one(args: argparse.Namespace) -> None:
    """One run, in a process of its own; writes `result.json`."""
    torch.set_num_threads(1)
    rolling_trainer.AdapterSync = Copies  # type: ignore[misc, assignment]
    seed, overlap = args.one
    folder = args.output / f"overlap-{overlap}" / f"seed-{seed}"
    config = GTPOConfig(
        run_dir=str(folder),
        overwrite=True,
        seed=seed,
        use_vllm=True,
        vllm_mode="server",
        vllm_sync="adapter",
        vllm_importance_sampling_mode="token_truncate",
        overlap=overlap,
        tools="gtpo.lab.tiny.steps:Calculator",
        tool_format="fenced",
        system_prompt="",
        gamma=0.9,
        max_turns=8,
        max_turn_tokens=24,
        max_completion_length=192,
        tool_wall_s=4,
        tool_cpu_s=1,
        num_generations=8,
        per_device_train_batch_size=128,
        max_concurrency=128,
        max_steps=args.steps,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        record_every=0,
        report_to="none",
    )
    start = args.start / "cold-start" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    tokenizer.padding_side = "left"
    problems = {name: load_problems(args.start / "problems" / f"{name}.jsonl") for name in ("train", "held_out")}
    train(model, tokenizer, problems["train"], config, label=f"overlap {overlap}, seed {seed}")
    trained = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    backend = TransformersBackend(trained, batch_size=128)
    engine = build_engine(config, tokenizer)
    protocol = protocol_of(config, engine, problems["held_out"], seed=seed)
    result = evaluate(problems["held_out"], engine, backend, get_verifier("auto"), protocol)
    logs = [line for line in read_metrics(folder) if "staleness/max" in line]
    found = {
        "pass_rate": result.pass_rate,
        "curve": [line["pass_rate"] for line in logs],
        "staleness": logs[-1]["staleness/mean"],
        "frac_cut": fmean(line["sampling/importance_sampling_ratio/frac_cut"] for line in logs),
    }
    (folder / "result.json").write_text(json.dumps(found))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=Path, help="run directory of `gtpo demo --prepare_only true`")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args)
    found: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for seed in args.seeds:
        for overlap in found:
            path = args.output / f"overlap-{overlap}" / f"seed-{seed}" / "result.json"
            if not path.exists():
                command = [sys.executable, __file__, str(args.start), str(args.output), "--steps", str(args.steps)]
                subprocess.run([*command, "--one", str(seed), str(overlap)], check=True)
            found[overlap].append(json.loads(path.read_text()))
    values = {
        "pass rate": lambda run: run["pass_rate"],
        "mean training pass rate": lambda run: fmean(run["curve"]),
    }
    for name, value in values.items():
        before, after = ([value(run) for run in runs] for runs in found.values())
        gaps = [with_overlap - without for without, with_overlap in zip(before, after, strict=True)]
        width = stats.t.ppf(0.975, len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5
        interval = f"{fmean(gaps):+.4f} [{fmean(gaps) - width:+.4f}, {fmean(gaps) + width:+.4f}]"
        by_seed = ", ".join(f"{gap:+.3f}" for gap in gaps)
        print(f"{name}: {fmean(before):.3f} and {fmean(after):.3f}, difference {interval}, by seed {by_seed}")
    cut = [fmean(run["frac_cut"] for run in runs) for runs in found.values()]
    print(f"staleness {[runs[0]['staleness'] for runs in found.values()]}, share of importance ratios cut {cut}")


if __name__ == "__main__":
    main()
