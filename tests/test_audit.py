"""The audit: our batches pass, from every source and under every template; each injected defect is found, alone."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace

import pytest
import torch

from gtpo.audit import AuditBatch, AuditRow, Kind, Severity, audit
from gtpo.audit.turns import Frame, derived_layout, known_layout
from gtpo.errors import ConfigError, DataError, TemplateError
from gtpo.rollout import ChatEncoder, RolloutEngine, RolloutLimits, Sampling, get_format
from gtpo.rollout.backends import Generation, TransformersBackend
from gtpo.rollout.formats import FencedFormat, ToolCallFormat
from gtpo.sandbox import ExecResult, Status
from gtpo.testing import ScriptedBackend, with_chat_template
from gtpo.tiny.model import make_model
from gtpo.types import StopReason, ToolCall, Trajectory, Turn

FORMATS = ("fenced", "tool_call")
SOURCES = ("trajectories", "trl", "verl")
E, W, N = Severity.ERROR, Severity.WARNING, Severity.INFO


class Box:
    """Runs nothing."""

    async def run(self, code, *, limits=None, seed=None, key=None):
        return ExecResult(Status.OK, stdout=f"{code} gives\n\n- 4\n")


def roll_out(encoder):
    """Three rollouts: a turn of two calls, a malformed one and an answer; an answer; a call and a turn cut off."""
    call = encoder.format.render_call
    malformed = {"fenced": "```python\n1+1", "tool_call": "<tool_call>{"}[encoder.format.name]
    scripts = {
        "What is 2+2?": ["Let me see.\n" + call("1+1") + "\n" + call("2+2"), malformed, "\\boxed{4}"],
        "And 3?": ["\\boxed{3}"],
        "Go on.": [call("9"), "still thinking" + ScriptedBackend.CUT],
    }
    prompts = [[{"role": "user", "content": question}] for question in scripts]
    by_ids = {tuple(encoder.prompt_ids(p)): turns for p, turns in zip(prompts, scripts.values(), strict=True)}
    backend = ScriptedBackend(encoder.tokenizer, by_ids)
    return RolloutEngine(encoder, Box(), RolloutLimits(max_turns=4)).run(prompts, backend).trajectories


def pad(rows, value, *, left=False):
    width = max(map(len, rows)) + 2
    return torch.tensor(
        [[value] * (width - len(r)) * left + [*r] + [value] * (width - len(r)) * (not left) for r in rows]
    )


def trl_output(trajectories, pad_id):
    """As TRL's trainer pads them."""
    prompts, completions = [t.prompt_ids for t in trajectories], [t.completion_ids for t in trajectories]
    return {
        "prompt_ids": pad(prompts, pad_id, left=True),
        "prompt_mask": pad([[1] * len(p) for p in prompts], 0, left=True),
        "completion_ids": pad(completions, pad_id),
        "completion_mask": pad([[1] * len(c) for c in completions], 0),
        "tool_mask": pad([t.mask for t in trajectories], 1),
        "sampling_per_token_logps": pad([t.logprobs for t in trajectories], 0.0),
        "advantages": torch.zeros(len(prompts)),
    }


def verl_batch(trajectories, pad_id):
    """As verl's agent loop pads them."""
    output = trl_output(trajectories, pad_id)
    return {
        "prompts": output["prompt_ids"],
        "responses": output["completion_ids"],
        "response_mask": output["completion_mask"] * output["tool_mask"],
        "attention_mask": torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
        "rollout_log_probs": output["sampling_per_token_logps"],
    }


def batch_of(source, trajectories, tokenizer):
    if source == "trl":
        return AuditBatch.from_trl(trl_output(trajectories, tokenizer.pad_token_id))
    if source == "verl":
        return AuditBatch.from_verl(SimpleNamespace(batch=verl_batch(trajectories, tokenizer.pad_token_id)))
    return AuditBatch.from_trajectories(trajectories)


def told(report):
    return [(f.kind, f.severity, f.row, f.start, f.stop) for f in report.findings]


