"""Our batches pass, from every source and under every template; turns are told from observations."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from audit_support import (
    FORMATS,
    SOURCES,
    E,
    N,
    W,
    batch_of,
    other_frames,
    roll_out,
    told,
    trl_output,
    verl_batch,
)
from families import BUILDABLE, NAMES, family_tokenizer, template_tokenizer

from gtpo.audit import AuditBatch, Kind, audit
from gtpo.audit.turns import Frame, derived_layout, known_layout
from gtpo.rollout import ChatEncoder, get_format
from gtpo.rollout.choosing import make_encoder
from gtpo.testing import with_chat_template


def test_our_rollouts_are_clean(encoder, trajectories, batch):
    sampled = [[turn.token_ids for turn in t.turns] for t in trajectories]
    report = audit(batch, tokenizer=encoder.tokenizer, encoder=encoder, sampled_ids=sampled)
    assert told(report) == []
    assert report.ok
    assert report.skipped == ("whether the model reproduces the log-probabilities: no model was given",)
    assert (report.figures["rows"], report.figures["turns"]) == (3, 6)
    assert report.figures["trained_tokens"] == sum(sum(t.mask) for t in trajectories)


@pytest.mark.parametrize("tool_format", FORMATS)
@pytest.mark.parametrize("template", NAMES)
def test_batches_of_every_template_of_the_host_are_clean(template, tool_format):
    if tool_format == "fenced":
        encoder = make_encoder(template_tokenizer(template), "fenced")
    else:
        encoder = make_encoder(template_tokenizer(template), "auto")
    check_clean(encoder, marked=tool_format != "fenced" and encoder.format.name != "fenced")


@pytest.mark.parametrize("family", BUILDABLE)
def test_batches_of_every_family_are_clean(family):
    check_clean(make_encoder(family_tokenizer(family), family))


def check_clean(encoder, marked=True):
    """No finding in batches of rollouts with calls, from any source; observations are told from turns."""
    trajectories = traced(encoder)
    for source in SOURCES:
        report = audit(batch_of(source, trajectories, encoder.tokenizer), tokenizer=encoder.tokenizer, encoder=encoder)
        assert [line for line in told(report) if line[1] is not N] == []
        if marked:
            assert any("observations that are trained on" in check for check in report.checked)


def traced(encoder):
    """Rollouts with two results in turn and no logits behind them."""
    write = encoder.format.render_turn
    turns = [write("Let me see.", "1 + 1"), "2", write("", "2 + 2"), "four\n", write("It is 4.")]
    roles = ("assistant", "tool", "assistant", "tool", "assistant")
    question = {"role": "user", "content": "What is 2 + 2?"}
    talk = [question, *({"role": role, "content": text} for role, text in zip(roles, turns, strict=True))]
    traces = [encoder.trace(talk), encoder.trace([question, {"role": "assistant", "content": write("4")}])]
    return [replace(t, turns=tuple(replace(x, logprobs=(-1.0,) * len(x.token_ids)) for x in t.turns)) for t in traces]


def test_turns_are_told_from_the_ids_alone(encoder, trajectories):
    """Whatever the mask says, the layout derived from the template is the known one."""
    pad_id = encoder.tokenizer.pad_token_id
    known = AuditBatch.from_trajectories(trajectories).rows
    for row, own in zip(AuditBatch.from_trl(trl_output(trajectories, pad_id)).rows, known, strict=True):
        derived = derived_layout(row, [True] * len(row.mask), Frame.of(encoder), pad_id)
        expected = known_layout(own, encoder.end_ids)
        assert (derived.turns, derived.observations) == (expected.turns, expected.observations)


def test_observations_of_stacks_that_leave_out_the_line_break_are_found(qwen_tokenizer):
    encoder = ChatEncoder(qwen_tokenizer, get_format("tool_call"))
    line_break = qwen_tokenizer.encode("\n")[0]
    changed = [
        other_frames(t, lambda ids: ids[1:] if ids[0] == line_break else pytest.fail("no line break"))
        for t in roll_out(encoder)
    ]
    assert told(audit(batch_of("verl", changed, qwen_tokenizer), tokenizer=qwen_tokenizer, encoder=encoder)) == []


@pytest.mark.parametrize("left_out", [1, 2, 3, 12, 30])
def test_an_observation_cut_by_the_limit_is_one(encoder, trajectories, left_out):
    """verl cuts responses at their greatest length, wherever that is."""
    first = trajectories[0]
    cut = len(first.turns[0].token_ids) + len(first.turns[0].observation.token_ids) - left_out
    fields = {name: value[:1] for name, value in verl_batch(trajectories, encoder.tokenizer.pad_token_id).items()}
    prompt = fields["prompts"].shape[1]
    for name, value in fields.items():
        if name != "prompts":
            fields[name] = value[:, : cut + prompt * (name == "attention_mask")]
    assert told(audit(AuditBatch.from_verl(fields), tokenizer=encoder.tokenizer, encoder=encoder)) == []
    fields["response_mask"] = torch.ones_like(fields["response_mask"])
    report = audit(AuditBatch.from_verl(fields), tokenizer=encoder.tokenizer, encoder=encoder)
    own = len(first.turns[0].token_ids)
    assert told(report) == [(Kind.OBSERVATION_TRAINED, E, 0, own, cut)]


def test_an_encoder_of_another_template_is_noticed(qwen_tokenizer):
    encoder = ChatEncoder(qwen_tokenizer, get_format("tool_call"))
    template = files("trl").joinpath("chat_templates", "qwen3_5_think.jinja").read_text(encoding="utf-8")
    other = with_chat_template(qwen_tokenizer, template, end="<|im_end|>")
    thinking = ChatEncoder(other, get_format("fenced"))  # its generation prompt goes on to a thought
    trajectories = roll_out(encoder)
    fields = trl_output(trajectories, qwen_tokenizer.pad_token_id)
    report = audit(AuditBatch.from_trl(fields), tokenizer=thinking.tokenizer, encoder=thinking)
    own = len(trajectories[0].turns[0].token_ids)
    assert (Kind.TURNS_UNCLEAR, W, 0, own, len(trajectories[0].completion_ids)) in told(report)
