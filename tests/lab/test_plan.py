"""Study files: what they mean, and what is wrong with those that can't be used."""

from __future__ import annotations

import pytest
import yaml

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
        ({"variants": {}}, "variants: name at least one"),
        ({"train": ...}, "train: missing"),
        ({"train": [1]}, "train: must be a mapping"),
        ({"seeds": []}, "seeds: must be a list of whole numbers"),
        ({"seeds": [1, 1]}, "names one twice"),
        ({"seeds": [True]}, "seeds: must be a list of whole numbers"),
        ({"baseline": "ppo"}, "no variant 'ppo'"),
        ({"seeds_of": {"ppo": [1]}}, "no variant 'ppo'"),
        ({"learning_rate": 1}, "unknown keys learning_rate"),
        ({"variants": {"a/b": {}}}, "'a/b' is no name for a folder"),
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
