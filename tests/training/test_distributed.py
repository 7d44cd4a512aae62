"""Several processes on one machine: groups that are spread over them, and accelerate's wrappers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from distributed_run import CAN_GO_ON
from processes import run_together

from gtpo.errors import ConfigError
from gtpo.run_directory import RunFiles
from gtpo.training.trl_compat import whole_weights

HERE = Path(__file__).parent
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
}
"""Of the scripts that are started; they import what tests share."""


def run(script, folder, *options):
    """What two processes saw."""
    run_together(HERE / script, folder / "log.txt", folder, *options)
    return [json.loads((folder / f"process_{i}.json").read_text()) for i in range(2)]


def test_processes_make_the_directory_of_a_run_ready_without_getting_in_each_others_way(tmp_path):
    first, second = run("start_run.py", tmp_path)
    assert (first.pop("process"), second.pop("process")) == (0, 1)
    assert first == second
    assert "holds a run already" in first["refused"]
    assert first["resumed"] == str(tmp_path / "run" / "checkpoints" / "checkpoint-2")
    parts = ("manifest.json", "model.safetensors", "optimizer.pt", "rng_state_0.pth", "trainer_state.json")
    assert first["kept"] == [
        ".lock",
        *(f"checkpoints/checkpoint-2/{part}" for part in parts),
        "config.yaml",
        "metrics.jsonl",
        "rollouts/step_000001.jsonl.gz",
        "rollouts/step_000002.jsonl.gz",
    ]
    assert first["afresh"] is None
    assert first["cleared"] == [".lock", "config.yaml", "metrics.jsonl"]


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
    recorded = RunFiles(tmp_path).rollouts(1)
    assert len(recorded) == 8
    assert [[turn["text"] for turn in row["turns"]] for row in recorded] == [
        *first["rounds"][0]["texts"],
        *second["rounds"][0]["texts"],
    ]
    scored = [[turn["turn_rewards"]["information_gain"] for turn in row["turns"]] for row in recorded]
    assert all(any(gains) == (len(gains) > 1) for gains in scored), "the wrapped policy scores the answer on both"
    assert sum(map(sum, scored)) == pytest.approx(0, abs=1e-4), "normalised over a group that both hold"
    if kind == "plain":
        assert first["stopped"] == second["stopped"], "a signal to one of them ends all after the same step"
        said, steps = first["stopped"]
        assert said.startswith("stopped by SIGTERM after step 2 of 3; ")
        assert steps == (3 if CAN_GO_ON else 2)


def test_processes_that_share_weights_roll_out_at_their_own_pace(tmp_path):
    first, second = run("sharded_rollouts.py", tmp_path)
    assert len(first["sampled"]) < len(second["sampled"])
    for found in (first, second):
        assert found["sampled"] == found["expected"]
        assert found["local"] == found["local_again"] < found["all"]
        assert found["gradients"]


LAUNCH = Path(__file__).resolve().parents[2] / "recipes" / "accelerate"


def update(folder, processes, algorithms, launch=None):
    """What two steps on given rollouts come to, by algorithm."""
    script, argv = str(HERE / "same_update_run.py"), [str(folder), str(processes), *algorithms]
    options = ["--config_file", str(LAUNCH / f"{launch}.yaml"), "--num_processes", str(processes)]
    options += ["--mixed_precision", "no", "--main_process_port", "0", script]
    if launch in ("zero2", "zero3"):
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, *argv]
        env = {**ENV, "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
    else:
        env = {} if launch is None else launch_environment(options)
        run_together(script, folder / "log.txt", *argv, processes=processes, env=env)
    return {name: torch.load(folder / f"{name}_of_{processes}.pt", weights_only=False) for name in algorithms}


def launch_environment(options):
    """What `accelerate launch` tells the processes that it starts with torchrun."""
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(options))
    assert args.use_fsdp or args.multi_gpu, "torchrun starts them"
    env = {name: value for name, value in prepare_multi_gpu_env(args).items() if os.environ.get(name) != value}
    return {**env, "ACCELERATE_USE_CPU": str(not args.use_fsdp)}  # the script sees to FSDP on the CPU


def padded(rows):
    rows = [row if isinstance(row, list) else [row] for row in rows]
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


ALGORITHMS = ("gtpo", "grpo")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return update(tmp_path_factory.mktemp("alone"), 1, ALGORITHMS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "kind", "algorithms"),
    [
        ("ddp", "MULTI_CPU", ALGORITHMS),
        ("fsdp2", "FSDP", ALGORITHMS[:1]),
        ("zero2", "DEEPSPEED", ALGORITHMS[:1]),
        ("zero3", "DEEPSPEED", ALGORITHMS[:1]),
    ],
    ids=["ddp", "fsdp2", "zero2", "zero3"],
)
def test_two_processes_update_as_one_does(tmp_path, alone, launch, kind, algorithms):
    """On the same rollouts: rewards, advantages, loss and weights. One of three groups is cut between the processes."""
    if launch.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs DeepSpeed (make test-cluster)")
    found = update(tmp_path, 2, algorithms, launch)
    for algorithm in algorithms:
        check_same(alone[algorithm], found[algorithm], kind)


def check_same(one, two, kind):
    needed = [padded(rows).any(dim=1).view(2, -1).sum(dim=1).tolist() for rows in one["advantages"]]
    assert any(first != second for first, second in needed), "processes that need different numbers of rows"
    assert two["kind"] == kind
    assert two["rewards"] == one["rewards"]
    for mine, theirs in zip(one["advantages"], two["advantages"], strict=True):
        mine, theirs = padded(mine), padded(theirs)
        width = max(mine.shape[1], theirs.shape[1])
        mine, theirs = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (mine, theirs))
        torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=0)
        assert mine.any(dim=1).sum() >= 4
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert one["after"].keys() == two["after"].keys()
    moved = max(float((one["after"][name] - value).abs().max()) for name, value in one["before"].items())
    apart = max(float((two["after"][name].cpu() - value).abs().max()) for name, value in one["after"].items())
    assert apart < 1e-5
    assert moved > 0.05, "and that is not because nothing moved"


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
