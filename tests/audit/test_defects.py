"""Each defect of masks and padding is found at its place, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from audit_support import (
    E,
    W,
    batch_of,
    findings,
    mutate,
    told,
    trl_output,
    with_mask,
)

from gtpo.audit import AuditBatch, Kind, audit
from gtpo.audit.turns import known_layout
from gtpo.types import StopReason


def test_a_trained_observation_is_found(encoder, batch, turns):
    for start, stop in turns.observations:
        for span in ((start, stop), (start, start + 1), (start + 2, start + 4), (stop - 1, stop)):
            changed = with_mask(batch, dict.fromkeys(range(*span), 1))
            assert findings(changed, encoder) == [(Kind.OBSERVATION_TRAINED, E, 0, *span)]
    everything = with_mask(batch, dict.fromkeys(range(turns.turns[-1][1]), 1))
    assert findings(everything, encoder) == [(Kind.OBSERVATION_TRAINED, E, 0, *span) for span in turns.observations]


@pytest.mark.parametrize(
    ("turn", "first", "last", "kind"),
    [
        (0, 2, 4, Kind.TURN_HOLE),
        (1, 1, 2, Kind.TURN_HOLE),
        (0, 0, 1, Kind.TURN_START),
        (2, 0, 3, Kind.TURN_START),
        (1, -1, 0, Kind.TURN_END),
        (2, -1, 0, Kind.TURN_END),
        (0, -3, 0, Kind.TURN_END),
    ],
)
def test_tokens_of_a_turn_that_are_not_trained_on_are_found(encoder, batch, turns, turn, first, last, kind):
    start, stop = turns.turns[turn]
    span = (stop + first, stop + last) if first < 0 else (start + first, start + last)
    assert findings(with_mask(batch, dict.fromkeys(range(*span), 0)), encoder) == [(kind, E, 0, *span)]


@pytest.mark.parametrize("source", ["trajectories", "trl"])
def test_every_single_flip_of_the_mask_is_found_at_its_place(encoder, trajectories, source):
    for row in batch_of(source, trajectories, encoder.tokenizer).rows:
        alone = AuditBatch((row,))
        for t, value in enumerate(row.mask):
            ((kind, _, number, *span),) = findings(with_mask(alone, {t: 1 - value}), encoder)
            assert (number, span) == (0, [t, t + 1])
            lost = kind in (Kind.TURN_START, Kind.TURN_HOLE, Kind.TURN_END)
            assert lost if value else kind is (Kind.OBSERVATION_TRAINED if t < row.length else Kind.PADDING_TRAINED)


def test_a_turn_left_out_is_a_warning_and_a_rollout_left_out_is_said(encoder, batch, turns):
    span = turns.turns[1]
    left_out = with_mask(batch, dict.fromkeys(range(*span), 0))
    assert findings(left_out, encoder) == [(Kind.TURN_UNTRAINED, W, 0, *span)]
    report = audit(
        with_mask(batch, dict.fromkeys(range(len(batch.rows[0].mask)), 0)), tokenizer=encoder.tokenizer, encoder=encoder
    )
    assert told(report) == []
    assert "rows that train on no token (row 0)" in report.skipped


@pytest.mark.parametrize("shift", [1, -1, 2])
def test_a_shifted_mask_is_one_finding(encoder, batch, turns, shift):
    row = batch.rows[0]
    mask = [row.mask[t - shift] if 0 <= t - shift < len(row.mask) else 0 for t in range(len(row.mask))]
    report = audit(mutate(batch, mask=tuple(mask)), tokenizer=encoder.tokenizer, encoder=encoder)
    assert told(report) == [(Kind.MASK_SHIFTED, E, 0, 0, row.length)]
    assert f"{shift:+d}" in report.findings[0].message


def test_a_mask_of_other_values_is_found(encoder, batch):
    assert findings(with_mask(batch, {3: 0.5, 4: 2}), encoder) == [(Kind.MASK_VALUE, E, 0, 3, 5)]


@pytest.mark.parametrize("change", [-1, 2])
def test_a_mask_of_another_length_is_found_and_its_row_is_not_looked_at_further(encoder, trajectories, change):
    masks = [t.mask for t in trajectories]
    width = len(masks[1])
    masks[1] = (masks[1] + [1, 1])[: width + change]
    lists = [[t.prompt_ids for t in trajectories], [t.completion_ids for t in trajectories], masks]
    report = audit(AuditBatch.from_lists(*lists), tokenizer=encoder.tokenizer, encoder=encoder)
    assert told(report) == [(Kind.MASK_LENGTH, E, 1, *sorted((width, width + change)))]
    assert any("row 1" in reason and "mask does not fit" in reason for reason in report.skipped)


def test_an_end_token_that_was_dropped_is_found(encoder, batch, turns):
    row, at = batch.rows[0], turns.turns[0][1] - 1
    cut = {
        name: None if (value := getattr(row, name)) is None else (*value[:at], *value[at + 1 :])
        for name in ("completion_ids", "mask", "attended", "turn_ids")
    }
    logprobs = {name: (*values[:at], *values[at + 1 :]) for name, values in row.logprobs.items()}
    changed = mutate(batch, **cut, logprobs=logprobs)
    assert findings(changed, encoder) == [(Kind.NO_END_TOKEN, E, 0, at - 1, at + 1)]


@pytest.mark.parametrize("source", ["trl", "verl"])
@pytest.mark.parametrize("row", [0, 1])
def test_trained_padding_is_found(encoder, trajectories, source, row):
    batch = batch_of(source, trajectories, encoder.tokenizer)
    own, width = batch.rows[row].length, len(batch.rows[row].mask)
    changed = with_mask(batch, dict.fromkeys(range(own, width), 1), row)
    assert findings(changed, encoder) == [(Kind.PADDING_TRAINED, E, row, own, width)]
    claimed = mutate(changed, row, attended=(True,) * width)  # the padding is not even marked as such
    assert findings(claimed, encoder) == [(Kind.PADDING_TRAINED, E, row, own, width)]
    assert findings(with_mask(batch, {own + 1: 1}, row), encoder) == [(Kind.PADDING_TRAINED, E, row, own + 1, own + 2)]


def test_padding_that_is_the_end_token_is_told_from_the_turns_own(encoder, trajectories):
    output = trl_output(trajectories, encoder.end_id)
    clean = AuditBatch.from_trl(output)
    encoder.tokenizer.pad_token, former = encoder.tokenizer.eos_token, encoder.tokenizer.pad_token
    try:
        assert findings(clean, encoder) == []
        output["completion_mask"] = torch.ones_like(output["completion_mask"])
        own, width = clean.rows[1].length, len(clean.rows[1].mask)
        assert (Kind.PADDING_TRAINED, E, 1, own, width) in findings(AuditBatch.from_trl(output), encoder)
    finally:
        encoder.tokenizer.pad_token = former


def test_padding_that_the_model_may_have_sampled_is_a_warning(encoder, trajectories):
    pad_id = encoder.tokenizer.pad_token_id
    cut = trajectories[2]
    assert cut.stop_reason is not StopReason.ANSWER
    last = replace(cut.turns[-1], token_ids=(*cut.turns[-1].token_ids, pad_id), logprobs=None)
    sampled = replace(cut, turns=(*cut.turns[:-1], last))
    ids = sampled.completion_ids
    batch = AuditBatch.from_lists([sampled.prompt_ids], [ids], [sampled.mask])
    assert findings(batch, encoder) == [(Kind.PADDING_TRAINED, W, 0, len(ids) - 1, len(ids))]
    assert findings(AuditBatch.from_trajectories([sampled]), encoder) == []


def test_a_loss_mask_used_as_attention_mask_is_found(encoder, trajectories, turns):
    output = trl_output(trajectories, encoder.tokenizer.pad_token_id)
    output["completion_mask"] = output["completion_mask"] * output.pop("tool_mask")
    assert findings(AuditBatch.from_trl(output), encoder) == [
        (Kind.ATTENTION_HOLE, E, 0, *turns.observations[0]),
        (Kind.ATTENTION_HOLE, E, 0, *turns.observations[1]),
        (
            Kind.ATTENTION_HOLE,
            E,
            2,
            *known_layout(AuditBatch.from_trajectories(trajectories).rows[2], ()).observations[0],
        ),
    ]
