"""What retokenising changes, ids that were not sampled, and what is said without a template."""

from __future__ import annotations

from dataclasses import replace

import pytest
from audit_support import (
    E,
    N,
    W,
    batch_of,
    findings,
    roll_out,
    told,
    with_mask,
)

from gtpo.audit import AuditBatch, Kind, audit
from gtpo.rollout import ChatEncoder, get_format
from gtpo.rollout.formats import FencedFormat
from gtpo.testing import with_chat_template
from gtpo.types import StopReason, Trajectory, Turn


@pytest.fixture
def spelled(tiny_tokenizer):
    """A rollout that spelled a piece, which the tokenizer has as one token, letter by letter: and it retokenised."""
    encoder = ChatEncoder(tiny_tokenizer, get_format("fenced"))
    text = "So \\boxed{2}"
    ids = [tiny_tokenizer.convert_tokens_to_ids(c) for c in text] + [encoder.end_id]
    prompt = tuple(encoder.prompt_ids([{"role": "user", "content": "1+1"}]))
    first = roll_out(encoder)[0].turns[0]

    def trajectory(ids):
        return Trajectory(prompt, (first, Turn(text, tuple(ids))), StopReason.ANSWER)

    return encoder, trajectory(ids), trajectory([*tiny_tokenizer.encode(text), encoder.end_id])


@pytest.mark.parametrize("source", ["lists", "trajectories"])
def test_what_retokenising_would_change_is_a_note(spelled, source):
    encoder, sampled, _ = spelled
    batch = AuditBatch.from_trajectories([sampled])
    if source == "lists":
        batch = AuditBatch.from_lists([sampled.prompt_ids], [sampled.completion_ids], [sampled.mask])
    report = audit(batch, tokenizer=encoder.tokenizer, encoder=encoder)
    start = sampled.turn_ids.index(1) + len("So ")
    assert told(report) == [(Kind.ROUND_TRIP, N, 0, start, start + len("\\boxed{"))]
    assert report.ok
    assert "7 tokens" in report.findings[0].message
    assert "1 token " in report.findings[0].message


def test_a_retokenised_turn_is_an_error_once_the_sampled_ids_are_known(spelled):
    encoder, sampled, retokenised = spelled
    ids = [[turn.token_ids for turn in sampled.turns]]
    batch = AuditBatch.from_lists([retokenised.prompt_ids], [retokenised.completion_ids], [retokenised.mask])
    assert findings(batch, encoder) == []  # it looks like any other
    start = retokenised.turn_ids.index(1) + len("So ")
    assert findings(batch, encoder, sampled_ids=ids) == [(Kind.RETOKENISED, E, 0, start, start + 1)]


def test_ids_that_differ_otherwise_from_those_sampled_are_found(encoder, trajectories, batch, turns):
    sampled = [[list(turn.token_ids) for turn in t.turns] for t in trajectories]
    sampled[0][1][2] += 1
    at = turns.turns[1][0] + 2
    assert findings(batch, encoder, sampled_ids=sampled) == [(Kind.NOT_SAMPLED, E, 0, at, at + 1)]
    sampled[0][1][2] -= 1
    sampled[2][-1] += [7, 7]
    own = (trajectories[2].turn_ids.index(1), len(trajectories[2].turn_ids))
    assert findings(batch, encoder, sampled_ids=sampled) == [(Kind.NOT_SAMPLED, W, 2, *own)]
    sampled[2] = sampled[2][:1]
    assert findings(batch, encoder, sampled_ids=sampled) == [(Kind.NOT_SAMPLED, E, 2, 0, own[1])]


def test_turns_that_a_server_gave_as_text_are_an_error(encoder, trajectories):
    inexact = replace(trajectories[1], turns=(replace(trajectories[1].turns[0], token_exact=False),))
    batch = AuditBatch.from_trajectories([trajectories[0], inexact])
    assert findings(batch, encoder) == [(Kind.RETOKENISED, E, 1, 0, len(inexact.completion_ids))]


def test_without_an_encoder_the_report_says_what_was_not_checked(encoder, trajectories, turns):
    batch = batch_of("trl", trajectories, encoder.tokenizer)
    report = audit(batch, tokenizer=encoder.tokenizer)
    assert told(report) == []
    assert any("whether observations are trained on" in reason for reason in report.skipped)
    assert not any("observations" in check for check in report.checked)
    assert "NOT checked: whether observations" in report.render()
    trained = with_mask(batch, dict.fromkeys(range(*turns.observations[0]), 1))
    assert audit(trained, tokenizer=encoder.tokenizer).ok  # the control: it can't be seen
    at = turns.turns[0][1] - 1
    dropped = audit(with_mask(batch, {at: 0}), tokenizer=encoder.tokenizer)
    assert told(dropped) == [(Kind.TURN_END, E, 0, at, at + 1)]


def test_a_template_that_does_not_mark_where_the_model_goes_on_is_said(tiny_tokenizer):
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}<end>{% endif %}{% endfor %}{% if add_generation_prompt %} go: {% endif %}"
    )
    encoder = ChatEncoder(with_chat_template(tiny_tokenizer, template, end="<end>"), FencedFormat())
    encoder.tokenizer.get_added_vocab = dict
    report = audit(batch_of("trl", roll_out(encoder), tiny_tokenizer), tokenizer=tiny_tokenizer, encoder=encoder)
    assert any("template does not mark" in reason for reason in report.skipped)
