"""Run the embedded default with several seeds, one after another; write the table into tiny.md, and draw tiny.png.

    python benchmarks/tiny_seeds.py [--seeds 1 2 3] [--algorithms gtpo] [--output docs/results]

Runs are written to runs/tiny-ALGORITHM-SEED. A run that already has a summary is not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

from gtpo.training.curves import learning_curve

BEGIN, END = "<!-- table: python benchmarks/tiny_seeds.py -->", "<!-- end -->"
COLUMNS = (
    ("pass rate, before", lambda s: s["before"]["pass_rate"]),
    ("after", lambda s: s["after"]["pass_rate"]),
    ("invalid calls per rollout, before", lambda s: s["before"]["invalid_calls_per_rollout"]),
    ("after", lambda s: s["after"]["invalid_calls_per_rollout"]),
    ("turns, before", lambda s: s["before"]["turns_per_rollout"]),
    ("after", lambda s: s["after"]["turns_per_rollout"]),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--algorithms", nargs="+", default=["gtpo"])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    lines = ["| algorithm | seed | " + " | ".join(name for name, _ in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    runs: dict[str, Path] = {}
    for algorithm in args.algorithms:
        summaries = []
        for seed in args.seeds:
            run_dir = Path("runs") / f"tiny-{algorithm}-{seed}"
            if not (run_dir / "summary.json").exists():
                command = [sys.executable, "-m", "gtpo", "demo", "--run_dir", str(run_dir)]
                subprocess.run([*command, "--algorithm", algorithm, "--seed", str(seed)], check=True)
            summaries.append(json.loads((run_dir / "summary.json").read_text()))
            runs[f"{algorithm} {seed}"] = run_dir
            lines.append(row(algorithm, str(seed), [get(summaries[-1]) for _, get in COLUMNS]))
        means = [fmean(get(s) for s in summaries) for _, get in COLUMNS]
        lines.append(row(algorithm, "mean", means))
        if len(summaries) > 1:
            lines.append(row(algorithm, "deviation", [stdev(get(s) for s in summaries) for _, get in COLUMNS]))
    print("\n".join(lines))
    args.output.mkdir(parents=True, exist_ok=True)
    page = args.output / "tiny.md"
    if page.exists():
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2])
    learning_curve(runs, args.output / "tiny.png", title="gtpo demo: computations in steps, sampled rollouts")


def row(algorithm: str, seed: str, values: list[float]) -> str:
    return f"| {algorithm} | {seed} | " + " | ".join(f"{value:.3g}" for value in values) + " |"


if __name__ == "__main__":
    main()
