"""Estimators on processes whose true gradient is known: bias, variance, learning, and where each one fails.

    python benchmarks/tabular.py [--quick] [--output docs/results] [--json runs/tabular.json]
    python benchmarks/tabular.py --candidates [--quick] [--json runs/tabular-candidates.json]

Prints the tables of docs/results/tabular.md, draws tabular-learning.png, and writes all results and curves as JSON. It
takes about five minutes on one core. `--candidates` instead prints cosine and signal-to-noise ratio of GRPO and of the
candidates for a default, by turns and success rate, and their results after training; about ten minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy import stats

from gtpo import functional as F
from gtpo.credit_assignment import CreditSettings
from gtpo.lab.study.figures import spread
from gtpo.lab.tabular import (
    CANDIDATES,
    CallProcess,
    Curves,
    candidate,
    enumerate_expectation,
    estimator,
    learn,
    policy_with_success,
    sampled_expectation,
)

PLAIN = dict(F.PAPER)
"""The formulas as they stand."""
ESTIMATORS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": "grpo"},
    "gtpo pooled": PLAIN,
    "gtpo initial": {"normalize_over": "first_turns", "zero_uniform_groups": False, "advantage_clip": 0.0},
    "gtpo turn": {"normalize_over": "same_turn", "zero_uniform_groups": False, "advantage_clip": 0.0},
    "gtpo pooled, uniform zero": {"normalize_over": "all_turns", "zero_uniform_groups": True, "advantage_clip": 0.0},
    "gtpo initial, uniform zero": {"normalize_over": "first_turns", "zero_uniform_groups": True, "advantage_clip": 0.0},
    "gtpo turn, uniform zero": {"normalize_over": "same_turn", "zero_uniform_groups": True, "advantage_clip": 0.0},
    "gtpo without turn rewards": {**PLAIN, "turn_rewards": False},
    "gtpo without turn returns": {**PLAIN, "turn_returns": False},
    "gtpo without shaping": {**PLAIN, "alpha": 0.0},
    "gtpo, gamma 1": {**PLAIN, "gamma": 1.0},
    "mt_grpo": {"algorithm": "mt_grpo"},
    "dr_grpo": {"algorithm": "dr_grpo"},
    "rloo": {"algorithm": "rloo"},
    "turn_loo": {"algorithm": "turn_loo"},
    "turn_loo, outcome only": {"algorithm": "turn_loo", "gamma": 1.0, "alpha": 0.0, "format_penalty": 0.0},
}
TURNS = {2: CallProcess(1, 4), 4: CallProcess(3, 8), 8: CallProcess(7, 12)}
"""By the turns that a good rollout takes; the rest is room for malformed calls."""
SUCCESS = (0.02, 0.1, 0.3, 0.6)
MAPPED = (
    "grpo",
    "gtpo pooled",
    "gtpo pooled, uniform zero",
    "gtpo initial",
    "gtpo initial, uniform zero",
    "gtpo turn",
    "gtpo turn, uniform zero",
    "gtpo without shaping",
    "turn_loo",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="use few groups and seeds, only to check that it runs")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--candidates", action="store_true", help="measure only GRPO and the candidates for a default")
    args = parser.parse_args()
    args.json = args.json or Path("runs/tabular-candidates.json" if args.candidates else "runs/tabular.json")
    torch.set_num_threads(1)
    if args.candidates:
        rows = list(candidates(400 if args.quick else 20_000))
        learned = list(candidate_learning(4 if args.quick else 30))
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"expectations": rows, "learning": learned}) + "\n")
        for which in ("cosine", "signal_to_noise"):
            print_map(which, rows)
        print_learning(learned)
        return
    for folder in (args.output, args.json.parent):
        folder.mkdir(parents=True, exist_ok=True)
    groups, seeds = (400, 4) if args.quick else (40_000, 50)
    found = {
        "flip": list(flips()),
        "enumerated": list(enumerated(3 if args.quick else 4)),
        "sampled": list(sampled(groups)),
        "learning": list(learning(seeds)),
    }
    args.json.write_text(json.dumps(found) + "\n")
    draw_learning(found["learning"], args.output / "tabular-learning.png")
    print_all(found)


def flips() -> Iterator[dict[str, float]]:
    """Where the first turn of a success gets a negative advantage under `all_turns`, by enumeration of groups."""
    size, gamma = 200, 0.9
    for turns in (2, 4, 8, 16):
        for passes in range(1, size):
            rewards_B_K = torch.zeros(size, turns, dtype=torch.float64)
            rewards_B_K[:passes, -1] = 1.0
            ids_B_K = torch.arange(turns).expand(size, -1)
            whole = torch.full((size,), turns), ids_B_K, torch.zeros(size, dtype=torch.long)
            if F.gtpo_advantages(rewards_B_K, *whole, gamma=gamma, **F.PAPER)[0, 0] < 0:
                break
        formula = gamma ** (turns - 1) / (sum(gamma**k for k in range(turns)) / turns)
        yield {"turns": turns, "first share with a negative first turn": passes / size, "formula": formula}


def enumerated(group_size: int) -> Iterator[dict[str, Any]]:
    """Exact expectations, beside sampled ones: three turns at most, all groups there are."""
    process = CallProcess(2, 3)
    for success in (0.1, 0.3, 0.6):
        logits = policy_with_success(process, success)
        true, reward = process.true_gradient(logits), process.reward_gradient(logits)
        for name, options in ESTIMATORS.items():
            advantage = estimator(process, group_size, **options)
            exact = enumerate_expectation(process, logits, advantage, group_size)
            drawn = sampled_expectation(process, logits, advantage, group_size, groups=40_000, seed=1)
            off = ((drawn.mean_S_A - exact.mean_S_A) / drawn.error_S_A.clamp(min=1e-12)).abs().max()
            yield {
                "success": success,
                "estimator": name,
                "cosine": exact.cosine(true),
                "signal_to_noise": exact.signal_to_noise(true),
                "distance to the gradient of success": float((exact.mean_S_A - true).norm() / true.norm()),
                "distance to the gradient of turn rewards": float((exact.mean_S_A - reward).norm() / reward.norm()),
                "variance": exact.variance,
                "variance, sampled": drawn.variance,
                "largest disagreement in standard errors": float(off),
                "groups": exact.groups,
            }


def sampled(groups: int) -> Iterator[dict[str, Any]]:
    """Cosine and signal to noise as functions of turns, success rate and group size."""
    settings = [(turns, 0.3, 8) for turns in TURNS] + [(4, success, 8) for success in SUCCESS if success != 0.3]
    settings += [(4, 0.3, size) for size in (2, 4, 16)]
    for turns, success, size in settings:
        process = TURNS[turns]
        logits = policy_with_success(process, success)
        true = process.true_gradient(logits)
        for name, options in ESTIMATORS.items():
            drawn = sampled_expectation(
                process, logits, estimator(process, size, **options), size, groups=groups, seed=2
            )
            figures = {"cosine": drawn.cosine(true), "signal_to_noise": drawn.signal_to_noise(true)}
            yield {"turns": turns, "success": success, "group_size": size, "estimator": name, **figures}


def candidates(groups: int) -> Iterator[dict[str, Any]]:
    """Cosine and signal to noise of the candidates and of GRPO, in groups of 8, by turns and success rate."""
    for turns, process in TURNS.items():
        advantages = {"grpo": estimator(process, 8, algorithm="grpo")}
        advantages |= {name: candidate(process, 8, name) for name in CANDIDATES}
        for success in SUCCESS:
            logits = policy_with_success(process, success)
            true = process.true_gradient(logits)
            for name, advantage in advantages.items():
                drawn = sampled_expectation(process, logits, advantage, 8, groups=groups, seed=2)
                figures = {"cosine": drawn.cosine(true), "signal_to_noise": drawn.signal_to_noise(true)}
                yield {"turns": turns, "success": success, "group_size": 8, "estimator": name, **figures}


def candidate_learning(seeds: int) -> Iterator[dict[str, Any]]:
    """What GRPO and the candidates come to by training, 16 groups of 8 a step."""
    for turns, process in TURNS.items():
        advantages = {"grpo": estimator(process, 8, algorithm="grpo")}
        advantages |= {name: candidate(process, 8, name) for name in CANDIDATES}
        for success in SUCCESS:
            logits = policy_with_success(process, success)
            for name, advantage in advantages.items():
                curves = learn(process, logits, advantage=advantage, seeds=seeds)
                figures = {"area": curves.success_N_T.mean(dim=1), "final": curves.success_N_T[:, -1]}
                yield {
                    "turns": turns,
                    "success": success,
                    "estimator": name,
                    **{which: values.tolist() for which, values in figures.items()},
                }


def learning(seeds: int) -> Iterator[dict[str, Any]]:
    """Learning curves: success rate x turns x estimator, 16 groups of 8 a step."""
    for turns, process in TURNS.items():
        for success in SUCCESS:
            logits = policy_with_success(process, success)
            for name in MAPPED:
                options = dict(ESTIMATORS[name])
                algorithm = options.pop("algorithm", "gtpo")
                curves = learn(process, logits, algorithm=algorithm, settings=CreditSettings(**options), seeds=seeds)
                yield {"turns": turns, "success": success, "estimator": name, **summary(curves)}


def summary(curves: Curves) -> dict[str, Any]:
    """Success over the seeds at the end and on the way, and what became of the rollouts."""
    area_N = curves.success_N_T.mean(dim=1)
    return {
        "curve": [round(float(value), 4) for value in curves.success_N_T.mean(dim=0)],
        "deviation": [round(float(value), 4) for value in curves.success_N_T.std(dim=0)],
        "area": vars(spread(area_N.tolist())),
        "after 20": vars(spread(curves.success_N_T[:, 20].tolist())),
        "final": vars(spread(curves.success_N_T[:, -1].tolist())),
        "turns per rollout": [round(float(value), 3) for value in curves.turns_N_T.mean(dim=0)[:-1]],
        "invalid calls": [round(float(value), 3) for value in curves.invalid_N_T.mean(dim=0)[:-1]],
        "similarity": [round(float(value), 3) for value in curves.similarity_N_T.nanmean(dim=0)[:-1]],
        "uniform": [round(float(value), 3) for value in curves.uniform_N_T.mean(dim=0)[:-1]],
    }


def draw_learning(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each number of turns and success rate at the start."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(TURNS), len(SUCCESS), figsize=(13, 8), sharex=True, sharey=True, layout="constrained"
    )
    for row in rows:
        axis = axes[list(TURNS).index(row["turns"])][SUCCESS.index(row["success"])]
        number = MAPPED.index(row["estimator"])
        axis.plot(row["curve"], label=row["estimator"], color=f"C{number}", lw=1.5, ls="--" if number % 2 else "-")
        axis.set_title(f"{row['turns']} turns, success {row['success']:g} at the start", fontsize=9)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes[:, 0]:
        axis.set_ylabel("success rate")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def print_all(found: dict[str, list[dict[str, Any]]]) -> None:
    print_table("flip", ["turns", "first share with a negative first turn", "formula"], found["flip"])
    print_table("enumerated", [name for name in found["enumerated"][0] if name != "groups"], found["enumerated"])
    for which in ("cosine", "signal_to_noise"):
        print_map(which, found["sampled"])
    for which in ("area", "after 20", "final"):
        print(f"\nsuccess, {which}\n\n| turns | start | " + " | ".join(MAPPED) + " |")
        print("|---" * (len(MAPPED) + 2) + "|")
        for turns in TURNS:
            for success in SUCCESS:
                rows = [r for r in found["learning"] if (r["turns"], r["success"]) == (turns, success)]
                cells = [f"{r[which]['mean']:.3f} ±{(r[which]['high'] - r[which]['low']) / 2:.3f}" for r in rows]
                print(f"| {turns} | {success:g} | " + " | ".join(cells) + " |")


def print_map(which: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys((row["turns"], row["success"], row["group_size"]) for row in rows))
    print(f"\n{which}\n\n| estimator | " + " | ".join(f"{t} turns, {s:g}, G {g}" for t, s, g in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in dict.fromkeys(row["estimator"] for row in rows):
        cells = [row[which] for row in rows if row["estimator"] == name]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in cells) + " |")


def print_learning(rows: Sequence[dict[str, Any]]) -> None:
    """Means over seeds; + and - where Welch's test tells them from GRPO's at 5 %."""
    cells = list(dict.fromkeys((row["turns"], row["success"]) for row in rows))
    for which in ("area", "final"):
        print(f"\nsuccess, {which}\n\n| estimator | " + " | ".join(f"{t} turns, {s:g}" for t, s in cells) + " |")
        print("|---" * (len(cells) + 1) + "|")
        grpo = {(row["turns"], row["success"]): row[which] for row in rows if row["estimator"] == "grpo"}
        for name in dict.fromkeys(row["estimator"] for row in rows):
            shown = []
            for row in (row for row in rows if row["estimator"] == name):
                test = stats.ttest_ind(row[which], grpo[row["turns"], row["success"]], equal_var=False)
                sign = "" if not test.pvalue < 0.05 else " +" if test.statistic > 0 else " -"
                shown.append(f"{fmean(row[which]):.3f}{sign}")
            print(f"| {name} | " + " | ".join(shown) + " |")


def print_table(title: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{title}\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        cells = (row[column] for column in columns)
        print("| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
