"""No single fault loses a run: signals, kills and full disks at each phase, and what the same command makes of it."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
import yaml
from durable_commands import FAMILY, STEPS, Runs, figures_of

from gtpo._lock import locked
from gtpo._signals import STOPPED_STATUS
from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.run_directory import RunFiles, read_metrics
from gtpo.training.lock import LOCK


@pytest.fixture
def runs(commands, start, tmp_path):
    return Runs(commands, start, tmp_path)


@pytest.fixture(scope="module")
def unbroken(commands, start, tmp_path_factory):
    runs = Runs(commands, start, tmp_path_factory.mktemp("unbroken"))
    assert runs.train() == 0, runs.log.read_text()
    found = figures_of(runs.folder / "run")
    assert [line["step"] for line in found[0]] == list(range(1, STEPS + 1))
    assert all(line["grad_norm"] > 0 for line in found[0]), "something is learnt in every step"
    return found


KILLS = [
    # place, step, whole checkpoints that it leaves
    ("rollouts", 1, []),
    ("rollouts", 3, [2]),
    ("update", 3, [2]),
    ("record", 3, [2]),
    ("checkpoint", 2, []),
    ("end of checkpoint", 4, [2]),
    ("final save", 4, [2, 4]),
    ("end of final save", 4, [2, 4]),
]


@pytest.mark.parametrize(("at", "step", "left"), KILLS)
def test_a_killed_run_goes_on_with_the_same_command_and_ends_as_an_unbroken_one(runs, unbroken, at, step, left):
    assert runs.train(fault={"at": at, "step": step, "signals": [signal.SIGKILL]}) == -signal.SIGKILL
    assert runs.steps() == left
    assert runs.train() == 0, runs.said()
    assert figures_of(runs.folder / "run") == unbroken
    assert not list((runs.folder / "run").rglob(".*.partial"))


SIGNALS = [
    # place, step, signal, whole checkpoints that it leaves
    ("rollouts", 1, signal.SIGUSR1, [1]),
    ("rollouts", 3, signal.SIGTERM, [2, 3]),
    ("update", 3, signal.SIGHUP, [2, 3]),
    ("rollouts", 1, signal.SIGINT, [1]),
    ("update", 3, signal.SIGINT, [2, 3]),
    ("record", 1, signal.SIGTERM, [1]),
    ("checkpoint", 2, signal.SIGTERM, [2]),
    ("end of checkpoint", 2, signal.SIGUSR1, [2]),
]


@pytest.mark.parametrize(("at", "step", "number", "left"), SIGNALS)
def test_a_signal_ends_the_step_with_a_checkpoint_and_status_75(runs, unbroken, at, step, number, left):
    assert runs.train(fault={"at": at, "step": step, "signals": [number]}) == STOPPED_STATUS, runs.said()
    assert f"stopped by {number.name} after step {left[-1]} of {STEPS}" in runs.said()
    assert runs.steps() == left
    assert not (runs.folder / "run" / "model").exists()
    assert runs.train() == 0, runs.said()
    assert figures_of(runs.folder / "run") == unbroken


def test_a_run_that_saves_weights_only_can_go_on_from_a_signal(runs, unbroken):
    fault = {"at": "update", "step": 2, "signals": [signal.SIGTERM]}
    assert runs.train(fault=fault, save_only_model=True, save_steps=1) == STOPPED_STATUS, runs.said()
    assert runs.train(save_only_model=True, save_steps=1) == 0, runs.said()
    assert figures_of(runs.folder / "run") == unbroken


@pytest.mark.parametrize(("at", "step"), [("update", 4), ("final save", 4)])
def test_a_signal_in_the_last_step_or_after_it_lets_the_run_end(runs, unbroken, at, step):
    assert runs.train(fault={"at": at, "step": step, "signals": [signal.SIGTERM]}) == 0, runs.said()
    assert figures_of(runs.folder / "run") == unbroken


def test_a_second_signal_ends_the_process_at_once_and_one_right_after_the_first_does_not(runs, unbroken):
    twice = {"at": "update", "step": 3, "signals": [signal.SIGTERM, signal.SIGTERM]}
    assert runs.train("first", fault={**twice, "between_s": 0.7}) == 128 + signal.SIGTERM
    assert runs.steps("first") == [2]
    assert runs.train("second", fault=twice) == STOPPED_STATUS
    assert runs.steps("second") == [2, 3]


def test_a_signal_between_two_steps_on_one_generation_batch_costs_no_rollout(runs):
    options = {"steps_per_generation": 2, "save_steps": 4}
    assert runs.train("whole", **options) == 0, runs.said()
    fault = {"at": "update", "step": 3, "signals": [signal.SIGTERM]}
    assert runs.train("halved", fault=fault, **options) == STOPPED_STATUS, runs.said()
    assert (runs.folder / "halved" / "checkpoints" / "checkpoint-3" / "generation_batch_0.pt").exists()
    assert runs.train("halved", **options) == 0, runs.said()
    assert figures_of(runs.folder / "halved") == figures_of(runs.folder / "whole")


DISK = [
    # place, step, what can't be written, whole checkpoints that it leaves
    ("record", 3, "rollouts/step_000003.jsonl.gz", [2]),
    ("checkpoint", 4, "checkpoints/checkpoint-4", [2]),
    ("end of checkpoint", 4, "checkpoints/checkpoint-4", [2]),
    ("final save", 4, "model", [2, 4]),
]


@pytest.mark.parametrize(("at", "step", "what", "left"), DISK)
def test_a_disk_that_fills_up_is_told_and_leaves_the_run_to_go_on_with(runs, unbroken, at, step, what, left):
    assert runs.train(fault={"at": at, "step": step, "file_bytes": 100}) == 2, runs.said()
    assert f"{runs.folder / 'run' / what}: can't be written: " in runs.said()
    assert "--resume true" in runs.said()
    assert "Traceback" not in runs.said()
    assert runs.steps() == left
    recorded = step - 1 if at == "record" else step
    assert [line["step"] for line in read_metrics(runs.folder / "run")] == list(range(1, 1 + recorded))
    assert runs.train() == 0, runs.said()
    assert figures_of(runs.folder / "run") == unbroken


def test_a_directory_that_is_deleted_under_a_run_ends_it_with_a_sentence_and_is_not_made_anew(runs):
    fault = {"at": "record", "step": 2, "delete": str(runs.folder / "run")}
    assert runs.train(fault=fault) == 2
    assert f"{runs.folder / 'run'}: was deleted, moved or replaced" in runs.said()
    assert "Traceback" not in runs.said()
    assert not (runs.folder / "run" / "checkpoints").exists()


@pytest.fixture
def done(runs, commands, start, unbroken, tmp_path, tmp_path_factory):
    """A copy of the unbroken run, without its model."""
    shutil.copytree(next(tmp_path_factory.getbasetemp().glob("unbroken*")) / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    return runs


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_stray_names_stop_nothing(done, unbroken):
    run = done.folder / "run"
    damaged = run / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for stray in ("checkpoint-x", "checkpoint-4 (copy)", "checkpoint-", "checkpoint-9"):
        (run / "checkpoints" / stray).mkdir()
    (run / "checkpoints" / "checkpoint-5").write_text("a file")
    (run / "rollouts" / "step_last.jsonl").write_text("notes")
    (run / ".config.yaml.99.partial").write_text("half of it")
    (run / ".model.partial").mkdir()
    assert done.train() == 0, done.said()
    assert "checkpoint-4 is skipped: optimizer.pt has " in done.said()
    assert "checkpoint-9 is skipped: it is unfinished" in done.said()
    assert figures_of(run) == unbroken
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {
        *("checkpoint-2", "checkpoint-4", "damaged-checkpoint-4", "README.md"),
        *("checkpoint-x", "checkpoint-4 (copy)", "checkpoint-", "checkpoint-5"),
    }
    assert not list(run.rglob(".*.partial"))


OTHERS = {
    "gamma": 0.5,
    "learning_rate": 5e-4,
    "seed": 7,
    "algorithm": "grpo",
    "gradient_accumulation_steps": 2,
    "use_peft": True,
}


def test_a_run_with_other_settings_problems_or_model_is_refused_by_name(done, start, tmp_path):
    before = figures_but_the_model(done.folder / "run")
    assert done.train(**OTHERS) == 2
    for name in OTHERS:
        assert f"{name} (was " in done.said()
    assert "--resume_with_changes true" in done.said()
    rows = (start / "train.jsonl").read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join([*rows[1:], rows[0]]))
    assert done.train(train_file=tmp_path / "other.jsonl") == 2
    assert "differs in the problems (other contents)" in done.said()
    make_model(make_tokenizer(FAMILY.phrases), seed=1, hidden_size=32, layers=1).save_pretrained(tmp_path / "model")
    make_tokenizer(FAMILY.phrases).save_pretrained(tmp_path / "model")
    assert done.train(model=tmp_path / "model") == 2
    assert "differs in the weights (other contents)" in done.said()
    assert figures_but_the_model(done.folder / "run") == before
    assert done.train(max_concurrency=3, save_steps=3, logging_steps=2) == 0, "how it is run may change"


def figures_but_the_model(folder):
    run = RunFiles(folder)
    return run.metrics(), {step: run.rollouts(step) for step in run.steps()}


def test_changes_that_are_taken_have_their_effect_and_are_recorded(done):
    options = {"learning_rate": 5e-4, "weight_decay": 0.25, "max_steps": STEPS + 1}
    assert done.train(resume_with_changes=True, **options) == 0, done.said()
    run = done.folder / "run"
    assert [line["learning_rate"] for line in RunFiles(run).metrics()] == [1e-3] * STEPS + [5e-4]
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["config"]["learning_rate"] == 5e-4
    assert written["changes"] == [{"after_step": STEPS, "was": {"learning_rate": 1e-3, "weight_decay": 0.0}}]
    state = torch.load(run / "checkpoints" / "checkpoint-5" / "optimizer.pt", weights_only=True)
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.0, 0.25}, "biases and norms have none"
    assert done.train(**options) == 0, "the run is now the changed one"
    assert yaml.safe_load((run / "config.yaml").read_text())["changes"] == written["changes"]


def test_a_cold_start_that_a_signal_stops_goes_on_and_ends_as_an_unbroken_one(runs, start):
    pair = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "\\boxed{2}"}]
    lines = [json.dumps({"messages": [*pair[:1], {**pair[1], "content": str(n)}]}) for n in range(16)]
    (runs.folder / "traces.jsonl").write_text("\n".join(lines))

    def sft(name, fault=None):
        options = f"--model {start / 'model'} --traces {runs.folder / 'traces.jsonl'} --run_dir {runs.folder / name}"
        size = "--max_steps 4 --per_device_train_batch_size 4 --bf16 false --gradient_checkpointing false"
        more = "--resume auto --tool_format fenced --logging_steps 1 --report_to none --disable_tqdm true"
        return runs.command(["sft", *options.split(), *size.split(), *more.split()], fault)

    assert sft("whole") == 0, runs.said()
    assert sft("halved", {"at": "update", "step": 2, "signals": [signal.SIGTERM]}) == STOPPED_STATUS, runs.said()
    assert runs.steps("halved") == [2]
    assert sft("halved") == 0, runs.said()
    whole, halved = (
        (read_metrics(runs.folder / name), (runs.folder / name / "model" / "model.safetensors").read_bytes())
        for name in ("whole", "halved")
    )
    assert [line["loss"] for line in halved[0]] == [line["loss"] for line in whole[0]]
    assert halved[1] == whole[1]


def test_a_demo_that_a_signal_stops_in_its_cold_start_goes_on_from_there(runs):
    small = "--cold_start_traces 64 --cold_start_steps 3 --train_problems 32 --eval_problems 4 --max_steps 1"
    batch = "--num_generations 2 --per_device_train_batch_size 4 --disable_tqdm true --family hops --resume auto"
    argv = ["demo", "--run_dir", runs.folder / "run", *small.split(), *batch.split()]
    fault = {"at": "update", "step": 2, "signals": [signal.SIGTERM]}
    assert runs.command(argv, fault) == STOPPED_STATUS, runs.said()
    assert runs.steps("run/cold-start") == [2]
    assert runs.command(argv) == 0, runs.said()
    assert [line["step"] for line in read_metrics(runs.folder / "run")] == [1]
    assert runs.command([*argv, "--seed", "9"]) == 2
    assert "cold-start holds another run, which differs in seed (was 1, now 9)" in runs.said()


def test_an_evaluation_that_a_signal_stops_keeps_its_samples(runs, start):
    def evaluate(name, fault=None):
        options = f"--model {start / 'model'} --problems {start / 'train.jsonl'} --output {runs.folder / name}"
        rollouts = f"--tools {FAMILY.tools} --tool_format fenced --max_turns 2 --max_turn_tokens 20 --max_concurrency 4"
        return runs.command(["eval", *options.split(), *rollouts.split(), "--system_prompt", ""], fault)

    assert evaluate("whole.json") == 0, runs.said()
    assert evaluate("halved.json", {"at": "sample", "signals": [signal.SIGTERM]}) == STOPPED_STATUS, runs.said()
    assert "gtpo eval: stopped by SIGTERM; with --output, verified samples are kept" in runs.said()
    kept = (runs.folder / "halved.json.samples.jsonl").read_text().splitlines()
    assert 1 < len(kept) < 17
    assert evaluate("halved.json") == 0, runs.said()
    whole, halved = (json.loads((runs.folder / name).read_text())["samples"] for name in ("whole.json", "halved.json"))
    assert [sample["turns"] for sample in halved] == [sample["turns"] for sample in whole]


def test_a_second_trainer_in_a_directory_is_refused_before_it_reads_weights(runs):
    with locked(runs.folder / "run" / LOCK, what="the run", mend="wait"):
        (runs.folder / "weightless").mkdir()
        for file in (runs.start / "model").iterdir():
            if file.suffix != ".safetensors":
                shutil.copy(file, runs.folder / "weightless")
        assert runs.train(model=runs.folder / "weightless") == 2
        holder = f"in use by another process (process {os.getpid()} on"
        assert f"the run directory {runs.folder / 'run'} is {holder}" in runs.said()
    assert not (runs.folder / "run" / "config.yaml").exists()
