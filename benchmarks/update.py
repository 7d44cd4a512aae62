"""What an update costs if it computes only the rows and columns that it needs, compared with TRL's, which computes all.

    python benchmarks/update.py [options of gtpo train; RUN_DIR must be free] --max_steps 3

The learning rate is set to 0, so all sides see the same rollouts at every step. The sides run one after another in one
process. The measured time is that of the update (`time/update_s`): forward, backward and optimizer, without rollouts
and credit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

from gtpo.commands.model_options import load_model, load_tokenizer
from gtpo.commands.train import arguments
from gtpo.run_directory import read_metrics
from gtpo.tasks.sources import problems_from
from gtpo.training import base_trainer
from gtpo.training.micro_batch import rows_count_alone, trimmed
from gtpo.training.run import train


@dataclass(frozen=True)
class Side:
    """A way to make micro-batches."""

    name: str
    rows_count_alone: Callable[..., bool]
    trimmed: Callable[..., dict[str, Any]]


SIDES = (
    Side("TRL's: all rows, all columns", lambda args, model: False, dict),
    Side("all rows, columns as needed", lambda args, model: False, trimmed),
    Side("rows and columns as needed", rows_count_alone, trimmed),
)


def main() -> None:
    argv = [*sys.argv[1:], "--learning_rate", "0", "--logging_steps", "1", "--save_strategy", "no"]
    problem_args, args, model_args = arguments(argv)
    whole = Path(args.run_dir)
    seconds: dict[str, list[float]] = {}
    for number, side in enumerate(SIDES):
        _, args, _ = arguments([*argv, "--run_dir", str(whole / str(number))])
        with (
            patch.object(base_trainer, "rows_count_alone", side.rows_count_alone),
            patch.object(base_trainer, "trimmed", side.trimmed),
        ):
            problems = problems_from(problem_args.train_file, limit=problem_args.max_problems)
            train(load_model(model_args), load_tokenizer(model_args), problems, args, label=side.name)
        lines = [line for line in read_metrics(args.run_dir) if "time/update_s" in line]
        seconds[side.name] = [line["time/update_s"] for line in lines]
        passed = fmean(line["pass_rate"] for line in lines)
    peer = median(seconds[SIDES[0].name])
    print(f"{args.max_steps} steps of {args.generation_batch_size} rollouts, pass rate {passed:.3f}\n")
    print("| micro-batches | s per step, median | min to max | times as fast as TRL's |")
    print("|---" * 4 + "|")
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"| {name} | {median(values):.2f} | {spread} | {peer / median(values):.2f} |")


if __name__ == "__main__":
    main()
