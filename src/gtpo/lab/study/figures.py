"""The figures of a study: of each cell, of each variant over its seeds, and of differences paired by seed.

The unit is the seed. Intervals and p-values are Student's over seeds: with five seeds the spread itself is poorly
known, and the intervals are correspondingly wide.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import scipy  # its parts are imported when they are first used: scipy.stats takes a second

from gtpo.errors import DataError
from gtpo.lab.study.plan import Cell, Study
from gtpo.run_directory import read_metrics

WINDOW = 5
"""Steps over which the training pass rate is averaged when one number describes a point of the training."""
_ROUNDING = 1e-12
"""A smaller deviation counts as 0: differences of equal rates vary by less than this."""
_SHARES = ("rollout", "tools", "verify", "credit", "update")
_OF_RESULT = ("turns_per_rollout", "calls_per_rollout", "invalid_calls_per_rollout", "sampled_tokens_per_rollout")


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean, deviation: over seeds; the deviation is 0 for one seed.
        low, high: 95 % interval of the mean (Student's); None for one seed, and if all seeds agree: a few equal values
            of a count do not show how far apart other seeds would be.
        p_value: two-sided, for the hypothesis that the mean is 0; None whenever the interval is.
        seeds: number of seeds.
    """

    mean: float
    deviation: float
    low: float | None
    high: float | None
    p_value: float | None
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """The mean of one value per seed, with its interval.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no value")
    mean, count = fmean(values), len(values)
    deviation = stdev(values) if count > 1 else 0.0
    if deviation <= _ROUNDING:
        return Spread(mean, 0.0, None, None, None, count)
    test = scipy.stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(0.95)
    return Spread(mean, deviation, float(low), float(high), float(test.pvalue), count)


@dataclass(frozen=True)
class CellFigures:
    """The figures of one cell.

    Attributes:
        steps: training steps.
        curve: training pass rate at each of them.
        seconds: seconds of training at the end of each.
        final: pass rate of the evaluation; without one, of the last `WINDOW` steps.
        area: mean of the training pass rate over all steps (the area under its curve, over the number of steps).
        first_step: by threshold, the first step whose pass rate, averaged over `WINDOW` steps, reaches it; None: never.
        metrics: every figure of metrics.jsonl, by name, at each step.
        shares: shares of the step time by phase, over all steps.
        result: turns, calls, invalid calls and sampled tokens per rollout in the evaluation.
        sources: pass rate of the evaluation by source of its problems.
    """

    steps: int
    curve: list[float]
    seconds: list[float]
    final: float
    area: float
    first_step: dict[float, int | None]
    metrics: dict[str, list[float]] = field(repr=False)
    shares: dict[str, float]
    result: dict[str, float]
    sources: dict[str, float]

    def at(self, seconds: float) -> float:
        """The training pass rate of the `WINDOW` steps before this time."""
        done = max(sum(moment <= seconds for moment in self.seconds), 1)
        return fmean(self.curve[max(0, done - WINDOW) : done])


def cell_figures(cell: Cell, thresholds: Sequence[float]) -> CellFigures:
    """Read the results of a cell.

    Raises:
        DataError: the cell has no metrics.
    """
    path = cell.folder / "metrics.jsonl"
    lines = [line for line in read_metrics(cell.folder) if line.get("pass_rate") is not None] if path.exists() else []
    if not lines:
        raise DataError("has no step with a pass rate; is logging_steps larger than max_steps?", path=path)
    metrics = {
        name: [float(line[name]) for line in lines]
        for name in lines[0]
        if all(isinstance(line.get(name), (int, float)) for line in lines)
    }
    curve = metrics["pass_rate"]
    times = metrics.get("step_time", [0.0] * len(curve))
    windows = [fmean(curve[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(curve))]
    steps = [int(step) for step in metrics["step"]]
    whole = list(zip(steps, windows, strict=True))[WINDOW - 1 :]
    reached = {threshold: next((step for step, value in whole if value >= threshold), None) for threshold in thresholds}
    result = json.loads(cell.result.read_text()) if cell.result.exists() else {}
    total = sum(sum(metrics.get(f"time/{name}_s", [0.0])) for name in ("rollout", "verify", "credit", "update"))
    return CellFigures(
        steps=steps[-1],
        curve=curve,
        seconds=[sum(times[: i + 1]) for i in range(len(times))],
        final=float(result["pass_rate"]) if result else windows[-1],
        area=fmean(curve),
        first_step=reached,
        metrics=metrics,
        shares={name: sum(metrics.get(f"time/{name}_s", [0.0])) / total for name in _SHARES} if total else {},
        result={name: float(result[name]) for name in _OF_RESULT if name in result},
        sources={
            name: float(figures["scores"][f"avg@{result['protocol']['samples']}"]["value"])
            for name, figures in result.get("sources", {}).items()
        },
    )


@dataclass(frozen=True)
class StudyFigures:
    """The figures of a study.

    Attributes:
        cells: figures by variant and seed, of finished cells only.
        final, area: over seeds, by variant.
        differences: from the baseline, over the seeds that both have, by variant: `final` (the evaluation, at equal
            rollouts), `area`, `last` (training pass rate of the last steps) and `equal_time` (the same at the time when
            the faster of the two runs had ended).
        sources: if evaluations have problems from several sources: by source, pass rates over seeds by variant.
        source_differences: the same as differences from the baseline, paired by seed.
    """

    cells: dict[str, dict[int, CellFigures]]
    final: dict[str, Spread]
    area: dict[str, Spread]
    differences: dict[str, dict[str, Spread]]
    sources: dict[str, dict[str, Spread]]
    source_differences: dict[str, dict[str, Spread]]


def study_figures(study: Study, done: Sequence[Cell]) -> StudyFigures:
    """The figures of the finished cells."""
    cells: dict[str, dict[int, CellFigures]] = {}
    for cell in done:
        cells.setdefault(cell.variant, {})[cell.seed] = cell_figures(cell, study.thresholds)
    base = cells.get(study.baseline, {})
    paired = {
        name: [(seeds[seed], base[seed]) for seed in sorted(set(seeds) & set(base))]
        for name, seeds in cells.items()
        if name != study.baseline and set(seeds) & set(base)
    }
    sources = _common_sources([figures for seeds in cells.values() for figures in seeds.values()])
    return StudyFigures(
        cells=cells,
        final={name: spread([figures.final for figures in seeds.values()]) for name, seeds in cells.items()},
        area={name: spread([figures.area for figures in seeds.values()]) for name, seeds in cells.items()},
        differences={name: _differences(pairs) for name, pairs in paired.items()},
        sources={
            source: {
                name: spread([figures.sources[source] for figures in seeds.values()]) for name, seeds in cells.items()
            }
            for source in sources
        },
        source_differences={
            source: {
                name: spread([own.sources[source] - other.sources[source] for own, other in pairs])
                for name, pairs in paired.items()
            }
            for source in sources
        },
    )


def _common_sources(cells: Sequence[CellFigures]) -> list[str]:
    """The sources from which all cells have problems, if there is more than one."""
    first = list(cells[0].sources) if cells else []
    common = [name for name in first if all(name in cell.sources for cell in cells)]
    return common if len(common) > 1 else []


def _differences(pairs: Sequence[tuple[CellFigures, CellFigures]]) -> dict[str, Spread]:
    found: dict[str, list[float]] = {"final": [], "area": [], "last": [], "equal_time": []}
    for a, b in pairs:
        end = min(a.seconds[-1], b.seconds[-1])
        found["final"].append(a.final - b.final)
        found["area"].append(a.area - b.area)
        found["last"].append(a.at(math.inf) - b.at(math.inf))
        found["equal_time"].append(a.at(end) - b.at(end))
    return {name: spread(values) for name, values in found.items()}


def as_document(study: Study, figures: StudyFigures) -> dict[str, Any]:
    """The contents of report.json."""
    return {
        "baseline": study.baseline,
        "window": WINDOW,
        "final": _plain(figures.final),
        "area": _plain(figures.area),
        "differences": {name: _plain(parts) for name, parts in figures.differences.items()},
        "sources": {name: _plain(variants) for name, variants in figures.sources.items()},
        "source_differences": {name: _plain(variants) for name, variants in figures.source_differences.items()},
        "cells": {
            name: {
                str(seed): {key: value for key, value in vars(cell).items() if key != "metrics"}
                for seed, cell in seeds.items()
            }
            for name, seeds in figures.cells.items()
        },
    }


def _plain(spreads: Mapping[str, Spread]) -> dict[str, dict[str, Any]]:
    return {name: vars(value) for name, value in spreads.items()}
