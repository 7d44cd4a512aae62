"""Rollouts under way, and a fault: the trainer killed or stopped by a signal, the server killed. Nothing is lost."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from durable_commands import FAMILY, STEPS, Runs
from openai_server import adapter_server

from gtpo._signals import STOPPED_STATUS
from gtpo.lab.tiny.model import make_tokenizer
from gtpo.run_directory import RunFiles


@contextmanager
def stub_of_vllm():
    """Takes adapters, and answers each turn after a while by its seed."""
    tokenizer = make_tokenizer(FAMILY.phrases)
    answers = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in ("", "1", "2")]

    def answer(body):
        time.sleep(0.2)
        return answers[int(hashlib.sha256(f"{body['seed']}".encode()).hexdigest(), 16) % len(answers)]

    server = adapter_server(answer)
    yield server
    server.stop()


class OverlappedRuns(Runs):
    def __init__(self, commands, start, folder, vllm):
        super().__init__(commands, start, folder)
        self.url = vllm.url.removesuffix("/v1")

    def train(self, name="run", fault=None, **options):
        served = {
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_sync": "adapter",
            "vllm_server_base_url": self.url,
            "vllm_server_timeout": 20.0,
            "vllm_importance_sampling_mode": "token_truncate",
            "use_peft": True,
            "lora_target_modules": "all-linear",
            "deterministic": True,
            "overlap": 1,
            "save_steps": 1,
        }
        return super().train(name, fault, **{**served, **options})


@pytest.fixture
def vllm():
    with stub_of_vllm() as server:
        yield server


@pytest.fixture
def runs(commands, start, tmp_path, vllm):
    return OverlappedRuns(commands, start, tmp_path, vllm)


def problems_of(runs):
    """The problems that each step trained on, none of whose rollouts failed."""
    run = RunFiles(runs.folder / "run")
    rows = [run.rollouts(step) for step in run.steps()]
    assert not any(row["failure"] for step in rows for row in step)
    assert {len(step) for step in rows} == {8}
    return [sorted({row["problem_id"] for row in step}) for step in rows]


@pytest.fixture(scope="module")
def without_faults(commands, start, tmp_path_factory):
    """The problems of each step of a run that nothing happens to."""
    with stub_of_vllm() as server:
        runs = OverlappedRuns(commands, start, tmp_path_factory.mktemp("without_faults"), server)
        assert runs.train() == 0, runs.said()
    found = problems_of(runs)
    assert len(found) == STEPS
    return found


@pytest.mark.parametrize(("at", "step"), [("record", 2), ("update", 3), ("checkpoint", 2)])
def test_a_trainer_killed_with_rollouts_under_way_goes_on_and_uses_none_twice(runs, without_faults, at, step):
    assert runs.train(fault={"at": at, "step": step, "signals": [signal.SIGKILL]}) == -signal.SIGKILL
    assert runs.steps()[-1] < STEPS
    assert runs.train() == 0, runs.said()
    assert problems_of(runs) == without_faults


@pytest.mark.parametrize("at", ["record", "update"])
def test_a_signal_ends_an_overlapped_step_with_a_checkpoint(runs, without_faults, at):
    assert runs.train(fault={"at": at, "step": 2, "signals": [signal.SIGTERM]}) == STOPPED_STATUS
    assert runs.steps()[-1] == 2, runs.said()
    assert runs.train() == 0, runs.said()
    assert problems_of(runs) == without_faults


def test_a_server_killed_in_the_overlap_and_started_anew_loses_nothing(runs, without_faults, vllm):
    usual, killed = vllm.script, threading.Event()

    def script(body):
        if str(body.get("lora_path")).endswith("-2") and not killed.is_set():
            killed.set()
            threading.Thread(target=trouble).start()
        return usual(body)

    def trouble():
        time.sleep(0.1)  # the rollouts of the next batch are under way
        vllm.stop()
        vllm.adapters.clear()  # a server that starts knows the base only
        time.sleep(0.5)
        vllm.start()

    vllm.script = script
    assert runs.train() == 0, runs.said()
    assert killed.is_set()
    assert problems_of(runs) == without_faults
