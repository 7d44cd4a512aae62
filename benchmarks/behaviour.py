"""How rollouts change in a study: is the reward hacked, are results of calls ignored, do rollouts only get shorter?

    python benchmarks/behaviour.py runs/studies/steps [runs/studies/hops ...] [--baseline grpo] [--start RESULT.json]

For every variant, it prints means over seeds of the evaluation after training (pass rate, turns, calls, rollouts
without a call, valid calls whose result no later turn mentions, calls repeated within a rollout), and, for the recorded
training steps, the similarity of failed rollouts' code to that of the successes of their group, also where no reward is
shaped by it. With `--baseline`, it also prints differences of all of these from the baseline, paired by seed. `--start`
takes the result of `gtpo eval` for the model that all cells start from, on the same problems; it prints the gain of
each variant, paired by problem.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from gtpo.evaluation.result import load_result
from gtpo.evaluation.statistics import paired_difference
from gtpo.lab.study.figures import spread
from gtpo.lab.study.report import markdown_table, shown, shown_p
from gtpo.rollout import PromptConfig, get_format
from gtpo.run_directory import RunFiles
from gtpo.similarity import LexicalSimilarity
from gtpo.types import InvalidCall

Cells = dict[str, dict[int, dict[str, float]]]
"""Figures of cells by variant and seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--baseline", help="the variant to compare the others with")
    parser.add_argument("--start", type=Path, help="result file of the evaluation before training")
    args = parser.parse_args()
    for study in args.studies:
        cells = cell_rows(study)
        print(f"\n{study.name}\n")
        print(table(list(variant_rows(cells))))
        if args.baseline:
            print(f"\nminus {args.baseline}, paired by seed\n")
            print(table(list(difference_rows(cells, args.baseline))))
        if args.start:
            print(f"\nminus {args.start}, mean over seeds, paired by problem\n")
            print(table(list(gain_rows(study, args.start))))


def done_cells(study: Path) -> dict[str, dict[int, Path]]:
    """The folder of each cell that is done, by variant and seed."""
    cells: dict[str, dict[int, Path]] = defaultdict(dict)
    for state in sorted(study.glob("cells/*/cell.json")):
        found = json.loads(state.read_text())
        if found.get("done") and (state.parent / "eval" / "result.json").exists():
            cells[found["variant"]][found["seed"]] = state.parent
    return cells


def cell_rows(study: Path) -> Cells:
    """The figures of each cell that is done, by variant and seed."""
    return {
        variant: {seed: {**of_evaluation(folder), **of_training(folder)} for seed, folder in seeds.items()}
        for variant, seeds in done_cells(study).items()
    }


def variant_rows(cells: Cells) -> Iterator[dict[str, Any]]:
    """A row for each variant with a cell that is done."""
    for variant, seeds in cells.items():
        rows = list(seeds.values())
        names = dict.fromkeys(name for row in rows for name in row)
        means = {name: fmean(row[name] for row in rows if name in row) for name in names}
        yield {"variant": variant, "seeds": len(rows), **means}


def difference_rows(cells: Cells, baseline: str) -> Iterator[dict[str, Any]]:
    """A row for each other variant and figure, over the seeds that both have."""
    if baseline not in cells:
        raise SystemExit(f"no cell of {baseline!r} is finished; variants with finished cells: {', '.join(cells)}")
    for variant in [name for name in cells if name != baseline]:
        pairs = [(cells[variant][seed], row) for seed, row in cells[baseline].items() if seed in cells[variant]]
        for name in dict.fromkeys(name for own, _ in pairs for name in own):
            values = [own[name] - other[name] for own, other in pairs if name in own and name in other]
            if values:
                found = spread(values)
                yield {
                    "variant": variant,
                    "figure": name,
                    "seeds": found.seeds,
                    "difference": shown(found, "+"),
                    "p": shown_p(found),
                }


def gain_rows(study: Path, start: Path) -> Iterator[dict[str, Any]]:
    """A row for each variant and source of problems."""
    before = passes_by_source(start)
    for variant, seeds in done_cells(study).items():
        after = [passes_by_source(folder / "eval" / "result.json") for folder in seeds.values()]
        for source, passes in before.items():
            if any(found.get(source, {}).keys() != passes.keys() for found in after):
                raise SystemExit(f"{study}: {variant} was evaluated on different problems of {source} than {start}")
            means = [fmean(found[source][problem] for found in after) for problem in passes]
            found = paired_difference(list(passes.values()), means)
            yield {
                "variant": variant,
                "problems": file_name(source),
                "before": fmean(passes.values()),
                "after": fmean(means),
                "gain": f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]",
            }


def passes_by_source(path: Path) -> dict[str, dict[str, float]]:
    """The share of passing samples of each problem, by where it comes from."""
    passed: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for sample in load_result(path)["samples"]:
        passed[sample["source"]][sample["problem_id"]].append(sample["passed"])
    return {
        source: {problem: fmean(values) for problem, values in problems.items()} for source, problems in passed.items()
    }


def file_name(source: str) -> str:
    """Of a path with options, such as `data/svamp.jsonl?limit=200`."""
    return source.rpartition("/")[2].partition(".")[0]


def of_evaluation(folder: Path) -> dict[str, float]:
    """Of the samples after training."""
    document = json.loads((folder / "eval" / "result.json").read_text())
    samples = document["samples"]
    rollout = document["protocol"]["rollout"]
    tool_format = get_format(rollout["tool_format"], PromptConfig(tools=rollout["tools"]).specs())
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
    run = RunFiles(folder)
    steps = run.steps()
    third = max(len(steps) // 3, 1)
    found = {}
    for part in (steps[:third], steps[-third:]) if steps else ():
        values = [value for step in part for value in failed_similarities(run.rollouts(step))]
        name = f"step {part[0]}" if len(part) == 1 else f"steps {part[0]} to {part[-1]}"
        if values:
            found[f"similarity of failures, {name}"] = fmean(values)
    return found


def failed_similarities(rows: Sequence[dict[str, Any]]) -> Iterator[float]:
    """Mean similarity of each failed rollout of a step to the successes of its group, where there are both."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
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
    texts = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in cells]
    return "\n".join(markdown_table(names, texts))


if __name__ == "__main__":
    main()
