"""What GTPO costs per step compared with GRPO: time by part and memory, on real rollouts and at the size of a 7B model.

    python benchmarks/overhead.py RUN_DIR [RUN_DIR ...] [--rounds 20] [--no-large]

Rollouts and everything that TRL does are the same for both; only the credit differs. It is timed on one thread on the
last recorded step of each run, alternating GTPO and GRPO, and compared with the median time of the run's steps. The
last row is a batch of 512 rollouts of 8 turns, 8,192 tokens and about 1,500 characters of code, with the length and the
repetition within a group of programs that solve one problem. Its step time is not measured, so it has no share.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from gtpo import functional as F
from gtpo.credit_assignment import CreditInputs, CreditSettings, compute_credit
from gtpo.run_directory import RunFiles
from gtpo.similarity import LexicalSimilarity
from gtpo.similarity.lexical import ngram_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--large",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="include the row at the size of a 7B model (default: yes)",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| batch | rollouts x tokens | GRPO ms | GTPO ms | of which similarity | spreading | memory | step s | share |"
    )
    print("|---" * 9 + "|")
    for run in args.runs:
        files = RunFiles(run)
        rows = files.rollouts(files.steps()[-1])
        step_s = statistics.median(line["step_time"] for line in files.metrics() if "step_time" in line)
        facts = [facts_of(row) for row in rows]
        tokens = [[(turn["tokens"], turn["observation_tokens"]) for turn in row["turns"]] for row in rows]
        report(str(run), facts, turn_ids(tokens), args.rounds, step_s)
    if args.large:
        facts, ids = large_batch()
        report("7B, 64 prompts x 8", facts, ids, max(args.rounds // 4, 3), None)


def facts_of(row: dict) -> CreditInputs:
    """A recorded rollout as credit sees it."""
    calls = [turn["calls"] for turn in row["turns"]]
    return CreditInputs(
        group_id=row["group"],
        passed=row["passed"],
        invalid_turns=tuple(any("code" not in call for call in turn) for turn in calls),
        has_call=any(calls),
        code="\n".join(call["code"] for turn in calls for call in turn if "code" in call),
    )


def turn_ids(tokens: Sequence[Sequence[tuple[int, int]]]) -> torch.Tensor:
    """Turn ids of a padded batch, from the numbers of sampled and observed tokens of each turn."""
    width = max(sum(a + b for a, b in turns) for turns in tokens)
    ids_B_T = torch.full((len(tokens), width), -1)
    for row, turns in enumerate(tokens):
        place = 0
        for turn, (sampled, observed) in enumerate(turns):
            ids_B_T[row, place : place + sampled] = turn
            place += sampled + observed
    return ids_B_T


def large_batch() -> tuple[list[CreditInputs], torch.Tensor]:
    """64 groups of 8: in each, variations of one real program of the standard library."""
    rng = random.Random(0)
    sources = [inspect.getsource(value) for value in (json, argparse, random, statistics, inspect)]
    lines = [line for source in sources for line in source.splitlines() if line.strip()]
    facts = []
    for group in range(64):
        start = rng.randrange(len(lines) - 40)
        program = lines[start : start + 40]
        for _ in range(8):
            kept = [line if rng.random() < 0.8 else rng.choice(lines) for line in program]
            code = "\n".join(kept)[:1500]
            facts.append(CreditInputs(group, rng.random() < 0.4, (False,) * 8, True, code))
    return facts, turn_ids([[(700, 324)] * 8] * len(facts))


def report(name: str, facts: list[CreditInputs], ids_B_T: torch.Tensor, rounds: int, step_s: float | None) -> None:
    """Time both and print a row."""
    similarity, settings = LexicalSimilarity(), CreditSettings()
    credit = compute_credit(facts, similarity, settings)

    def gtpo() -> float:
        ngram_weights.cache_clear()  # a step brings new programs
        return compute_credit(facts, similarity, settings).shaping_s

    times: dict[str, list[float]] = {"grpo": [], "gtpo": [], "shaping": [], "spread": []}
    for _ in range(rounds):
        times["grpo"].append(timed(lambda: compute_credit(facts, similarity, settings, algorithm="grpo")))
        start = time.perf_counter()
        times["shaping"].append(gtpo())
        times["gtpo"].append(time.perf_counter() - start)
        times["spread"].append(timed(lambda: F.spread_to_tokens(credit.advantages_B_K, ids_B_T)))
    grpo, whole, shaping, spread = (statistics.median(times[key]) for key in ("grpo", "gtpo", "shaping", "spread"))
    memory = ids_B_T.numel() * (ids_B_T.element_size() + 4)  # turn ids, and advantages a token in place of a rollout
    share = f"{(whole + spread - grpo) / step_s:.2%}" if step_s else ""
    size = f"{ids_B_T.shape[0]} x {ids_B_T.shape[1]:,}"
    step = f"{step_s:.1f}" if step_s else ""
    cells = [f"{1e3 * value:.1f}" for value in (grpo, whole + spread, shaping, spread)]
    print("| " + " | ".join([name, size, *cells, f"{memory / 2**20:.1f} MiB", step, share]) + " |")


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
