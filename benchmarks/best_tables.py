"""Tables of `recipes/tiny-study/study.py` with each algorithm at its best setting, for benchmarks/study_tables.py."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median_low
from typing import Any

import yaml

from gtpo.lab.study.figures import Spread, spread
from gtpo.lab.study.report import markdown_table, shown, shown_p

_AT_ANOTHERS_SETTING = re.compile(r"_x\d$")
COLLAPSED = 0.5
"""A run has collapsed if its last training pass rate is below this share of its highest one, over `window` batches."""


def settings_table(studies: Path, names: Sequence[str]) -> str:
    """Pass rates on the selection problems by learning rate and updates per batch; the selected setting is bold."""
    found: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for name in names:
        for variant, cells in _report(studies / "select" / name)["cells"].items():
            side, rate, updates = variant.rsplit("_", 2)
            score = fmean(cell["final"] for cell in cells.values())
            found.setdefault((name, side), {})[updates.removeprefix("x"), rate] = score
    columns = sorted({column for scores in found.values() for column in scores}, key=lambda c: (c[0], float(c[1])))
    head = ["start", "algorithm", *(f"{rate}, {updates} per batch" for updates, rate in columns)]
    rows = []
    for (name, side), scores in found.items():
        top = max(scores, key=lambda column: (scores[column], -float(column[1])))
        cells = [f"{scores[column]:.3f}" if column in scores else "" for column in columns]
        rows.append(
            [name, side, *(f"**{c}**" if column == top else c for c, column in zip(cells, columns, strict=True))]
        )
    return "\n".join(markdown_table(head, rows))


def best_table(studies: Path, name: str) -> str:
    """A row an algorithm, at its selected setting."""
    report = _report(studies / "best" / name)
    study = yaml.safe_load((studies / "best" / name / "study.yaml").read_text())
    thresholds = study["thresholds"]
    head = ["algorithm", "setting", "seeds", "final pass rate", "minus GRPO's", "p", "area", "minus GRPO's", "p"]
    head += ["minus GRPO's at the same setting", "p"]
    head += [f"batches to {threshold:g}" for threshold in thresholds]
    head += ["lowest, highest seed", "collapsed", "invalid calls", "turns"]
    rows = []
    for variant, cells in report["cells"].items():
        options, difference = study["variants"][variant], report["differences"].get(variant, {})
        runs, finals = list(cells.values()), [cell["final"] for cell in cells.values()]
        row = [variant, _setting(options), str(len(runs)), _shown(report["final"][variant])]
        row += [_shown(difference.get("final"), "+"), _p(difference.get("final")), _shown(report["area"][variant])]
        row += [_shown(difference.get("area"), "+"), _p(difference.get("area"))]
        same = _same_setting(variant, study["variants"], report["cells"])
        row += [shown(same, "+"), shown_p(same)] if same else ["", ""]
        row += [_batches(runs, threshold, report["window"]) for threshold in thresholds]
        row += [f"{min(finals):.3f}, {max(finals):.3f}", f"{sum(_collapsed(run, report['window']) for run in runs)}"]
        row += [f"{fmean(run['result'][key] for run in runs):.3g}" for key in _RESULTS]
        rows.append(row)
    return "\n".join(markdown_table(head, rows))


def map_table(studies: Path, names: Sequence[str]) -> str:
    """A row a start, by its pass rate before training: differences of final pass rates from GRPO's.

    One that is significantly below GRPO (its 95 % interval excludes 0) is bold.
    """
    reports = {name: _report(studies / "best" / name) for name in names}
    found = dict.fromkeys(variant for report in reports.values() for variant in report["differences"])
    others = [variant for variant in found if not _AT_ANOTHERS_SETTING.search(variant)]
    rows = []
    for name, report in reports.items():
        start = fmean(run["curve"][0] for cells in report["cells"].values() for run in cells.values())
        turns = fmean(run["result"]["turns_per_rollout"] for run in report["cells"]["grpo"].values())
        row = [name, f"{start:.3f}", f"{turns:.1f}", _shown(report["final"]["grpo"])]
        rows.append([*row, *(_mark(report["differences"].get(variant, {}).get("final")) for variant in others)])
    head = ["start", "pass rate of the first batch", "turns (GRPO, at the end)", "GRPO's final pass rate"]
    head += [f"{name} minus GRPO" for name in others]
    return "\n".join(markdown_table(head, sorted(rows, key=lambda row: float(row[1]))))


_RESULTS = ("invalid_calls_per_rollout", "turns_per_rollout")


def _report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def _setting(options: Mapping[str, Any]) -> str:
    gamma = f", gamma {options['gamma']}" if "gamma" in options else ""
    return (
        f"{float(options['learning_rate']):.0e}".replace("e-0", "e-")
        + f", {options['num_iterations']} per batch{gamma}"
    )


def _same_setting(variant: str, variants: Mapping[str, Mapping[str, Any]], cells: Mapping[str, Any]) -> Spread | None:
    """Final pass rate minus that of GRPO at the same learning rate and updates per batch, paired by seed."""
    keys = ("learning_rate", "num_iterations")
    for other, options in variants.items():
        alike = all(options[key] == variants[variant][key] for key in keys)
        if alike and other != variant and other in cells and options.get("algorithm") == "grpo":
            paired = sorted(set(cells[other]) & set(cells[variant]))
            pairs = [cells[variant][seed]["final"] - cells[other][seed]["final"] for seed in paired]
            return spread(pairs) if pairs else None
    return None


def _windows(run: Mapping[str, Any], window: int) -> list[float]:
    curve = run["curve"]
    return [fmean(curve[i + 1 - window : i + 1]) for i in range(window - 1, len(curve))]


def _batches(runs: Sequence[Mapping[str, Any]], threshold: float, window: int) -> str:
    """The (lower) median over the seeds that got there, and how many did if not all."""
    firsts = [
        next((i + window for i, value in enumerate(_windows(run, window)) if value >= threshold), None) for run in runs
    ]
    there = [first for first in firsts if first is not None]
    if not there:
        return "never"
    return f"{median_low(there)}" + (f" ({len(there)} of {len(firsts)})" if len(there) < len(firsts) else "")


def _collapsed(run: Mapping[str, Any], window: int) -> bool:
    windows = _windows(run, window)
    return windows[-1] < COLLAPSED * max(windows)


def _shown(found: dict[str, Any] | None, sign: str = "") -> str:
    return shown(Spread(**found), sign) if found else ""


def _p(found: dict[str, Any] | None) -> str:
    return shown_p(Spread(**found)) if found else ""


def _mark(found: dict[str, Any] | None) -> str:
    text = _shown(found, "+")
    return f"**{text}**" if found and found["high"] is not None and found["high"] < 0 else text
