from __future__ import annotations

import random
from contextlib import asynccontextmanager

import pytest
from durable_commands import command_server, make_start
from quiet import QUIET

from gtpo.lab.tiny.model import make_model
from gtpo.rollout.backends import Generation
from gtpo.tasks.problems import Problem
from gtpo.training.config import GTPOConfig

TURNS = ("```python\n1+1\n```", "```python\nleft open", "\\boxed{2}", "\\boxed{3}")


class RandomTurns:
    """Stands for a model that says one of a few things at each turn; the update still trains a real model."""

    max_context = 512

    def __init__(self, tokenizer, seed=1):
        self.tokenizer, self.seed, self.batches, self.turns = tokenizer, seed, 0, TURNS

    def __call__(self, model, **options):
        return self

    @asynccontextmanager
    async def serve(self, rollouts, *, sampling, end_ids, seed):
        self.batches += 1
        self.rngs = {}
        yield self

    async def generate(self, request):
        place = request.rollout
        rng = self.rngs.setdefault(place, random.Random(f"{self.seed} {self.batches} {place}"))
        said = self.tokenizer.encode(rng.choice(self.turns))
        return Generation((*said, self.tokenizer.eos_token_id)[: request.max_new_tokens])

    def finish(self, rollout):
        pass


@pytest.fixture
def small_model(tiny_tokenizer):
    return make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)


@pytest.fixture
def problems():
    return [Problem(id=f"p/{i}", question=f"{i}+{2 - i}", answer="2") for i in range(12)]


@pytest.fixture
def config(tmp_path):
    def make(**changes):
        options = {
            "run_dir": str(tmp_path / "run"),
            "tool_format": "fenced",
            "system_prompt": "",
            "max_turns": 4,
            "max_turn_tokens": 24,
            "max_completion_length": 160,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_steps": 2,
            "learning_rate": 1e-3,
            **QUIET,
            **changes,
        }
        return GTPOConfig(**options)

    return make


@pytest.fixture
def random_turns(monkeypatch, tiny_tokenizer):
    backend = RandomTurns(tiny_tokenizer)
    monkeypatch.setattr("gtpo.training.rolling_trainer.TransformersBackend", backend)
    return backend


@pytest.fixture(scope="module")
def commands():
    """Runs commands of `gtpo` with faults; see `durable_commands`."""
    with command_server() as running:
        yield running


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that has learnt nothing, and problems."""
    return make_start(tmp_path_factory.mktemp("start"))
