"""The studies of the tiny model: cold starts, ablations, and each algorithm at its best setting.

    study.py prepare NAME ...   # cold starts and problems, shared by all studies
    study.py ablate NAME ...    # parts and options one at a time, learning rate 1e-4
    study.py select NAME ...    # search learning rate and updates per batch, on separate problems
    study.py report NAME ...    # new seeds at the selected settings (or those of selected.yaml), held-out problems

NAME is a key of `STARTS` in starts.py. Run from the repository's root. To resume a stopped study, run the same command.

Selection: the search starts with the rates `FIRST` and adds the next of `RATES` while the best rate is at the edge of
those tried. It then tries two updates per batch (`num_iterations: 2`) at the best rate and at the one below it. Each
algorithm gets the setting with the highest pass rate on `selection.jsonl`, which neither training nor the report uses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from starts import STARTS, Start
from variants import ABLATIONS, PAPER

STUDIES = Path("runs/studies")
SELECTED = Path(__file__).with_name("selected.yaml")
RATES = ("1e-4", "3e-4", "6e-4", "1e-3", "2e-3")
FIRST = RATES[2:4]
"""Rates that the search starts with: in the first studies of this model, 3e-4 was better than 1e-4 everywhere."""
ABLATION_BATCHES = 40
"""Batches of 128 rollouts per run of `ablate`; for `select` and `report`, the start defines the number."""
SELECTION_SEEDS = (11, 12, 13)
REPORT_SEEDS = (21, 22, 23, 24, 25)
SIDES: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": "grpo"},
    "paper": PAPER,
    "gamma_0.9": {
        "normalize_over": "first_turns",
        "zero_uniform_groups": True,
        "advantage_clip": 10.0,
        "gamma": 0.9,
        "alpha": 0.5,
    },
}


def sides_reported(start: Start) -> dict[str, tuple[str, dict[str, Any]]]:
    """Options of each algorithm in the report, and the name of the algorithm whose selected setting it uses."""
    gamma = round(0.7 ** (1 / (start.max_turns - 1)), 4)
    return {
        **{name: (name, options) for name, options in SIDES.items()},
        "default": ("gamma_0.9", {**SIDES["gamma_0.9"], "gamma": gamma}),
    }


def train_options(name: str, start: Start) -> dict[str, Any]:
    """Options of `gtpo train` shared by all cells of a start."""
    folder = STUDIES / "start" / name
    return {
        "model": str(folder / "cold-start" / "model"),
        "train_file": str(folder / "problems" / "train.jsonl"),
        "tools": start.tools,
        "tool_format": "fenced",
        "system_prompt": "",
        "gamma": 0.9,
        "max_turns": start.max_turns,
        "max_turn_tokens": 24,
        "max_completion_length": start.max_completion_length,
        "tool_wall_s": 4,
        "tool_cpu_s": 1,
        # 16 problems x 8 rollouts per step
        "num_generations": 8,
        "per_device_train_batch_size": 128,
        "max_concurrency": 128,
        "max_steps": ABLATION_BATCHES,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_steps": 10,
        "save_total_limit": 1,
        "record_every": 20,
        "report_to": "none",
    }


def setting(start: Start, rate: str, updates: int) -> dict[str, Any]:
    """Options for a learning rate and updates per batch. Each update is a step, so `max_steps` keeps rollouts equal."""
    return {"learning_rate": float(rate), "num_iterations": updates, "max_steps": start.batches * updates}


def study_document(
    name: str,
    kind: str,
    problems: str,
    variants: Mapping[str, Any],
    seeds: Sequence[int],
    seeds_of: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """A study file of `gtpo study`.

    Args:
        name: name of the start.
        kind: folder of `STUDIES` for the output.
        problems: problems of the evaluation, `held_out` or `selection`.
        variants, seeds, seeds_of: as in the study file.
    """
    start = STARTS[name]
    evaluated = STUDIES / "start" / name / "problems" / f"{problems}.jsonl"
    return {
        "output": str(STUDIES / kind / name),
        "train": train_options(name, start),
        "evaluate": {"problems": [str(evaluated)]},
        "baseline": "grpo" if "grpo" in variants else next(iter(variants)),
        "thresholds": list(start.thresholds),
        "seeds": list(seeds),
        "seeds_of": {variant: list(chosen) for variant, chosen in seeds_of.items()},
        "variants": {variant: dict(options) for variant, options in variants.items()},
    }


def run_study(document: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Write the study file and run the cells that are not finished.

    Raises:
        SystemExit: a cell failed.
    """
    path = Path(document["output"]) / "study.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(document), sort_keys=False))
    command = [sys.executable, "-m", "gtpo", "study", str(path), "--jobs", str(args.jobs)]
    only = ["--only", *args.only] if args.only else []
    if subprocess.run([*command, "--threads", str(args.threads), *only], check=False).returncode:
        raise SystemExit(f"{path}: a cell failed; see the lines above")


def prepare(name: str, args: argparse.Namespace) -> None:
    """Make the cold start and the problems if they do not exist."""
    folder = STUDIES / "start" / name
    if (folder / "problems" / "selection.jsonl").exists():
        return
    options = [f"--{key}={value}" for key, value in {"cold_start_steps": 900, **STARTS[name].demo}.items()]
    command = [sys.executable, "-m", "gtpo", "demo", "--run_dir", str(folder), "--prepare_only=true"]
    subprocess.run([*command, "--eval_problems=512", "--seed=1", *options], check=True)


