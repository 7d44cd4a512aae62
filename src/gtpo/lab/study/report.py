"""The report of a study: `report.md`, `report.json` and `curves.png` in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median_low
from typing import Any

import numpy as np

from gtpo.errors import ConfigError
from gtpo.lab.study.figures import WINDOW, CellFigures, Spread, StudyFigures, as_document, study_figures
from gtpo.lab.study.plan import Study
from gtpo.lab.study.runner import stale_parts

PANELS = (
    ("pass_rate", "pass rate"),
    ("invalid_calls", "invalid calls per rollout"),
    ("turns", "turns per rollout"),
)
LEGEND_COLUMNS = 6
LINES = ("-", "--", ":")
"""Line styles for ten variants each, in ten colours."""


def write_report(study: Study) -> Path:
    """Write the report of the cells that have finished so far; returns its Markdown file.

    Raises:
        DataError: a cell has no metrics.
        ConfigError: a cell was run with other options than the study has.
    """
    done = [cell for cell in study.cells if _is_done(cell.folder)]
    for cell in done:
        if parts := stale_parts(cell):
            raise ConfigError(
                f"{cell.folder}: its {' and '.join(parts)} was done with other options than the study file has now, or "
                "with files that have changed since, so it can't be compared; delete the folder to run it again, or "
                "give the study another output"
            )
    figures = study_figures(study, done)
    study.output.mkdir(parents=True, exist_ok=True)
    document = as_document(study, figures)
    (study.output / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if done:
        draw_curves(figures, study.output / "curves.png")
    path = study.output / "report.md"
    path.write_text(report_text(study, figures, len(done)), encoding="utf-8")
    return path


def _is_done(folder: Path) -> bool:
    state = folder / "cell.json"
    return state.exists() and bool(json.loads(state.read_text()).get("done"))


def report_text(study: Study, figures: StudyFigures, done: int) -> str:
    """The report as Markdown."""
    firsts = [f"steps to {threshold:g}" for threshold in study.thresholds]
    lines = [
        f"# {study.output.name}",
        "",
        f"{done} of {len(study.cells)} cells are done. Means over seeds with 95 % intervals (Student's); differences "
        "are paired by seed. Area: mean training pass rate over all steps. Last: training pass rate over the last "
        f"{WINDOW} steps. Equal time: the same at the time when the faster of the two runs had ended.",
        "",
        *markdown_table(
            [
                "variant",
                "seeds",
                "final pass rate",
                "area",
                *firsts,
                "turns",
                "calls",
                "invalid calls",
                "tokens",
                "s/step",
            ],
            [_variant_row(study, figures, name) for name in study.variants if name in figures.final],
        ),
        "",
        f"## Differences from {study.baseline}",
        "",
        *markdown_table(
            ["variant", "seeds", "final", "p", "area", "p", "last", "p", "equal time", "p"],
            [_difference_row(name, parts) for name, parts in figures.differences.items()],
        ),
        "",
        *_source_lines(figures),
        "## Where the time of a step goes",
        "",
        *markdown_table(
            ["variant", "rollouts", "of these tools", "verification", "credit", "update"],
            [_time_row(name, list(seeds.values())) for name, seeds in figures.cells.items()],
        ),
        "",
        "![learning curves](curves.png)",
        "",
    ]
    return "\n".join(lines)


def _source_lines(figures: StudyFigures) -> list[str]:
    """The section about the sources of the evaluation's problems; empty if there is one source."""
    if not figures.sources:
        return []
    rows = source_rows(figures.sources, figures.source_differences)
    head = ["problems", "variant", "seeds", "pass rate", "minus the baseline's", "p"]
    return ["## By source of the problems", "", *markdown_table(head, rows), ""]