@pytest.fixture(params=["tiny-fenced", "qwen-fenced", "qwen-tool_call"])
def encoder(request, tiny_tokenizer, qwen_tokenizer):
    name, tool_format = request.param.split("-")
    return ChatEncoder({"tiny": tiny_tokenizer, "qwen": qwen_tokenizer}[name], get_format(tool_format))


@pytest.fixture
def trajectories(encoder):
    return roll_out(encoder)


@pytest.fixture(params=SOURCES)
def batch(request, encoder, trajectories):
    return batch_of(request.param, trajectories, encoder.tokenizer)


@pytest.fixture
def turns(trajectories):
    """Spans of the first rollout's turns and observations."""
    layout = known_layout(AuditBatch.from_trajectories(trajectories).rows[0], frozenset())
    assert (len(layout.turns), len(layout.observations)) == (3, 2)
    return layout


def test_our_rollouts_are_clean(encoder, trajectories, batch):
    sampled = [[turn.token_ids for turn in t.turns] for t in trajectories]
    report = audit(batch, tokenizer=encoder.tokenizer, encoder=encoder, sampled_ids=sampled)
    assert told(report) == []
    assert report.ok
    assert report.skipped == ("whether the model reproduces the log-probabilities: no model was given",)
    assert (report.figures["rows"], report.figures["turns"]) == (3, 6)
    assert report.figures["trained_tokens"] == sum(sum(t.mask) for t in trajectories)


# ---- templates and tokenizers


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


def other_frames(trajectory, change):
    """A rollout whose observations were tokenised otherwise."""
    turns = [
        replace(turn, observation=replace(turn.observation, token_ids=tuple(change(turn.observation.token_ids))))
        if turn.observation
        else turn
        for turn in trajectory.turns
    ]
    return replace(trajectory, turns=tuple(turns))


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


# ---- defects


def mutate(batch, row=0, **changes):
    rows = list(batch.rows)
    rows[row] = replace(rows[row], **changes)
    return replace(batch, rows=tuple(rows))


def with_mask(batch, values, row=0):
    """The mask with other values at some positions."""
    mask = list(batch.rows[row].mask)
    for t, value in values.items():
        mask[t] = value
    return mutate(batch, row, mask=tuple(mask))


def findings(batch, encoder, **options):
    return told(audit(batch, tokenizer=encoder.tokenizer, encoder=encoder, **options))


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


# ---- ids and text


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
    inexact = replace(trajectories[1], turns=(replace(trajectories[1].turns[0], exact=False),))
    batch = AuditBatch.from_trajectories([trajectories[0], inexact])
    assert findings(batch, encoder) == [(Kind.RETOKENISED, E, 1, 0, len(inexact.completion_ids))]


# ---- without a template


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


# ---- log-probabilities


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


# ---- input and report


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"completion_mask": None}, r"'completion_mask': is missing; pass the dict that GRPOTrainer"),
        ({"prompt_mask": torch.ones(3, 2)}, r"'prompt_mask': has 2 columns"),
        ({"tool_mask": torch.ones(2, 9)}, r"'tool_mask': has 2 rows, the batch has 3"),
        ({"completion_ids": [[1], [1, 2], [3]]}, r"'completion_ids': has rows of 1 to 2 entries; pad them"),
        ({"completion_ids": torch.ones(3)}, r"'completion_ids': must have two axes"),
        ({"completion_ids": "text"}, r"'completion_ids': has 4 rows|'completion_ids': must have two axes"),
        ({"sampling_per_token_logps": torch.ones(3, 1)}, r"'sampling_per_token_logps': has 1 columns"),
        ({"prompt_ids": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])}, r"'prompt_ids': is a nested"),
    ],
)
def test_a_trl_batch_that_does_not_fit_names_the_field_and_the_remedy(encoder, trajectories, change, fault):
    output = {**trl_output(trajectories, 0), **change}
    with pytest.raises(DataError, match=fault):
        AuditBatch.from_trl({name: value for name, value in output.items() if value is not None})


