"""Several processes on one machine: groups that are spread over them, and accelerate's wrappers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("distributed_run.py")


def run(kind, folder):
    """What two processes saw."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), kind], env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"process_{i}.json").read_text()) for i in range(2)]


@pytest.mark.parametrize("kind", ["plain", "peft", "fsdp"])
def test_two_processes_train_one_policy_on_groups_that_both_hold(tmp_path, kind):
    first, second = run(kind, tmp_path)
    assert first["processes"] == second["processes"] == 2
    assert first["sharded"] == (kind == "fsdp")
    for mine, other in zip(first["rounds"], second["rounds"], strict=True):
        assert (mine["first"], other["first"], mine["groups"]) == (0, 4, 8)
        assert mine["all"] == other["all"] == [*mine["advantages"], *other["advantages"]], "one credit for both"
        assert mine["texts"] != other["texts"], "processes sample on their own"
    assert len(first["rounds"]) == 2
    assert first["after"] == pytest.approx(second["after"], rel=1e-9), "the same weights"
    assert first["after"] != first["before"], "trained"
    recorded = [json.loads(line) for line in (tmp_path / "rollouts" / "step_000001.jsonl").read_text().splitlines()]
    assert len(recorded) == 8
    assert [[turn["text"] for turn in row["turns"]] for row in recorded] == [
        *first["rounds"][0]["texts"],
        *second["rounds"][0]["texts"],
    ]
