"""Rows without a signal and columns without a token are cut, and the update stays what it was."""

from __future__ import annotations

import pytest
import torch
from judge import Passes

from gtpo.lab.tiny.model import make_model
from gtpo.rollout import build_prompts
from gtpo.run_directory import read_metrics
from gtpo.training import base_trainer as trainer_module
from gtpo.training.data import problem_dataset
from gtpo.training.micro_batch import rows_count_alone, trimmed, with_signal
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


def rows(advantages, **more):
    """Four rows of two tokens; the row is the id of its first one."""
    mask = torch.ones(4, 2)
    return {
        "completion_ids": torch.tensor([[0, 9], [1, 9], [2, 9], [3, 9]]),
        "completion_mask": mask,
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(8),
        **more,
    }


def kept(inputs, agreed=lambda number: number):
    found, _ = with_signal(inputs, agreed)
    assert found["num_items_in_batch"] == 8
    assert len(found["advantages"]) == len(found["completion_mask"]) == len(found["completion_ids"])
    return found["completion_ids"][:, 0].tolist()


def test_rows_without_an_advantage_are_cut():
    assert kept(rows([0.0, 1.0, 0.0, -0.5])) == [1, 3]
    assert kept(rows([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [-0.5, 0.0]])) == [1, 3]


def test_an_advantage_outside_the_loss_is_none():
    assert kept(rows([1.0, 1.0, 1.0, 1.0], tool_mask=torch.tensor([[0, 0], [0, 1], [1, 1], [0, 0]]))) == [1, 2]
    both = rows([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], tool_mask=torch.tensor([[1, 0]] * 4))
    assert kept(both) == [1]


def test_the_shortest_row_is_left_where_none_has_a_signal():
    lengths = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]])
    assert kept(rows([0.0] * 4, completion_mask=lengths)) == [2]


def test_a_row_with_a_token_of_the_loss_is_left_before_one_without():
    lengths = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]])
    tool_mask = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 1]])
    assert kept(rows([0.0] * 4, completion_mask=lengths, tool_mask=tool_mask)) == [2]


def test_it_says_whether_any_process_has_a_signal():
    assert with_signal(rows([0.0] * 4), lambda number: number)[1] is False
    assert with_signal(rows([0.0] * 4), lambda number: number + 1)[1] is True
    assert with_signal(rows([0.0, 0.0, 0.0, 1.0]), lambda number: number)[1] is True


def test_as_many_rows_as_the_process_that_needs_most():
    lengths = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]])
    given = rows([1.0, 0.0, 0.0, 0.0], completion_mask=lengths)
    assert kept(given, lambda number: number + 1) == [0, 2]
    assert kept(given, lambda number: 4) == [0, 1, 2, 3]


def test_a_tensor_of_something_else_than_rows_leaves_it_alone():
    asked = []
    given = rows([0.0, 1.0, 0.0, 0.0], pixel_values=torch.zeros(7, 3))
    assert kept(given, lambda number: asked.append(number) or number) == [0, 1, 2, 3]
    assert asked == [4], "the other processes wait for an answer"


def test_rows_count_where_the_loss_has_more_in_it(tiny_tokenizer, config, tmp_path):
    model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)

    def alone(**options):
        return rows_count_alone(config(run_dir=str(tmp_path), **options), model)

    assert alone()
    assert alone(loss_type="cispo")
    others = {"loss_type": ["grpo", "bnpo", "dr_grpo"], "beta": [0.1], "top_entropy_quantile": [0.2]}
    for name, values in others.items():
        assert not any(alone(**{name: value}) for value in values), name
    for name, value in {"entropy_coef": 0.1, "use_adaptive_entropy": True, "use_liger_kernel": True}.items():
        args = config(run_dir=str(tmp_path))
        setattr(args, name, value)  # not every version of TRL has them
        assert not rows_count_alone(args, model), name
    model.config.output_router_logits = False  # as the configuration of a mixture of experts has it
    assert not alone()


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_the_update_is_what_it_was(
    tiny_tokenizer, problems, sandbox, config, tmp_path, monkeypatch, random_turns, num_iterations
):
    shapes, weights = {True: [], False: []}, []

    def watch(cut):
        def columns(inputs):
            found = trimmed(inputs) if cut else dict(inputs)
            shapes[cut].append(found["completion_ids"].shape)
            return found

        monkeypatch.setattr(trainer_module, "trimmed", columns)
        monkeypatch.setattr(trainer_module, "rows_count_alone", lambda args, model: cut)

    for cut in (True, False):
        watch(cut)
        random_turns.batches = 0
        model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
        args = config(
            run_dir=str(tmp_path / str(cut)),
            max_steps=2,
            algorithm="grpo",
            num_generations=2,  # some groups pass or fail altogether
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_iterations=num_iterations,
            optim="sgd",
            learning_rate=1.0,
        )
        train(model, tiny_tokenizer, problems, args, sandbox=sandbox)
        weights.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    for side in (0, 1):
        assert sum(shape[side] for shape in shapes[True]) < sum(shape[side] for shape in shapes[False]), "it was cut"
    start = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2).state_dict()
    assert any((weights[0][name] - start[name]).abs().max() > 1e-3 for name in start), "something was learnt"
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-4)


def test_a_step_without_a_signal_logs_nothing_of_the_rows_that_were_left(
    tiny_tokenizer, problems, sandbox, config, tmp_path, random_turns
):
    model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
    args = config(run_dir=str(tmp_path), max_steps=1, num_generations=2)
    train(model, tiny_tokenizer, problems, args, sandbox=sandbox, verifier=Passes(lambda text: False))
    (line,) = read_metrics(tmp_path)
    assert (line["pass_rate"], line["loss"], line["grad_norm"]) == (0.0, 0.0, 0.0)
    assert not [name for name in line if "entropy" in name or "clip_ratio" in name]


def test_an_evaluation_within_the_training_keeps_its_rows(
    tiny_tokenizer, problems, sandbox, config, tmp_path, monkeypatch, random_turns
):
    sizes = {"signal": [], "loss": []}

    def signal(inputs, agreed):
        sizes["signal"].append(len(inputs["completion_ids"]))
        return with_signal(inputs, agreed)

    def columns(inputs):
        sizes["loss"].append(len(inputs["completion_ids"]))
        return trimmed(inputs)

    monkeypatch.setattr(trainer_module, "with_signal", signal)
    monkeypatch.setattr(trainer_module, "trimmed", columns)
    model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
    args = config(
        run_dir=str(tmp_path),
        max_steps=1,
        num_generations=2,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
    )
    held_out = problem_dataset(problems[:4], build_prompts(args))
    train(
        model,
        tiny_tokenizer,
        problems,
        args,
        sandbox=sandbox,
        verifier=Passes(lambda text: False),
        eval_dataset=held_out,
    )
    trained, evaluated = sizes["loss"][: len(sizes["signal"])], sizes["loss"][len(sizes["signal"]) :]
    assert set(trained) == {1}
    assert set(evaluated) == {4}