def test_a_verl_batch_that_does_not_fit_names_the_field_and_the_remedy(encoder, trajectories):
    fields = verl_batch(trajectories, 0)
    with pytest.raises(DataError, match=r"'response_mask': is missing; .*compute_response_mask"):
        AuditBatch.from_verl({k: v for k, v in fields.items() if k != "response_mask"})
    with pytest.raises(DataError, match=r"'attention_mask': has \d+ columns, prompts and responses have \d+ together"):
        AuditBatch.from_verl({**fields, "attention_mask": fields["response_mask"]})
    with pytest.raises(DataError, match=r"'prompts': a batch must be a mapping, not list"):
        AuditBatch.from_verl([1])


def test_other_input_that_does_not_fit_is_refused(encoder, batch):
    with pytest.raises(DataError, match=r"'sampled_ids': has 1 rows, the batch has 3"):
        audit(batch, tokenizer=encoder.tokenizer, sampled_ids=[[]])
    with pytest.raises(ConfigError, match=r"temperature must be positive, got 0"):
        audit(batch, tokenizer=encoder.tokenizer, temperature=0)
    with pytest.raises(DataError, match=r"'mask': 1 rows for 2 completions"):
        AuditBatch.from_lists([[1], [1]], [[1], [1]], [[1]])
    with pytest.raises(DataError, match=r"'completion_ids': holds a negative id"):
        AuditBatch.from_lists([[1]], [[1, -100]], [[1, 0]])
    with pytest.raises(DataError, match=r"'turn_ids': 1 entries for 2 completion ids"):
        AuditRow((1,), (1, 2), (1, 1), turn_ids=(0,))


def test_arrays_and_lists_are_as_good_as_tensors(encoder, trajectories):
    output = trl_output(trajectories, encoder.tokenizer.pad_token_id)
    expected = AuditBatch.from_trl(output)
    assert AuditBatch.from_trl({name: value.numpy() for name, value in output.items()}) == expected
    assert AuditBatch.from_trl({name: value.tolist() for name, value in output.items()}) == expected
    cast = {name: value.bool() if name.endswith("mask") else value for name, value in output.items()}
    assert AuditBatch.from_trl(cast) == expected


def test_importing_it_loads_neither_torch_nor_a_trainer():
    code = "import sys, gtpo.audit; print({'torch', 'trl', 'verl', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_an_empty_batch_is_fine(encoder):
    assert audit(AuditBatch.from_trajectories([]), tokenizer=encoder.tokenizer, encoder=encoder).ok
    empty = {name: [] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
    assert AuditBatch.from_trl(empty).rows == ()


def test_the_report_reads_worst_first_and_counts_what_it_leaves_out(encoder, batch, turns):
    start, stop = turns.turns[0]
    changed = with_mask(batch, dict.fromkeys(range(*turns.turns[1]), 0))
    changed = with_mask(changed, dict.fromkeys(range(start + 1, stop - 1, 2), 0))
    report = audit(changed, tokenizer=encoder.tokenizer, encoder=encoder)
    text = report.render(most=2)
    holes = len(report.of(E))
    assert text.startswith(f"Audit: {holes} error, 1 warning")
    assert text.count("turn_hole: does not train on") == 2
    assert f"... and more of error: turn_hole {holes - 2}" in text
    assert (
        text.index("error   row 0") < text.index("warning row 0") < text.index("Checked:") < text.index("NOT checked:")
    )
    assert f"trained_tokens: {report.figures['trained_tokens']:g}" in text


# ---- the real host, and a real tokenizer


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
    monkeypatch.setattr("gtpo.training.trainer.TransformersBackend", RandomTurns)
    problems = [Problem(id=f"p/{i}", question=f"{i}+{2 - i}", answer="2") for i in range(12)]
    config = GTPOConfig(
        run_dir=str(tmp_path),
        tool_format="fenced",
        system_prompt="",
        max_turn_tokens=24,
        max_completion_length=160,
        num_generations=4,
        per_device_train_batch_size=8,
        num_iterations=2,  # makes the host compute old_per_token_logps
        max_steps=1,
        temperature=0.7,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
    trainer = GTPOTrainer(model, config, problem_dataset(problems, None), tiny_tokenizer, sandbox=Box())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # the host sets it in its training loop
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert output["tool_mask"].eq(0).any(), "no observation in the batch: the test would show nothing"

    batch = AuditBatch.from_trl(output)
    sampled = [[turn.token_ids for turn in t.turns] for t in trainer._round.trajectories]
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
