"""What became of rollouts in a study: is the reward hacked, do calls become decoration, do rollouts only get shorter?

    python benchmarks/behaviour.py runs/studies/steps [runs/studies/hops ...]

For every variant, means over seeds: the evaluation after training (pass rate, turns, calls, rollouts without a call,
valid calls whose result no later turn mentions, calls repeated within a rollout), and of the recorded training steps
the similarity of failed rollouts' code to that of the successes of their group, also where nothing is shaped by it.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from gtpo.rollout import ToolChoice, get_format
from gtpo.similarity import LexicalSimilarity
from gtpo.study.report import markdown_table
from gtpo.types import InvalidCall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path)
    for study in parser.parse_args().studies:
        print(f"\n{study.name}\n")
        print(table(list(variant_rows(study))))


def variant_rows(study: Path) -> Iterator[dict[str, Any]]:
    """A row for each variant with a cell that is done."""
    cells: dict[str, list[Path]] = defaultdict(list)
    for state in sorted(study.glob("cells/*/cell.json")):
        found = json.loads(state.read_text())
        if found.get("done") and (state.parent / "eval" / "result.json").exists():
            cells[found["variant"]].append(state.parent)
    for variant, folders in cells.items():
        rows = [{**of_evaluation(folder), **of_training(folder)} for folder in folders]
        names = dict.fromkeys(name for row in rows for name in row)
        means = {name: fmean(row[name] for row in rows if name in row) for name in names}
        yield {"variant": variant, "seeds": len(rows), **means}


def of_evaluation(folder: Path) -> dict[str, float]:
    """Of the samples after training."""
    document = json.loads((folder / "eval" / "result.json").read_text())
    samples = document["samples"]
    tool_format = get_format(
        document["protocol"]["tool_format"], ToolChoice(",".join(document["protocol"]["tools"])).specs()
    )
    calls = unused = repeated = 0
    for sample in samples:
        texts = [turn["text"] for turn in sample["turns"]]
        seen: set[str] = set()
        for number, turn in enumerate(sample["turns"]):
            made = tool_format.parse(turn["text"])
            for call, result in zip(made, turn["results"], strict=False):  # the last turn's are not carried out
                if isinstance(call, InvalidCall):
                    continue
                calls += 1
                unused += not any(result.strip() in later for later in texts[number + 1 :])
                repeated += call.code in seen
                seen.add(call.code)
    return {
        "pass rate": fmean(sample["passed"] for sample in samples),
        "turns": fmean(len(sample["turns"]) for sample in samples),
        "calls": fmean(sample["calls"] for sample in samples),
        "invalid": fmean(sample["invalid_calls"] for sample in samples),
        "without a call": fmean(sample["calls"] == 0 for sample in samples),
        "result unused": unused / max(calls, 1),
        "call repeated": repeated / max(calls, 1),
    }


def of_training(folder: Path) -> dict[str, float]:
    """Of the first and the last third of the recorded steps."""
    paths = sorted((folder / "rollouts").glob("step_*.jsonl"))
    third = max(len(paths) // 3, 1)
    found = {}
    for part in (paths[:third], paths[-third:]):
        values = [value for path in part for value in failed_similarities(path)]
        numbers = [str(int(path.stem.removeprefix("step_"))) for path in part]
        name = f"step {numbers[0]}" if len(part) == 1 else f"steps {numbers[0]} to {numbers[-1]}"
        if values:
            found[f"similarity of failures, {name}"] = fmean(values)
    return found


def failed_similarities(path: Path) -> Iterator[float]:
    """Mean similarity of each failed rollout of a step to the successes of its group, where there are both."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        groups[row["group"]].append(row)
    for members in groups.values():
        passes = [i for i, row in enumerate(members) if row["passed"]]
        fails = [i for i, row in enumerate(members) if not row["passed"]]
        if passes and fails:
            codes = [
                "\n".join(c["code"] for turn in row["turns"] for c in turn["calls"] if "code" in c) for row in members
            ]
            matrix = LexicalSimilarity().matrix(codes)
            yield from (float(matrix[i, passes].mean()) for i in fails)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, "") for name in names] for row in rows]
    shown = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in cells]
    return "\n".join(markdown_table(names, shown))


if __name__ == "__main__":
    main()
