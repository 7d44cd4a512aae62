"""Log-probabilities that the model reproduces, and those that it does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from audit_support import (
    FORMATS,
    Box,
    E,
    W,
    batch_of,
    findings,
    mutate,
    told,
)

from gtpo.audit import AuditBatch, Kind, audit
from gtpo.errors import DataError
from gtpo.lab.tiny.model import make_model
from gtpo.rollout import ChatEncoder, RolloutEngine, RolloutLimits, Sampling
from gtpo.rollout.backends import TransformersBackend
from gtpo.rollout.formats import FencedFormat, ToolCallFormat
from gtpo.types import ToolCall


class AlwaysCalls(FencedFormat):
    def parse(self, text):
        return (ToolCall("1"),)


class AlwaysCallsJson(ToolCallFormat):
    def parse(self, text):
        return (ToolCall("1"),)


@pytest.fixture(params=FORMATS)
def sampled_rollouts(request, tiny_tokenizer, qwen_tokenizer):
    """What an untrained model says, with the log-probabilities of the backend."""
    tokenizer = {"fenced": tiny_tokenizer, "tool_call": qwen_tokenizer}[request.param]
    encoder = ChatEncoder(tokenizer, {"fenced": AlwaysCalls(), "tool_call": AlwaysCallsJson()}[request.param])
    model = make_model(tokenizer, seed=1, hidden_size=32, layers=2)
    model.config.max_position_embeddings = 2048
    prompts = [[{"role": "user", "content": f"{i}?"}] for i in range(6)]
    limits = RolloutLimits(max_turns=3, max_turn_tokens=250)
    engine = RolloutEngine(encoder, Box(), limits)
    rollouts = engine.run(prompts, TransformersBackend(model), sampling=Sampling(temperature=0.8), seed=3).trajectories
    assert max(len(t.turns) for t in rollouts) > 1, "no observation in the batch: the test would show nothing"
    return encoder, model, rollouts


@pytest.mark.parametrize("source", ["trajectories", "trl"])
def test_the_transformers_backend_is_reproduced(sampled_rollouts, source):
    encoder, model, rollouts = sampled_rollouts
    model.train()
    batch = batch_of(source, rollouts, encoder.tokenizer)
    report = audit(batch, tokenizer=encoder.tokenizer, encoder=encoder, model=model, temperature=0.8)
    assert model.training
    assert report.ok, report.render()
    (name,) = batch.rows[0].logprobs
    assert report.figures[f"{name}/compared"] == sum(sum(t.mask) for t in rollouts)
    assert report.figures[f"{name}/max_abs_diff"] < 1e-4
    assert report.figures[f"{name}/max_ratio"] == pytest.approx(1, abs=1e-4)
    assert not report.of(W)


def test_a_log_probability_that_the_model_does_not_give_is_found(sampled_rollouts):
    encoder, model, rollouts = sampled_rollouts
    batch = AuditBatch.from_trajectories(rollouts)
    options = {"tokenizer": encoder.tokenizer, "encoder": encoder, "temperature": 0.8}
    clean = audit(batch, model=model, **options)
    at = rollouts[2].turn_ids.index(len(rollouts[2].turns) - 1)  # the first token of its last turn
    for change, found in ((-0.5, True), (-0.01, True), (-1e-4, False)):
        values = list(batch.rows[2].logprobs["logprobs"])
        values[at] += change
        report = audit(mutate(batch, 2, logprobs={"logprobs": tuple(values)}), model=model, **options)
        new = set(told(report)) - set(told(clean))
        assert new == ({(Kind.LOGPROB_MISMATCH, E, 2, at, at + 1)} if found else set())
        assert len(report.findings) == len(clean.findings) + found
        if found:
            assert report.figures["logprobs/max_abs_diff"] == pytest.approx(-change, abs=1e-4)
            assert report.figures["logprobs/max_ratio"] == pytest.approx(math.exp(-change), rel=1e-3)
    values[at] += 0.01
    wide = audit(mutate(batch, 2, logprobs={"logprobs": tuple(values)}), model=model, tolerance=0.1, **options)
    assert told(wide) == told(clean)


def test_values_that_are_no_log_probabilities_are_found_without_a_model(encoder, batch, turns):
    (name,) = batch.rows[0].logprobs
    start = turns.turns[1][0]
    for value in (math.nan, -math.inf, 0.1):
        values = list(batch.rows[0].logprobs[name])
        values[start + 1] = values[start + 2] = value
        values[turns.observations[0][0]] = math.nan  # of no consequence
        changed = mutate(batch, logprobs={name: tuple(values)})
        assert findings(changed, encoder) == [(Kind.LOGPROB_INVALID, E, 0, start + 1, start + 3)]


def test_nan_is_not_compared_with_the_model(sampled_rollouts):
    encoder, model, rollouts = sampled_rollouts
    batch = AuditBatch.from_lists(
        [rollouts[0].prompt_ids],
        [rollouts[0].completion_ids],
        [rollouts[0].mask],
        [[None, *rollouts[0].logprobs[1:]]],
    )
    report = audit(batch, tokenizer=encoder.tokenizer, encoder=encoder, model=model, temperature=0.8)
    assert [f for f in told(report) if f[1] is E] == [(Kind.LOGPROB_INVALID, E, 0, 0, 1)]
    assert report.figures["logprobs/compared"] == sum(rollouts[0].mask) - 1


def test_log_probabilities_before_the_temperature_are_recognised(sampled_rollouts):
    encoder, model, rollouts = sampled_rollouts
    prompts = [[{"role": "user", "content": "plain"}]]
    engine = RolloutEngine(encoder, Box(), RolloutLimits(max_turns=1, max_turn_tokens=20))
    plain = engine.run(prompts, TransformersBackend(model), seed=0).trajectories
    options = {"tokenizer": encoder.tokenizer, "encoder": encoder, "model": model}
    batch = AuditBatch.from_trajectories(plain)
    assert audit(batch, **options).ok
    report = audit(batch, temperature=0.5, **options)
    assert not report.ok
    assert all("fit a temperature of 1" in f.message for f in report.of(E))
    report = audit(AuditBatch.from_trajectories(rollouts), temperature=0.5, **options)
    assert not report.ok
    assert not any("fit a temperature of 1" in f.message for f in report.of(E))


def test_too_few_log_probabilities_are_found(encoder, trajectories):
    turn = trajectories[1].turns[0]
    short = replace(trajectories[1], turns=(replace(turn, logprobs=turn.logprobs[:-1]),))
    batch = AuditBatch.from_trajectories([short, replace(short, turns=(replace(turn, logprobs=None),))])
    report = audit(batch, tokenizer=encoder.tokenizer, encoder=encoder)
    assert told(report) == [(Kind.LOGPROB_LENGTH, E, 0, len(turn.token_ids) - 1, len(turn.token_ids))]
    assert "log-probabilities: there are none (row 1)" in report.skipped


def test_what_the_model_can_not_compute_is_said(sampled_rollouts):
    encoder, model, _ = sampled_rollouts
    options = {"tokenizer": encoder.tokenizer, "encoder": encoder, "model": model}
    with pytest.raises(DataError, match=r"'prompt_ids'.*row 0 has none.*give the prompt"):
        audit(AuditBatch.from_lists([[]], [[5, 1]], [[1, 1]], [[-1.0, -1.0]]), **options)
    with pytest.raises(DataError, match=r"'completion_ids'.*id 100000.*give the model that sampled"):
        audit(AuditBatch.from_lists([[3]], [[100000, 1]], [[1, 1]], [[-1.0, -1.0]]), **options | {"encoder": None})
