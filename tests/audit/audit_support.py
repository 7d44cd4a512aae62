"""Batches of three rollouts as they come from us, from TRL and from verl, and ways to spoil them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch

from gtpo.audit import AuditBatch, Severity, audit
from gtpo.rollout import RolloutEngine, RolloutLimits
from gtpo.sandbox import ExecResult, Status
from gtpo.testing import ScriptedBackend

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


def other_frames(trajectory, change):
    """A rollout whose observations were tokenised otherwise."""
    turns = [
        replace(turn, observation=replace(turn.observation, token_ids=tuple(change(turn.observation.token_ids))))
        if turn.observation
        else turn
        for turn in trajectory.turns
    ]
    return replace(trajectory, turns=tuple(turns))
