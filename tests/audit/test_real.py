"""The real host's batches, and a real model's tokenizer and log-probabilities."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager

import pytest
import torch
from audit_support import (
    SOURCES,
    Box,
    batch_of,
    findings,
    other_frames,
    roll_out,
    told,
    with_mask,
)
from quiet import QUIET

from gtpo.audit import AuditBatch, Kind, audit
from gtpo.lab.tiny.model import make_model
from gtpo.rollout import ChatEncoder, RolloutEngine, RolloutLimits, Sampling, build_prompts, get_format
from gtpo.rollout.backends import Generation, TransformersBackend


class RandomTurns:
    """Says one of a few things at each turn, in place of a model."""

    max_context = 512

    def __init__(self, model, **options):
        self.said = 0

    @asynccontextmanager
    async def serve(self, rollouts, *, sampling, end_ids, seed):
        yield self

    async def generate(self, request):
        said = ("```python\n1+1\n```", "```python\nleft open", "\\boxed{2}")[self.said % 3]
        self.said += 1
        return Generation((*self.tokenizer.encode(said), self.tokenizer.eos_token_id))

    def finish(self, rollout):
        pass


def test_what_the_hosts_trainer_computes_from_our_rollouts_is_clean(tmp_path, monkeypatch, tiny_tokenizer):
    from gtpo.tasks.problems import Problem
    from gtpo.training.config import GTPOConfig
    from gtpo.training.data import problem_dataset
    from gtpo.training.trainer import GTPOTrainer

    monkeypatch.setattr(RandomTurns, "tokenizer", tiny_tokenizer, raising=False)
    monkeypatch.setattr("gtpo.training.rolling_trainer.TransformersBackend", RandomTurns)
    problems = [Problem(id=f"p/{i}", question=f"{i}+{2 - i}", answer="2") for i in range(12)]
    config = GTPOConfig(
        run_dir=str(tmp_path),
        tool_format="fenced",
        system_prompt="",
        max_turn_tokens=24,
        max_completion_length=160,
        num_generations=4,
        per_device_train_batch_size=8,
        num_iterations=2,  # makes TRL compute old_per_token_logps
        max_steps=1,
        temperature=0.7,
        **QUIET,
    )
    model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
    trainer = GTPOTrainer(
        model,
        args=config,
        train_dataset=problem_dataset(problems, build_prompts(config)),
        processing_class=tiny_tokenizer,
        sandbox=Box(),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # TRL sets it in its training loop
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert output["tool_mask"].eq(0).any(), "no observation in the batch: the test would show nothing"

    batch = AuditBatch.from_trl(output)
    sampled = [[turn.token_ids for turn in t.turns] for t in trainer._batch.trajectories]
    options = {"tokenizer": tiny_tokenizer, "encoder": trainer.engine.encoder, "sampled_ids": sampled}
    report = audit(batch, model=trainer.model, temperature=0.7, **options)
    assert told(report) == []
    assert report.skipped == ()
    assert report.figures["old_per_token_logps/compared"] == report.figures["trained_tokens"]
    assert report.figures["old_per_token_logps/max_abs_diff"] < 1e-4
    output["tool_mask"] = torch.ones_like(output["tool_mask"])
    broken = audit(AuditBatch.from_trl(output), **options)
    assert {f.kind for f in broken.findings} == {Kind.OBSERVATION_TRAINED}


@pytest.fixture(scope="module")
def smollm2():
    """The folder of a SmolLM2-Instruct."""
    folder = os.environ.get("GTPO_SMOLLM2")
    if not folder:
        pytest.skip("set GTPO_SMOLLM2 to a folder with SmolLM2-135M-Instruct")
    return folder


@pytest.fixture(scope="module")
def smollm2_encoder(smollm2):
    from transformers import AutoTokenizer

    return ChatEncoder(AutoTokenizer.from_pretrained(smollm2), get_format("fenced"))


@pytest.mark.parametrize("source", SOURCES)
def test_batches_with_the_tokenizer_of_smollm2_are_clean(smollm2_encoder, source):
    """Its padding token is its end-of-turn token; the frame is also found when encoded together with the result."""
    tokenizer = smollm2_encoder.tokenizer
    assert tokenizer.pad_token_id == smollm2_encoder.end_id
    trajectories = roll_out(smollm2_encoder)
    rejoined = [other_frames(t, lambda ids: tokenizer.encode(tokenizer.decode(ids))) for t in trajectories]
    assert rejoined != trajectories
    for rollouts in (trajectories, rejoined):
        assert findings(batch_of(source, rollouts, tokenizer), smollm2_encoder) == []
        ones = {t: 1 for t, k in enumerate(rollouts[0].turn_ids) if k < 0}
        broken = findings(with_mask(batch_of(source, rollouts, tokenizer), ones), smollm2_encoder)
        assert [f[0] for f in broken] == [Kind.OBSERVATION_TRAINED] * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2_is_reproduced_within_the_usual_tolerance(smollm2, smollm2_encoder, dtype):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=getattr(torch, dtype))
    prompts = [[{"role": "user", "content": question}] for question in ("What is 3 * 14?", "Name four rivers.")]
    engine = RolloutEngine(smollm2_encoder, Box(), RolloutLimits(max_turns=2, max_turn_tokens=60))
    rollouts = engine.run(prompts * 2, TransformersBackend(model), sampling=Sampling(temperature=0.8)).trajectories
    batch = AuditBatch.from_trajectories(rollouts)
    report = audit(batch, tokenizer=smollm2_encoder.tokenizer, encoder=smollm2_encoder, model=model, temperature=0.8)
    assert report.ok, report.render()
    assert report.figures["logprobs/mean_abs_diff"] < {"float32": 1e-4, "bfloat16": 0.1}[dtype]
    wrong = audit(batch, tokenizer=smollm2_encoder.tokenizer, encoder=smollm2_encoder, model=model, temperature=0.3)
    assert not wrong.ok
