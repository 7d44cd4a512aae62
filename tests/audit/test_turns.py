"""Our batches pass, from every source and under every template; turns are told from observations."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
import torch
from audit_support import (
    FORMATS,
    SOURCES,
    E,
    W,
    batch_of,
    other_frames,
    roll_out,
    told,
    trl_output,
    verl_batch,
)

from gtpo.audit import AuditBatch, Kind, audit
from gtpo.audit.turns import Frame, derived_layout, known_layout
from gtpo.errors import TemplateError
from gtpo.rollout import ChatEncoder, get_format
from gtpo.testing import with_chat_template


def test_our_rollouts_are_clean(encoder, trajectories, batch):
    sampled = [[turn.token_ids for turn in t.turns] for t in trajectories]
    report = audit(batch, tokenizer=encoder.tokenizer, encoder=encoder, sampled_ids=sampled)
    assert told(report) == []
    assert report.ok
    assert report.skipped == ("whether the model reproduces the log-probabilities: no model was given",)
    assert (report.figures["rows"], report.figures["turns"]) == (3, 6)
    assert report.figures["trained_tokens"] == sum(sum(t.mask) for t in trajectories)


ENDS = ("<|im_end|>", "<|eot_id|>", "<turn|>", "<|call|>", "<|return|>", "<|observation|>", "<|eot|>", "<|eom|>")
TEMPLATES = sorted(p.name for p in files("trl").joinpath("chat_templates").iterdir() if p.name.endswith(".jinja"))


def encoder_for(template, tokenizer, tool_format):
    """An encoder for a template of the host's, with whichever of its markers ends a turn as `eos_token`."""
    text = files("trl").joinpath("chat_templates", template).read_text(encoding="utf-8")
    if "tools" not in text:
        pytest.skip(f"{template} knows no tools")
    markers = sorted(set(re.findall(r"<\|?[A-Za-z_]+\|?>", text)))
    refused = ["none of its markers is known to end a turn"]
    for end in (end for end in ENDS if end in markers):
        try:
            return ChatEncoder(with_chat_template(tokenizer, text, end=end, specials=markers), get_format(tool_format))
        except TemplateError as error:
            refused.append(str(error))
    pytest.skip(f"ChatEncoder refuses {template}: {refused[-1]}")


@pytest.mark.parametrize("tool_format", FORMATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_batches_of_every_template_of_the_host_are_clean(template, tool_format, tiny_tokenizer):
    encoder = encoder_for(template, tiny_tokenizer, tool_format)
    trajectories = roll_out(encoder)
    for source in SOURCES:
        report = audit(batch_of(source, trajectories, encoder.tokenizer), tokenizer=encoder.tokenizer, encoder=encoder)
        assert told(report) == []
        assert any("observations that are trained on" in check for check in report.checked)


def test_the_families_that_matter_most_are_among_them(tiny_tokenizer):
    for template in ("qwen2_5.jinja", "qwen3_training.jinja", "qwen3_instruct_2507.jinja", "qwen3_5_think.jinja"):
        assert Frame.of(encoder_for(template, tiny_tokenizer, "tool_call")) is not None


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
    thinking = ChatEncoder(other, get_format("tool_call"))  # its generation prompt goes on to a thought
    trajectories = roll_out(encoder)
    fields = trl_output(trajectories, qwen_tokenizer.pad_token_id)
    report = audit(AuditBatch.from_trl(fields), tokenizer=thinking.tokenizer, encoder=thinking)
    own = len(trajectories[0].turns[0].token_ids)
    assert (Kind.TURNS_UNCLEAR, W, 0, own, len(trajectories[0].completion_ids)) in told(report)
