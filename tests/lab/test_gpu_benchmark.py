"""`benchmarks/gpu.py` without a GPU: every section on a tiny model, and what is done is not done again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def run(output, *options):
    command = [sys.executable, str(BENCHMARK), str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=560)


@pytest.mark.timeout(600)
def test_a_dry_run_goes_through_every_section_and_a_second_one_through_none(tmp_path):
    done = run(tmp_path / "out", "--dry_run", "--minutes", "9")
    logs = {path.stem: path.read_text()[-2000:] for path in (tmp_path / "out" / "logs").glob("*")}
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    report = (tmp_path / "out" / "report.md").read_text()
    for title in ("steps", "loop", "evaluate", "determinism", "cold start", "study"):
        assert f"## {title}\n" in report
    assert "figures of two steps: equal\nweights after them: equal\n" in report
    assert "| 1.5B shape, LoRA |" in report
    assert "| defaults |" in report
    lines = json.loads((tmp_path / "out" / "steps.json").read_text())["lines"]
    assert float(lines[2].split("|")[5]) > 0  # sampled tokens per second

    (tmp_path / "out" / "logs" / "study.txt").unlink()
    again = run(tmp_path / "out", "--dry_run", "--only", "study")
    assert again.returncode == 0
    assert not (tmp_path / "out" / "logs" / "study.txt").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run(tmp_path / "out")
    assert done.returncode == 2
    assert "no GPU was found; --dry_run runs every section without one" in done.stderr
