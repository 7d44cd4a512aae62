"""Input that does not fit, and how the report reads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from audit_support import (
    E,
    trl_output,
    verl_batch,
    with_mask,
)

from gtpo.audit import AuditBatch, AuditRow, audit
from gtpo.errors import ConfigError, DataError


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
