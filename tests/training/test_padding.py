"""Columns without a token are cut, and the update stays what it was."""

from __future__ import annotations

import pytest
import torch

from gtpo.tiny.model import make_model
from gtpo.training import trainer as trainer_module
from gtpo.training.padding import trimmed
from gtpo.training.run import train


def batch(**more):
    completion_mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    return {
        "prompt_ids": torch.tensor([[0, 0, 7, 8], [0, 0, 0, 9]]),
        "prompt_mask": torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]),
        "completion_ids": torch.arange(10).reshape(2, 5),
        "completion_mask": completion_mask,
        "tool_mask": completion_mask.clone(),
        "advantages": torch.arange(10.0).reshape(2, 5),
        "num_items_in_batch": torch.tensor(4),
        **more,
    }


def test_each_part_keeps_its_tokens():
    found = trimmed(batch(old_per_token_logps=None, advantage_of_rows=torch.zeros(2)))
    assert found["prompt_ids"].tolist() == [[7, 8], [0, 9]]
    assert found["prompt_mask"].tolist() == [[1, 1], [0, 1]]
    assert found["completion_ids"].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert found["advantages"].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert found["completion_mask"].shape == found["tool_mask"].shape == (2, 3)
    assert found["num_items_in_batch"] == 4
    assert found["old_per_token_logps"] is None
    assert found["advantage_of_rows"].shape == (2,)


def test_prompts_as_wide_as_completions_are_told_apart():
    square = batch(prompt_ids=torch.tensor([[0, 1, 2, 3, 4]] * 2), prompt_mask=torch.tensor([[0, 0, 1, 1, 1]] * 2))
    found = trimmed(square)
    assert found["prompt_ids"].tolist() == [[2, 3, 4]] * 2
    assert found["completion_ids"].tolist() == [[0, 1, 2], [5, 6, 7]]


def test_what_lies_along_the_whole_sequence_leaves_it_alone():
    given = batch(token_type_ids=torch.zeros(2, 9))
    assert trimmed(given) == given


def test_one_column_is_left_where_nothing_is_trained_on():
    assert trimmed(batch(completion_mask=torch.zeros(2, 5)))["completion_ids"].shape == (2, 1)


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_the_update_is_what_it_was(
    tiny_tokenizer, problems, sandbox, config, tmp_path, monkeypatch, random_turns, num_iterations
):
    widths, weights = [], []

    def watched(cut):
        def of(inputs):
            found = trimmed(inputs) if cut else dict(inputs)
            widths.append((cut, found["completion_ids"].shape[1]))
            return found

        return of

    for cut in (True, False):
        monkeypatch.setattr(trainer_module, "trimmed", watched(cut))
        random_turns.batches = 0
        model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
        args = config(
            run_dir=str(tmp_path / str(cut)),
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=8,
            num_iterations=num_iterations,
            optim="sgd",
            learning_rate=1.0,
        )
        train(model, tiny_tokenizer, problems, args, sandbox=sandbox)
        weights.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    assert sum(w for cut, w in widths if cut) < sum(w for cut, w in widths if not cut), "something was cut"
    start = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2).state_dict()
    assert any((weights[0][name] - start[name]).abs().max() > 1e-3 for name in start), "something was learnt"
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-4)
