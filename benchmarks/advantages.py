"""How long one CPU thread takes from turn rewards to token advantages, compared with verl's GRPO on the same batch.

    python benchmarks/advantages.py [--rounds 15] [--output advantages.json]

It times `gtpo.functional.gtpo_advantages` on turn ids that already exist and, if verl is installed,
`compute_grpo_outcome_advantage` on the same rollouts: the outcome on the last model token of a `(B, T)` float
tensor, an int64 response mask of the model's tokens, the group index as a numpy object array. The two alternate
within one run. Neither the creation of the tensors nor the rewards are timed.

Other work on the machine affects the maximum. Compare medians, and run it again if the minimum is far below the median.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gtpo import functional as F

VERL_MISSING = """verl is not installed, so only GTPO is timed. To compare, run it in the environment that has verl:
    make .venv-cluster/.installed
    .venv-cluster/bin/python benchmarks/advantages.py"""


@dataclass(frozen=True)
class Size:
    """A batch, and the median we aim at."""

    rollouts: int
    tokens: int
    turns: int
    group: int
    target_ms: float


SIZES = (
    Size(rollouts=256, tokens=4096, turns=5, group=8, target_ms=10),
    Size(rollouts=1024, tokens=8192, turns=8, group=16, target_ms=60),
)


@dataclass(frozen=True)
class Batch:
    """Rollouts with 1..K turns, each turn but the last followed by an observation, then padding."""

    rewards_B_K: torch.Tensor
    num_turns_B: torch.Tensor
    turn_ids_B_T: torch.Tensor
    group_ids_B: torch.Tensor
    passed_B: torch.Tensor
    token_rewards_B_T: torch.Tensor
    response_mask_B_T: torch.Tensor
    index_B: np.ndarray


def make_batch(size: Size, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    num_turns = torch.randint(1, size.turns + 1, (size.rollouts,), generator=generator)
    longest = size.tokens // (2 * size.turns)
    lengths = torch.randint(1, longest + 1, (size.rollouts, 2 * size.turns), generator=generator)
    positions = torch.arange(size.tokens).expand(size.rollouts, -1).contiguous()
    spans = torch.searchsorted(lengths.cumsum(dim=1), positions, right=True)
    is_model = (spans % 2 == 0) & (spans // 2 < num_turns[:, None])
    turn_ids = torch.where(is_model, spans // 2, -1)

    passed = torch.rand(size.rollouts, generator=generator) < 0.4
    invalid = torch.rand(size.rollouts, size.turns, generator=generator) < 0.1
    has_call = torch.ones_like(passed)
    last_token = (positions * is_model).amax(dim=1, keepdim=True)
    outcome = torch.zeros(size.rollouts, size.tokens).scatter(1, last_token, passed[:, None].float())
    group_ids = torch.arange(size.rollouts) // size.group
    return Batch(
        rewards_B_K=F.turn_rewards(passed, num_turns, invalid, has_call),
        num_turns_B=num_turns,
        turn_ids_B_T=turn_ids,
        group_ids_B=group_ids,
        passed_B=passed,
        token_rewards_B_T=outcome,
        response_mask_B_T=is_model.long(),
        index_B=np.array([f"prompt-{group}" for group in group_ids.tolist()], dtype=object),
    )


def calls(batch: Batch) -> dict[str, Callable[[], object]]:
    """What is timed, by name; verl's only where it is installed."""
    timed: dict[str, Callable[[], object]] = {
        "gtpo": lambda: F.gtpo_advantages(
            batch.rewards_B_K, batch.num_turns_B, batch.turn_ids_B_T, batch.group_ids_B, passed_B=batch.passed_B
        )
    }
    try:
        from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
    except ImportError:
        return timed
    timed["verl"] = lambda: compute_grpo_outcome_advantage(
        batch.token_rewards_B_T, batch.response_mask_B_T, batch.index_B
    )
    return timed


def measure(timed: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, the calls taking turns, after two rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for round_number in range(rounds + 2):
        for name, call in timed.items():
            start = time.perf_counter()
            call()
            if round_number >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def summarise(size: Size, times: dict[str, list[float]]) -> dict[str, object]:
    row: dict[str, object] = {
        "size": f"{size.rollouts} x {size.tokens} x {size.turns}",
        "group": size.group,
        "target_ms": size.target_ms,
    }
    for name, values in times.items():
        row[name] = {
            "median_ms": statistics.median(values),
            "min_ms": min(values),
            "max_ms": max(values),
            "times_ms": values,
        }
    if "verl" in times:
        row["ratio_of_medians"] = statistics.median(times["gtpo"]) / statistics.median(times["verl"])
    return row


def print_table(rows: list[dict]) -> None:
    print("| rollouts x tokens x turns | what | median ms | min | max | target | gtpo / verl |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        for name in ("gtpo", "verl"):
            if name not in row:
                continue
            numbers = " | ".join(f"{row[name][key]:.2f}" for key in ("median_ms", "min_ms", "max_ms"))
            target, ratio = "", ""
            if name == "gtpo":
                target = f"{row['target_ms']:g}"
                ratio = f"{row['ratio_of_medians']:.2f}" if "verl" in row else ""
            print(f"| {row['size']} | {name} | {numbers} | {target} | {ratio} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each function (default: 15)")
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        timed = calls(make_batch(size))
        rows.append(summarise(size, measure(timed, args.rounds)))
    print_table(rows)
    if "verl" not in rows[0]:
        print(VERL_MISSING)
    if args.output:
        report = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "rows": rows}
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