def source_rows(
    sources: Mapping[str, Mapping[str, Spread]], differences: Mapping[str, Mapping[str, Spread]]
) -> list[list[str]]:
    """One row per source and variant: both, seeds (and how many are paired, if not all), pass rate, difference, p."""
    rows = []
    for source, variants in sources.items():
        for name, value in variants.items():
            difference = differences[source].get(name)
            seeds = str(value.seeds)
            if difference and difference.seeds != value.seeds:
                seeds += f" ({difference.seeds} paired)"
            rows.append([source, name, seeds, shown(value), *_difference_cells(difference)])
    return rows


def _difference_cells(difference: Spread | None) -> list[str]:
    return [shown(difference, "+"), shown_p(difference)] if difference else ["", ""]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _variant_row(study: Study, figures: StudyFigures, name: str) -> list[str]:
    cells = list(figures.cells[name].values())
    firsts = [[cell.first_step[threshold] for cell in cells] for threshold in study.thresholds]
    row = [name, str(len(cells)), shown(figures.final[name]), shown(figures.area[name])]
    row += [_steps(first) for first in firsts]
    for key in ("turns_per_rollout", "calls_per_rollout", "invalid_calls_per_rollout", "sampled_tokens_per_rollout"):
        values = [cell.result[key] for cell in cells if key in cell.result]
        row.append(f"{fmean(values):.3g}" if values else "")
    return [*row, f"{fmean(cell.seconds[-1] / len(cell.seconds) for cell in cells):.2f}"]


def _steps(first: Sequence[int | None]) -> str:
    """The (lower) median over the seeds that reached it, and their number if not all did."""
    there = [step for step in first if step is not None]
    if not there:
        return "never"
    return f"{median_low(there)}" + (f" ({len(there)} of {len(first)})" if len(there) < len(first) else "")


def _difference_row(name: str, parts: dict[str, Spread]) -> list[str]:
    row = [name, str(parts["final"].seeds)]
    for which in ("final", "area", "last", "equal_time"):
        row += _difference_cells(parts[which])
    return row


def shown_p(value: Spread) -> str:
    """A p-value; empty if there is none."""
    return "" if value.p_value is None else f"{value.p_value:.3f}"


def shown(value: Spread, sign: str = "") -> str:
    """A mean with its interval."""
    if value.low is None or value.high is None:
        return f"{value.mean:{sign}.3f}"
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def _time_row(name: str, cells: Sequence[CellFigures]) -> list[str]:
    parts = ("rollout", "tools", "verify", "credit", "update")
    return [name, *(f"{fmean(cell.shares.get(part, 0.0) for cell in cells):.1%}" for part in parts)]


def draw_curves(figures: StudyFigures, path: Path, panels: Sequence[tuple[str, str]] = PANELS) -> None:
    """Draw the mean over seeds, with a band of one standard deviation on each side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(figures.cells) // LEGEND_COLUMNS)
    size = (4.2 * len(panels), 3.4 + 0.2 * rows)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained")
    for number, (name, seeds) in enumerate(figures.cells.items()):
        for axis, (metric, _) in zip(axes, panels, strict=True):
            _draw(axis, [cell.metrics[metric] for cell in seeds.values() if metric in cell.metrics], name, number)
    for axis, (_, label) in zip(axes, panels, strict=True):
        axis.set(xlabel="step", ylabel=label)
        axis.set_ylim(0, None)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw(axis: Any, curves: Sequence[Sequence[float]], label: str, number: int) -> None:
    if not curves:
        return
    length = min(map(len, curves))
    columns = [_smooth(curve[:length]) for curve in curves]
    means, spreads = np.mean(columns, axis=0), np.std(columns, axis=0, ddof=min(len(columns) - 1, 1))
    steps = range(1, length + 1)
    (line,) = axis.plot(steps, means, lw=1.5, label=label, color=f"C{number % 10}", ls=LINES[number // 10 % len(LINES)])
    axis.fill_between(steps, means - spreads, means + spreads, color=line.get_color(), alpha=0.12, lw=0)


def _smooth(curve: Sequence[float]) -> list[float]:
    return [fmean(curve[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(curve))]
