"""Rows of verl's datasets; needs no verl."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from gtpo.cli import main
from gtpo.integrations.verl.rows import problem_of, write_parquet
from gtpo.tasks.problems import Problem


def read(path):
    """The rows as verl's dataset gives them to an agent loop: `prompt` has become `raw_prompt`."""
    return [{**row, "raw_prompt": list(row["prompt"])} for row in pd.read_parquet(path).to_dict("records")]


def test_problems_go_there_and_come_back(tmp_path):
    problems = [
        Problem("a", "how many?", "3"),
        Problem("b", "write f", json.dumps({"tests": [1]}), "code", {"answer_kind": "io", "nested": {"x": [1, None]}}),
        Problem("c", "and then?", "yes", "commonsense", {}, ({"role": "user", "content": "and then?"},)),
    ]
    write_parquet(problems, tmp_path / "new" / "p.parquet", "made up")
    rows = read(tmp_path / "new" / "p.parquet")
    assert [row["data_source"] for row in rows] == ["made up"] * 3
    for row, problem in zip(rows, problems, strict=True):
        found = problem_of(row)
        for name in ("id", "question", "answer", "domain", "extras"):
            assert getattr(found, name) == getattr(problem, name)
        assert found.prompt("be brief") == problem.prompt("be brief")


def test_a_row_of_somebody_elses_dataset_becomes_a_problem():
    row = {
        "raw_prompt": np.array([{"role": "user", "content": "how many?"}], dtype=object),
        "reward_model": {"ground_truth": np.int64(3), "style": "rule"},
        "extra_info": {"index": np.int64(7), "split": "train", "tests": np.array([1, 2])},
    }
    problem = problem_of(row)
    assert (problem.id, problem.question, problem.answer, problem.domain) == ("7", "how many?", "3", "math")
    assert problem.extras == {"split": "train", "tests": [1, 2]}


def test_the_command_writes_what_can_be_verified(tmp_path, capsys):
    source = tmp_path / "p.jsonl"
    rows = [{"question": "1+1?", "answer": "2"}, {"question": "write f", "answer": "no tests", "domain": "code"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["export-verl", "--problems", str(source), "--output", str(tmp_path / "p.parquet")]) == 0
    assert [problem_of(row).answer for row in read(tmp_path / "p.parquet")] == ["2"]
    said = capsys.readouterr().err
    assert "left out: problem p/1" in said
    assert "1 problems" in said


@pytest.mark.parametrize(("argv", "said"), [([], "no problems"), (["--problems", "none.jsonl"], "none.jsonl")])
def test_what_can_not_be_read_is_named(argv, said, capsys):
    assert main(["export-verl", *argv]) == 2
    assert said in capsys.readouterr().err
