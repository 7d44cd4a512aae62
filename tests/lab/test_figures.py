"""The statistics of a study on cells made up here, whose figures are known."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from gtpo.errors import DataError
from gtpo.lab.study import Cell, Study, write_report
from gtpo.lab.study.figures import Spread, cell_figures, spread, study_figures
from gtpo.lab.study.report import _steps, draw_curves


def values_with(t, degrees):
    """As many values as give this t: their mean over its standard error."""
    values = [float(i) for i in range(degrees + 1)]
    shift = t * stdev(values) / math.sqrt(len(values)) - fmean(values)
    return [value + shift for value in values]


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    # Of tables: t = 2.776 at 4 degrees and 12.706 at 1 are the 97.5 % quantiles, 4.604 at 4 the 99.5 %.
    [(2.776445, 4, 0.05), (12.706205, 1, 0.05), (4.604095, 4, 0.01), (0.0, 3, 1.0), (-2.776445, 4, 0.05)],
)
def test_p_values_are_students(t, degrees, p):
    assert spread(values_with(t, degrees)).p_value == pytest.approx(p, abs=2e-6)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (200, 1.972)]
)
def test_intervals_are_students(degrees, quantile):
    found = spread(values_with(2.0, degrees))
    error = found.deviation / math.sqrt(found.seeds)
    assert (found.high - found.mean) / error == pytest.approx(quantile, abs=5e-4)
    assert (found.mean - found.low) / error == pytest.approx(quantile, abs=5e-4)


def test_intervals_over_seeds_cover_the_mean_as_often_as_they_say():
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        found = spread([rng.gauss(0.3, 0.1) for _ in range(5)])
        covered += found.low <= 0.3 <= found.high
    assert 0.94 < covered / 2000 < 0.965


def test_one_seed_has_no_interval():
    assert spread([0.4]).low is None


@pytest.mark.parametrize("values", [[0.2, 0.2], [0.0, 0.0], [0.3 - 0.1, 0.4 - 0.2, 0.6 - 0.4]])
def test_seeds_that_agree_say_nothing_of_the_spread(values):
    assert spread(values) == Spread(pytest.approx(values[0]), 0.0, None, None, None, len(values))


def cell(folder, variant, seed, curve, *, final, step_time=1.0, **sources):
    found = Cell(variant, seed, folder / "cells" / f"{variant}-{seed}", {}, {})
    found.result.parent.mkdir(parents=True)
    rows = [
        {"step": i, "pass_rate": value, "step_time": step_time, "turns": 3.0, "invalid_calls": 0.1}
        | {"time/rollout_s": 0.6, "time/verify_s": 0.1, "time/credit_s": 0.1, "time/update_s": 0.2}
        for i, value in enumerate(curve, 1)
    ]
    closing = [{"step": len(curve), "train_loss": 0.0}]
    (found.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + closing))
    by_source = {f"{name}.jsonl": {"scores": {"avg@2": {"value": value}}} for name, value in sources.items()}
    found.result.write_text(
        json.dumps({"pass_rate": final, "turns_per_rollout": 3.0, "protocol": {"samples": 2}, "sources": by_source})
    )
    (found.folder / "cell.json").write_text(json.dumps({"done": True}))
    return found


@pytest.fixture
def study(tmp_path):
    cells = []
    for seed, gain in ((1, 0.1), (2, 0.2)):
        cells.append(cell(tmp_path, "grpo", seed, [0.1] * 10 + [0.5] * 10, final=0.5))
        cells.append(cell(tmp_path, "gtpo", seed, [0.1] * 5 + [0.5 + gain] * 15, final=0.5 + gain, step_time=2.0))
    return Study(tmp_path, tuple(cells), "grpo", (0.5, 0.9))


def test_a_noisy_first_step_is_no_average_over_five(tmp_path):
    noisy = cell(tmp_path, "grpo", 1, [0.6] + [0.1] * 7 + [0.6] * 5, final=0.5)
    assert cell_figures(noisy, (0.5,)).first_step == {0.5: 12}


@pytest.mark.parametrize(
    ("first", "said"),
    [([20, 30, 40], "30"), ([20, None], "20 (1 of 2)"), ([20, 30, None, None], "20 (2 of 4)"), ([None, None], "never")],
)
def test_steps_to_a_pass_rate(first, said):
    assert _steps(first) == said


def test_figures_of_a_cell(study):
    found = cell_figures(study.cells[0], study.thresholds)
    assert (found.steps, found.final, found.area) == (20, 0.5, pytest.approx(0.3))
    assert found.first_step == {0.5: 15, 0.9: None}
    assert found.seconds[-1] == 20.0
    assert found.at(12.5) == pytest.approx(fmean([0.1, 0.1, 0.1, 0.5, 0.5]))
    assert found.shares["rollout"] == pytest.approx(0.6)


def test_differences_are_paired_by_seed_and_at_equal_time_the_slower_run_is_cut(study):
    found = study_figures(study, study.cells)
    difference = found.differences["gtpo"]
    assert difference["final"].mean == pytest.approx(0.15)
    error = 0.05
    assert difference["final"].high == pytest.approx(0.15 + 12.706 * error, rel=1e-3)
    assert difference["final"].p_value == pytest.approx(1 - 2 / math.pi * math.atan(0.15 / error))  # Cauchy's
    # After 20 s the slower run has done 10 of its steps, the last five of which are past its jump.
    assert difference["equal_time"].mean == pytest.approx(0.15)
    assert difference["area"].mean == pytest.approx(fmean([0.1 * 0.25 + 0.75 * (0.5 + g) for g in (0.1, 0.2)]) - 0.3)


def test_the_report_has_every_variant_and_says_how_many_cells_are_done(study):
    text = write_report(study).read_text()
    assert "4 of 4 cells are done" in text
    assert "| gtpo | 2 | 0.650" in text
    assert "| grpo | 2 | 0.500" in text
    document = json.loads((study.output / "report.json").read_text())
    assert document["differences"]["gtpo"]["final"]["mean"] == pytest.approx(0.15)
    assert (study.output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_that_is_not_done_is_left_out(study):
    (study.cells[-1].folder / "cell.json").write_text("{}")
    assert "3 of 4 cells are done" in write_report(study).read_text()


def test_a_variant_without_a_seed_in_common_with_the_baseline_has_no_difference(tmp_path):
    cells = (cell(tmp_path, "grpo", 1, [0.1], final=0.1), cell(tmp_path, "gtpo", 2, [0.2], final=0.2))
    assert study_figures(Study(tmp_path, cells, "grpo", ()), cells).differences == {}


def test_problems_of_several_sources_are_told_apart(tmp_path):
    cells = []
    for seed in (1, 2):
        cells.append(cell(tmp_path, "grpo", seed, [0.1], final=0.2, easy=0.3, hard=0.1))
        cells.append(cell(tmp_path, "gtpo", seed, [0.1], final=0.3, easy=0.3, hard=0.1 + 0.1 * seed))
    study = Study(tmp_path, tuple(cells), "grpo", ())
    found = study_figures(study, cells)
    assert found.sources["hard.jsonl"]["gtpo"].mean == pytest.approx(0.25)
    assert found.source_differences["hard.jsonl"]["gtpo"].mean == pytest.approx(0.15)
    assert found.source_differences["easy.jsonl"]["gtpo"].mean == 0
    text = write_report(study).read_text()
    assert "| hard.jsonl | grpo | 2 | 0.100 |  |  |" in text
    assert "| easy.jsonl | gtpo | 2 | 0.300 | +0.000 |  |" in text
    assert json.loads((study.output / "report.json").read_text())["sources"]["easy.jsonl"]["grpo"]["mean"] == 0.3


def test_a_source_says_how_many_of_the_seeds_are_paired(tmp_path):
    cells = [cell(tmp_path, "grpo", 1, [0.1], final=0.2, easy=0.3, hard=0.1)]
    cells += [cell(tmp_path, "gtpo", seed, [0.1], final=0.3, easy=0.3, hard=0.2) for seed in (1, 2)]
    text = write_report(Study(tmp_path, tuple(cells), "grpo", ())).read_text()
    assert "| hard.jsonl | grpo | 1 | 0.100 |  |  |" in text
    assert "| hard.jsonl | gtpo | 2 (1 paired) | 0.200 | +0.100 |  |" in text


def test_one_source_needs_no_table_of_its_own(tmp_path):
    cells = (cell(tmp_path, "grpo", 1, [0.1], final=0.2, easy=0.2),)
    assert "By source" not in write_report(Study(tmp_path, cells, "grpo", ())).read_text()


def test_a_cell_without_metrics_is_named(study):
    (study.cells[0].folder / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no step with a pass rate"):
        cell_figures(study.cells[0], ())


def test_p_value_falls_with_t():
    values = [spread(values_with(t, 4)).p_value for t in (0.0, 0.5, 1.0, 2.0, 5.0, 50.0)]
    assert values == sorted(values, reverse=True)
    assert not math.isnan(spread(values_with(1e9, 2)).p_value)


def test_many_variants_leave_the_curves_their_room(study, tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    figures = study_figures(study, study.cells)
    seeds = figures.cells["gtpo"]
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    draw_curves(replace(figures, cells={f"variant number {i}": seeds for i in range(30)}), tmp_path / "curves.png")
    (figure,) = kept
    assert all(axis.get_position().height * figure.get_figheight() > 2 for axis in figure.axes), "inches"
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 30