def ablate(name: str, args: argparse.Namespace) -> None:
    """Parts and options one at a time."""
    if name not in ABLATIONS:
        raise SystemExit(f"{name}: no ablations are defined; choose from {', '.join(ABLATIONS)}")
    variants, seeds, seeds_of = ABLATIONS[name]
    run_study(study_document(name, "ablate", "held_out", variants, args.seeds or seeds, seeds_of), args)


def select(name: str, args: argparse.Namespace) -> None:
    """Search the setting of each algorithm."""
    while True:
        scores = selection_scores(name)
        new = [
            (side, *found) for side in SIDES for found in next_settings(scores.get(side, {}), args.updates, args.rates)
        ]
        if not new:
            break
        done = [(side, *found) for side in scores for found in scores[side]]
        variants = {
            f"{side}_{rate}_x{updates}": {**SIDES[side], **setting(STARTS[name], rate, updates)}
            for side, rate, updates in [*done, *new]
        }
        seeds = args.seeds or SELECTION_SEEDS
        run_study(study_document(name, "select", "selection", variants, seeds, {}), args)
    for side, found in selection_scores(name).items():
        print(f"{name} {side}: selected {best(found)} from {found}")


def selection_scores(name: str) -> dict[str, dict[tuple[str, int], float]]:
    """Mean pass rate on the selection problems by algorithm and setting (rate, updates), for finished runs."""
    path = STUDIES / "select" / name / "report.json"
    scores: dict[str, dict[tuple[str, int], float]] = {}
    if path.exists():
        for variant, cells in json.loads(path.read_text())["cells"].items():
            side, rate, updates = variant.rsplit("_", 2)
            scores.setdefault(side, {})[rate, int(updates[1:])] = fmean(cell["final"] for cell in cells.values())
    return scores


def best(scores: Mapping[tuple[str, int], float]) -> tuple[str, int]:
    """The setting with the highest pass rate; if several are equal, the one with the lowest rate."""
    return max(scores, key=lambda found: (scores[found], -float(found[0])))


def next_settings(
    scores: Mapping[tuple[str, int], float], updates: int, rates: Sequence[str] = RATES
) -> list[tuple[str, int]]:
    """The settings to run next, given the finished ones; empty when the search of an algorithm is complete.

    Args:
        scores: pass rate by rate and updates per batch.
        updates: maximum updates per batch, 1 or 2.
        rates: learning rates that may be tried, ascending.
    """
    once = {rate: score for (rate, times), score in scores.items() if times == 1}
    if not once:
        return [(rate, 1) for rate in rates if rate in FIRST] or [(rates[-1], 1)]
    rate = best({(rate, 1): score for rate, score in once.items()})[0]
    place = RATES.index(rate)
    beside = {*RATES[max(place - 1, 0) : place + 2]} & {*rates} - {*once}
    if beside:
        return [(other, 1) for other in rates if other in beside]
    twice = RATES[max(place - 1, 0) : place + 1] if updates == 2 else ()
    return [(other, 2) for other in twice if other in rates and (other, 2) not in scores]


def report(name: str, args: argparse.Namespace) -> None:
    """Run new seeds of each algorithm at its selected setting.

    Raises:
        SystemExit: the selection was started here and is not finished, or a cell failed.
    """
    scores = selection_scores(name)
    if not scores:
        print(f"{name}: no selection has been run here; using the settings of {SELECTED}")
        chosen = {side: (rate, updates) for side, (rate, updates) in yaml.safe_load(SELECTED.read_text())[name].items()}
    elif open_sides := [
        side for side in SIDES if side not in scores or next_settings(scores[side], args.updates, args.rates)
    ]:
        raise SystemExit(
            f"{name}: the selection of {', '.join(open_sides)} is not finished; run: study.py select {name}"
        )
    else:
        chosen = {side: best(scores[side]) for side in SIDES}
    variants = {
        side: {**options, **setting(STARTS[name], *chosen[of])}
        for side, (of, options) in sides_reported(STARTS[name]).items()
    }
    rate, updates = chosen["gamma_0.9"]
    for side in SIDES:  # also at gamma_0.9's setting, if it differs
        if chosen[side] != (rate, updates):
            variants[f"{side}_{rate}_x{updates}"] = {**SIDES[side], **setting(STARTS[name], rate, updates)}
    run_study(study_document(name, "best", "held_out", variants, args.seeds or REPORT_SEEDS, {}), args)


STAGES = {"prepare": prepare, "ablate": ablate, "select": select, "report": report}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("names", nargs="+", choices=STARTS, metavar="NAME", help=", ".join(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to use in place of the stage's defaults")
    parser.add_argument(
        "--rates",
        nargs="+",
        choices=RATES,
        default=RATES,
        help="learning rates that the selection may try (default: all)",
    )
    parser.add_argument("--only", nargs="+", default=[], help="run only these variants of `ablate` or `report`")
    parser.add_argument(
        "--updates",
        type=int,
        choices=(1, 2),
        default=2,
        help="maximum updates per batch that the selection tries (default: 2)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per run (default: 1)")
    args = parser.parse_args()
    args.rates = sorted(args.rates, key=RATES.index)
    for name in args.names:
        STAGES[args.stage](name, args)


if __name__ == "__main__":
    main()
