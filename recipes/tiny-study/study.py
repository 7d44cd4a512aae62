"""The studies of the tiny model: cold starts, ablations, and each algorithm at its best setting.

    study.py prepare NAME ...   # cold starts and problems, shared by all studies
    study.py ablate NAME ...   # parts and options one at a time, learning rate 1e-4
    study.py select NAME ...   # learning rate and updates per batch, on problems of their own
    study.py report NAME ...   # fresh seeds at the selected settings (else those of selected.yaml), held-out problems

NAME is a key of `STARTS` in starts.py. From the repository's root; stopped, the same command goes on.

Selection: the search begins with the rates `FIRST` and takes in the next of `RATES` while the best one is at the edge
of those run; then two updates per batch (`num_iterations: 2`) are tried at the best rate and the one below it. Whatever
has the highest pass rate on `selection.jsonl`, which neither training nor the report sees, is the side's setting.
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
"""Those that the search begins with: in the first studies of this model 3e-4 was above 1e-4 everywhere."""
ABLATION_BATCHES = 40
"""Batches of 128 rollouts per run of `ablate`; runs of `select` and `report` have those of their start."""
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
    """Options of each side of the report, and the side at whose selected setting it runs."""
    gamma = round(0.7 ** (1 / (start.max_turns - 1)), 4)
    return {
        **{name: (name, options) for name, options in SIDES.items()},
        "default": ("gamma_0.9", {**SIDES["gamma_0.9"], "gamma": gamma}),
    }


def train_options(name: str, start: Start) -> dict[str, Any]:
    """Options of `gtpo train` that all cells of a start share."""
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
    """Options of a learning rate and updates per batch; rollouts are equal: each update of a batch is a step."""
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
        name: of the start.
        kind: folder of `STUDIES` that its output goes to.
        problems: those of the evaluation, `held_out` or `selection`.
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
    """Write the study file and run what is left of it.

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
    """Make the cold start and the problems unless they are there."""
    folder = STUDIES / "start" / name
    if (folder / "problems" / "selection.jsonl").exists():
        return
    options = [f"--{key}={value}" for key, value in {"cold_start_steps": 900, **STARTS[name].demo}.items()]
    command = [sys.executable, "-m", "gtpo", "demo", "--run_dir", str(folder), "--prepare_only=true"]
    subprocess.run([*command, "--eval_problems=512", "--seed=1", *options], check=True)


def ablate(name: str, args: argparse.Namespace) -> None:
    """Parts and options one at a time."""
    if name not in ABLATIONS:
        raise SystemExit(f"{name}: no ablations are defined; there are: {', '.join(ABLATIONS)}")
    variants, seeds, seeds_of = ABLATIONS[name]
    run_study(study_document(name, "ablate", "held_out", variants, args.seeds or seeds, seeds_of), args)


def select(name: str, args: argparse.Namespace) -> None:
    """Search the setting of each side."""
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
        print(f"{name} {side}: {best(found)} of {found}")


def selection_scores(name: str) -> dict[str, dict[tuple[str, int], float]]:
    """Mean pass rate on the selection problems by side and setting (rate, updates), of what has been run."""
    path = STUDIES / "select" / name / "report.json"
    scores: dict[str, dict[tuple[str, int], float]] = {}
    if path.exists():
        for variant, cells in json.loads(path.read_text())["cells"].items():
            side, rate, updates = variant.rsplit("_", 2)
            scores.setdefault(side, {})[rate, int(updates[1:])] = fmean(cell["final"] for cell in cells.values())
    return scores


def best(scores: Mapping[tuple[str, int], float]) -> tuple[str, int]:
    """The setting with the highest pass rate; of equal ones the smallest rate."""
    return max(scores, key=lambda found: (scores[found], -float(found[0])))


def next_settings(
    scores: Mapping[tuple[str, int], float], updates: int, rates: Sequence[str] = RATES
) -> list[tuple[str, int]]:
    """The settings to run next, by what has been run; none when the search of a side is over.

    Args:
        scores: pass rate by rate and updates per batch.
        updates: per batch at most, 1 or 2.
        rates: those that may be run, ascending.
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
    """Fresh seeds of each side at its selected setting.

    Raises:
        SystemExit: the selection has begun here and is not done, or a cell failed.
    """
    scores = selection_scores(name)
    if not scores:
        print(f"{name}: no selection has been run here; settings of {SELECTED}")
        chosen = {side: (rate, updates) for side, (rate, updates) in yaml.safe_load(SELECTED.read_text())[name].items()}
    elif open_sides := [
        side for side in SIDES if side not in scores or next_settings(scores[side], args.updates, args.rates)
    ]:
        raise SystemExit(f"{name}: the selection of {', '.join(open_sides)} is not done; run: study.py select {name}")
    else:
        chosen = {side: best(scores[side]) for side in SIDES}
    variants = {
        side: {**options, **setting(STARTS[name], *chosen[of])}
        for side, (of, options) in sides_reported(STARTS[name]).items()
    }
    rate, updates = chosen["gamma_0.9"]
    for side in SIDES:  # and where gamma_0.9 has another setting, at that
        if chosen[side] != (rate, updates):
            variants[f"{side}_{rate}_x{updates}"] = {**SIDES[side], **setting(STARTS[name], rate, updates)}
    run_study(study_document(name, "best", "held_out", variants, args.seeds or REPORT_SEEDS, {}), args)


STAGES = {"prepare": prepare, "ablate": ablate, "select": select, "report": report}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("names", nargs="+", choices=STARTS, metavar="NAME", help=", ".join(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the stage's own")
    parser.add_argument(
        "--rates", nargs="+", choices=RATES, default=RATES, help="learning rates that the selection may try (all)"
    )
    parser.add_argument("--only", nargs="+", default=[], help="run only these variants of `ablate` or `report`")
    parser.add_argument(
        "--updates", type=int, choices=(1, 2), default=2, help="updates per batch that the selection tries (default 2)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per run (default 1)")
    args = parser.parse_args()
    args.rates = sorted(args.rates, key=RATES.index)
    for name in args.names:
        STAGES[args.stage](name, args)


if __name__ == "__main__":
    main()
