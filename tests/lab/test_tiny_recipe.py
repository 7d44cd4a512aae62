"""The studies of recipes/tiny-study: the files that they write, the search of a setting, and their tables."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import yaml

from gtpo.commands import evaluate, train
from gtpo.lab.study import read_study
from gtpo.lab.tiny.families import get_family

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "tiny-study"))
    return importlib.import_module("study")


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("best_tables")


def test_every_start_has_the_tools_of_its_family(recipe):
    for start in recipe.STARTS.values():
        family = get_family(start.demo["family"], start.demo.get("problem_steps"))
        assert start.tools == family.tools or family.name == "steps"
        assert start.demo.get("max_trace_tokens", 128) <= start.max_completion_length


def test_the_study_files_are_ones_that_gtpo_study_takes(recipe, tmp_path):
    documents = [
        recipe.study_document(name, "ablate", "held_out", *recipe.ABLATIONS[name]) for name in recipe.ABLATIONS
    ]
    sides = {
        name: {**options, **recipe.setting(recipe.STARTS["flaky"], "1e-3", 2)} for name, options in recipe.SIDES.items()
    }
    documents.append(recipe.study_document("flaky", "best", "held_out", sides, [1, 2], {}))
    checked = set()
    for number, document in enumerate(documents):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(document))
        study = read_study(path)
        assert study.baseline == "grpo"
        for cell in study.cells:
            if cell.variant in checked:
                continue
            checked.add(cell.variant)
            options = tmp_path / "options.yaml"
            options.write_text(yaml.safe_dump(dict(cell.train)))
            train.arguments(["--config", str(options), "--run_dir", str(tmp_path)])
    options.write_text(yaml.safe_dump(dict(cell.evaluate)))
    evaluate.arguments(["--config", str(options)])
    assert {"paper", "gamma_0.9", "gtpo", "gamma_0", "rloo"} <= checked


def test_rollouts_are_equal_whatever_the_updates_per_batch(recipe):
    once, twice = (recipe.setting(recipe.STARTS["hops"], "3e-4", updates) for updates in (1, 2))
    assert once["max_steps"] / once["num_iterations"] == twice["max_steps"] / twice["num_iterations"]


def searched(recipe, truth, updates=2, rates=("1e-4", "3e-4", "6e-4", "1e-3", "2e-3")):
    """The settings that the search runs, where `truth` says what comes of one."""
    scores = {}
    while new := recipe.next_settings(scores, updates, rates):
        assert not set(new) & set(scores)
        scores.update({found: truth(*found) for found in new})
    return scores


def peak(rate, height=0.0):
    return lambda found, times: -abs(math.log(float(found) / rate)) + height * (times == 2)


@pytest.mark.parametrize("rate", ["1e-4", "3e-4", "6e-4", "1e-3", "2e-3"])
def test_the_search_finds_the_best_rate_and_has_run_what_is_beside_it(recipe, rate):
    scores = searched(recipe, peak(float(rate)))
    assert recipe.best(scores) == (rate, 1)
    place = recipe.RATES.index(rate)
    assert {(other, 1) for other in recipe.RATES[max(place - 1, 0) : place + 2]} <= set(scores)
    assert {found for found, times in scores if times == 2} == {*recipe.RATES[max(place - 1, 0) : place + 1]}
    assert recipe.best(searched(recipe, peak(float(rate), height=1.0))) == (rate, 2)
    assert all(times == 1 for _, times in searched(recipe, peak(float(rate)), updates=1))


def test_the_search_stays_within_the_rates_it_may_try(recipe):
    assert set(searched(recipe, peak(2e-3), 1, ["6e-4", "1e-3"])) == {("6e-4", 1), ("1e-3", 1)}
    assert set(searched(recipe, peak(1e-4), 1, ["1e-4", "3e-4"])) == {("1e-4", 1), ("3e-4", 1)}


def write_report(recipe, folder, finals):
    """A study of `finals` (by variant, a list over seeds), and its report."""
    variants = {
        name: {**recipe.SIDES.get(name, {}), **recipe.setting(recipe.STARTS["flaky"], "1e-3", 1)} for name in finals
    }
    document = recipe.study_document("flaky", "best", "held_out", variants, [1, 2, 3], {})
    spread = {"deviation": 0.0, "low": None, "high": None, "p_value": None, "seeds": 3}
    result = {"invalid_calls_per_rollout": 0.1, "turns_per_rollout": 9.0}
    cells = {
        name: {
            str(seed): {"final": final, "curve": [0.1, *[final / 2] * 4, *[final] * 6], "result": result}
            for seed, final in enumerate(values)
        }
        for name, values in finals.items()
    }
    means = {name: {**spread, "mean": sum(values) / len(values)} for name, values in finals.items()}
    worse = {"mean": -0.2, "deviation": 0.1, "low": -0.3, "high": -0.1, "p_value": 0.01, "seeds": 3}
    report = {"window": 5, "final": means, "area": means, "cells": cells}
    report["differences"] = {name: {"final": worse, "area": worse} for name in finals if name != "grpo"}
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "study.yaml").write_text(yaml.safe_dump(document))


def test_the_tables_show_settings_batches_collapses_and_what_is_below_grpo(recipe, tables, tmp_path):
    write_report(recipe, tmp_path / "best" / "flaky", {"grpo": [0.8, 0.8, 0.8], "gtpo": [0.6, 0.6, 0.6]})
    best = tables.best_table(tmp_path, "flaky").splitlines()
    head = [cell.strip() for cell in best[0].split("|")]
    grpo, gtpo = ([cell.strip() for cell in line.split("|")] for line in best[2:])
    assert grpo[head.index("setting")] == "1e-3, 1 per batch"
    assert grpo[head.index("batches to 0.3")] == "5"
    assert (grpo[head.index("batches to 0.7")], gtpo[head.index("batches to 0.7")]) == ("9", "never")
    assert grpo[head.index("collapsed")] == "0"
    assert gtpo[head.index("p")] == "0.010"
    row = tables.map_table(tmp_path, ["flaky"]).splitlines()[2]
    assert "0.100 | 9.0" in row
    assert "**-0.200 [-0.300, -0.100]**" in row


def test_a_run_that_loses_half_of_its_pass_rate_has_collapsed(tables):
    assert tables._collapsed({"curve": [0.1] * 5 + [0.8] * 5 + [0.1] * 5}, 5)
    assert not tables._collapsed({"curve": [0.1] * 5 + [0.8] * 5 + [0.6] * 5}, 5)


def test_the_selected_setting_is_the_bold_one(tables, tmp_path):
    folder = tmp_path / "select" / "flaky"
    folder.mkdir(parents=True)
    cells = {
        f"grpo_{rate}_x1": {"11": {"final": final}} for rate, final in (("6e-4", 0.7), ("1e-3", 0.8), ("2e-3", 0.1))
    }
    (folder / "report.json").write_text(json.dumps({"cells": cells}))
    assert "| flaky | grpo | 0.700 | **0.800** | 0.100 |" in tables.settings_table(tmp_path, ["flaky"])


def test_a_table_is_put_into_a_page_and_one_without_a_report_is_kept(recipe, tables, tmp_path, monkeypatch, capsys):
    write_report(recipe, tmp_path / "best" / "flaky", {"grpo": [0.8, 0.8, 0.8], "gtpo": [0.6, 0.6, 0.6]})
    page = tmp_path / "page.md"
    kept = "<!-- table: best steps -->\n| old |\n<!-- end -->"
    page.write_text(f"{kept}\n\n<!-- table: best flaky -->\n<!-- end -->\n\n{kept.replace('best', 'behaviour')}\n")
    monkeypatch.setattr("sys.argv", ["study_tables.py", str(page), "--studies", str(tmp_path)])
    importlib.import_module("study_tables").main()
    assert "1 tables made\nkept: best steps (" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith(kept)
    assert "| grpo | 1e-3, 1 per batch |" in text
    assert text.count("| old |") == 2


def bold_settings(page):
    """What the tables of the page say was selected, by start and side."""
    found, head = {}, []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == ["start", "algorithm"]:
            head = cells
        elif head and len(cells) == len(head) and any(cell.startswith("**") for cell in cells):
            rate, updates = head[next(i for i, cell in enumerate(cells) if cell.startswith("**"))].split(", ")
            found.setdefault(cells[0], {})[cells[1]] = [rate, int(updates[0])]
    return found


def test_the_settings_of_a_report_without_a_selection_are_those_of_the_page(recipe, tmp_path, monkeypatch, capsys):
    selected = yaml.safe_load(recipe.SELECTED.read_text())
    assert selected.keys() == recipe.STARTS.keys()
    assert selected == bold_settings(ROOT / "docs" / "results" / "at-their-best.md")
    monkeypatch.chdir(tmp_path)
    documents = []
    monkeypatch.setattr(recipe, "run_study", lambda document, args: documents.append(document))
    monkeypatch.setattr("sys.argv", ["study.py", "report", "hops", "--seeds", "26"])
    recipe.main()
    assert "no selection has been run here" in capsys.readouterr().out
    variants = documents[0]["variants"]
    assert (variants["grpo"]["learning_rate"], variants["grpo"]["num_iterations"]) == (6e-4, 2)
    assert (variants["default"]["learning_rate"], variants["default"]["num_iterations"]) == (1e-3, 1)
    assert documents[0]["seeds"] == [26]
