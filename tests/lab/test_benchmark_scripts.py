"""The scripts under benchmarks/ that read runs read what runs record today."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from gtpo.testing import made_up_run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    folder = made_up_run(tmp_path / "run", groups=3)
    lines = [json.dumps({"step": step, "step_time": 2.0}) + "\n" for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_the_overhead_of_a_recorded_step_is_a_share_of_its_time(run, monkeypatch, capsys):
    import overhead

    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["overhead.py", str(run), "--rounds", "1", "--no-large"])
    overhead.main()
    torch.set_num_threads(threads)
    row = capsys.readouterr().out.splitlines()[2].split("|")
    assert row[2].split()[:2] == ["12", "x"]
    assert row[8].strip() == "2.0"
    assert row[9].strip().endswith("%")


def test_similarities_of_failures_are_those_of_the_first_and_last_recorded_steps(run):
    import behaviour

    found = behaviour.of_training(run)
    assert list(found) == ["similarity of failures, step 1", "similarity of failures, step 3"]
    assert all(0 < value <= 1 for value in found.values())
