"""Study files: what they mean, and what is wrong with those that can't be used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gtpo._files import fingerprint
from gtpo.errors import ConfigError
from gtpo.lab.study import read_study

GOOD = {
    "output": "out",
    "train": {"model": "m", "train_file": "p.jsonl", "max_turns": 4, "max_completion_length": 99},
    "evaluate": {"problems": ["h.jsonl"], "max_turns": 5},
    "variants": {"grpo": {"algorithm": "grpo"}, "gtpo": None, "gamma_0.5": {"gamma": 0.5}},
    "baseline": "grpo",
    "seeds": [1, 2],
    "seeds_of": {"gamma_0.5": [3]},
}


def write(tmp_path, **changes):
    path = tmp_path / "study.yaml"
    content = {**GOOD, **changes}
    path.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not ...}))
    return path


def test_cells_are_variants_times_seeds_and_all_variants_of_the_first_seed_come_first(tmp_path):
    study = read_study(write(tmp_path))
    assert [cell.name for cell in study.cells] == ["grpo-1", "gtpo-1", "grpo-2", "gtpo-2", "gamma_0.5-3"]
    assert study.cells[0].train["algorithm"] == "grpo"
    assert study.cells[-1].train["gamma"] == 0.5


def test_the_evaluation_takes_over_what_it_shares_with_the_training_unless_it_says_otherwise(tmp_path):
    (cell, *_) = read_study(write(tmp_path)).cells
    assert cell.evaluate == {"problems": ["h.jsonl"], "max_turns": 5, "max_completion_length": 99}


def test_a_study_may_evaluate_nothing_and_is_named_after_its_file(tmp_path):
    study = read_study(write(tmp_path, evaluate=..., output=...))
    assert study.cells[0].evaluate is None
    assert study.output.parts == ("runs", "studies", "study")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variants": {}}, "variants: give at least one"),
        ({"train": ...}, "train: missing"),
        ({"train": [1]}, "train: must be a mapping"),
        ({"seeds": []}, "seeds: must be a list of whole numbers"),
        ({"seeds": [1, 1]}, "contains a seed twice"),
        ({"seeds": [True]}, "seeds: must be a list of whole numbers"),
        ({"baseline": "ppo"}, "no variant 'ppo'"),
        ({"seeds_of": {"ppo": [1]}}, "no variant 'ppo'"),
        ({"learning_rate": 1}, "unknown keys learning_rate"),
        ({"variants": {"a/b": {}}}, "'a/b' can't be the name of a folder"),
        ({"variants": {"a": {"seed": 3}}, "baseline": "a", "seeds_of": {}}, "the study itself sets seed"),
        ({"thresholds": [2]}, "thresholds"),
        ({"variants": {"a": "grpo"}, "baseline": "a", "seeds_of": {}}, "variants: a: must be a mapping"),
        ({"evaluate": {"compare": ["a", "b"]}}, "evaluate: the study itself sets compare"),
    ],
)
def test_a_study_that_cannot_be_used_says_why(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        read_study(write(tmp_path, **changes))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: can't be read"):
        read_study(tmp_path / "nowhere.yaml")


@pytest.fixture
def base(tmp_path):
    """A folder that stands for a base model; written a while ago."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"a" * 3_000_000)
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    return folder


def test_a_retrained_base_model_of_equal_size_changes_the_training(tmp_path, base):
    (cell, *_) = read_study(write(tmp_path, train={"model": str(base)})).cells
    before = cell.train_fingerprint
    with (base / "model.safetensors").open("r+b") as file:
        file.seek(2_500_000)
        file.write(b"b")
    assert cell.train_fingerprint != before


def test_a_copy_written_at_another_time_is_the_same_and_a_card_does_not_count(base):
    before = fingerprint(base)
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").write_bytes(weights)
    (base / "README.md").write_text("what came of it")
    assert fingerprint(base) == before
    (base / "model.safetensors").rename(base / "other.safetensors")
    assert fingerprint(base) != before


def test_a_file_is_read_once(base, monkeypatch):
    before = fingerprint(base)
    monkeypatch.setattr(Path, "open", None)
    assert fingerprint(base) == before


def test_a_file_that_was_just_written_is_read_again(tmp_path):
    path = tmp_path / "p.jsonl"
    found = set()
    for text in "abcdefgh":  # faster than time stamps tick
        path.write_text(text)
        found.add(fingerprint(path))
    assert len(found) == 8


def test_what_is_no_path_has_no_contents(tmp_path):
    for text in ("", "HuggingFaceTB/SmolLM2-135M", "You solve problems. " * 500, "a\0b"):
        assert fingerprint(text) is None
    (cell, *_) = read_study(write(tmp_path)).cells
    assert len(replace(cell, train={"system_prompt": "You solve problems. " * 500}).train_fingerprint) == 16


def test_the_order_of_options_does_not_matter_and_settings_behind_a_question_mark_do(tmp_path):
    problems = tmp_path / "p.jsonl"
    problems.write_text("{}")
    (cell, *_) = read_study(write(tmp_path)).cells
    options = {"problems": [f"{problems}?limit=3"], "max_turns": 4, "passages": str(problems)}

    def of(options):
        return replace(cell, evaluate=options).evaluate_fingerprint

    before = of(options)
    assert of(dict(reversed(options.items()))) == before
    assert of({**options, "problems": [f"{problems}?limit=4"]}) != before
    problems.write_text("[]")
    assert of(options) != before
