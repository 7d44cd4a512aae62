"""Print the recipe's table as Markdown and draw its learning curve: `python report.py RUN_FOLDER PICTURE.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from gtpo.run_directory import read_metrics
from gtpo.training.curves import learning_curve

STAGES = {"base": "SmolLM2-135M-Instruct", "cold-start": "after the cold start", "gtpo": "after GTPO"}
SHARES = ("rollout", "tools", "verify", "credit", "update")


def main(folder: str, picture: str) -> None:
    """Print a row for each evaluation that exists, then the share of each part of a GTPO step in its time."""
    print("| model | problems | pass rate | 95 % | turns | calls | invalid calls | answered |")
    print("|---|---|---|---|---|---|---|---|")
    for stage, name in STAGES.items():
        for problems in ("svamp", "gsm8k_test"):
            path = Path(folder) / "eval" / f"{stage}-{problems}.json"
            if path.exists():
                print(_row(name, problems, json.loads(path.read_text(encoding="utf-8"))))
    steps = read_metrics(f"{folder}/gtpo")
    print(f"\nGTPO, {len(steps)} steps, median (largest) share of the time of a step:\n")
    for part in SHARES:
        shares = [step[f"time/{part}_share"] for step in steps]
        print(f"- {part}: {100 * median(shares):.3g} % ({100 * max(shares):.3g} %)")
    learning_curve({"gtpo": f"{folder}/gtpo"}, picture, title="SmolLM2-135M on GSM8K, 32 rollouts per step")


def _row(name: str, problems: str, result: dict) -> str:
    score = result["scores"]["avg@1"]
    cells = [
        name,
        problems,
        f"{result['pass_rate']:.3f}",
        f"{score['low']:.3f} to {score['high']:.3f}",
        *(f"{result[key]:.2f}" for key in ("turns_per_rollout", "calls_per_rollout", "invalid_calls_per_rollout")),
        f"{result['stop_reasons'].get('answer', 0.0):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(*sys.argv[1:])
