"""Several processes on one machine: groups that are spread over them, and accelerate's wrappers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gtpo.errors import ConfigError
from gtpo.training.host import whole_weights


def run(script, folder, *options):
    """What two processes saw."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(
        [*command, str(Path(__file__).with_name(script)), str(folder), *options],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"process_{i}.json").read_text()) for i in range(2)]


@pytest.mark.parametrize("kind", ["plain", "peft"])
def test_two_processes_train_one_policy_on_groups_that_both_hold(tmp_path, kind):
    first, second = run("distributed_run.py", tmp_path, kind)
    assert first["processes"] == second["processes"] == 2
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


def test_processes_that_share_weights_roll_out_at_their_own_pace(tmp_path):
    first, second = run("sharded_rollouts.py", tmp_path)
    assert len(first["sampled"]) < len(second["sampled"])
    for found in (first, second):
        assert found["sampled"] == found["expected"]
        assert found["local"] == found["local_again"] < found["all"]
        assert found["gradients"]


def test_wrappers_that_can_not_put_weights_together_are_refused(monkeypatch):
    model = torch.nn.Linear(2, 2)
    model.weight.ds_id = 0
    with whole_weights(model):
        pass  # one process has them all
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="ds3_gather_for_generation"), whole_weights(model):
        pass
    with whole_weights(model, gathered=True):
        pass
