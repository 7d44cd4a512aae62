"""What a run leaves beside metrics: every rollout, tables of completions, the model's card."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml
from judge import Passes, ended
from transformers import TrainerCallback

from gtpo.errors import RecordError
from gtpo.rollout import build_prompts
from gtpo.run_directory import RunFiles, rollouts_path
from gtpo.training import trainer as trainer_module
from gtpo.training.data import problem_dataset
from gtpo.training.run import train
from gtpo.training.serialize import recorded_groups
from gtpo.training.trainer import GTPOTrainer


@pytest.fixture
def run(small_model, tiny_tokenizer, problems, sandbox, config, random_turns):
    def make(options=(), **changes):
        return train(small_model, tiny_tokenizer, problems, config(**changes), sandbox=sandbox, **dict(options))

    return make


def test_a_step_with_several_generations_records_the_rollouts_of_all_of_them(run):
    result = run(max_steps=2, gradient_accumulation_steps=2, steps_per_generation=1)
    for step in (1, 2):
        rows = RunFiles(result.run_dir).rollouts(step)
        assert len(rows) == 16
        assert [row["rollout"] for row in rows] == list(range(16))
        assert sorted({row["group"] for row in rows}) == [0, 1, 2, 3]
        for row in rows:
            assert {rows[int(place)]["group"] for place in row["similarities"]} <= {row["group"]}


@pytest.mark.parametrize(
    ("limit", "kept"), [(0, {0, 1, 2}), (1, {0}), (10, {0}), (29, {0}), (30, {0, 1}), (59, {0, 1}), (60, {0, 1, 2})]
)
def test_whole_groups_are_recorded_up_to_a_number_of_tokens_and_always_one(limit, kept):
    assert recorded_groups([0, 0, 1, 1, 2], [5, 5, 10, 10, 30], limit) == kept


def test_a_bounded_number_of_rollouts_is_recorded_compressed(run):
    result = run(max_steps=1, record_max_tokens=1)
    rows = RunFiles(result.run_dir).rollouts(1)
    assert {row["group"] for row in rows} == {0}
    assert len(rows) == 4
    assert rollouts_path(result.run_dir, 1).suffix == ".gz"


def test_nothing_is_described_that_is_not_recorded(
    tmp_path, small_model, tiny_tokenizer, problems, sandbox, config, random_turns, monkeypatch
):
    def described(*args):
        raise AssertionError("rows were built for nobody")

    monkeypatch.setattr(trainer_module, "rollout_rows", described)
    args = config(max_steps=1)
    dataset = problem_dataset(problems, build_prompts(args))
    options = {"processing_class": tiny_tokenizer, "sandbox": sandbox, "recorder": False}
    GTPOTrainer(small_model, args=args, train_dataset=dataset, **options).train()
    with pytest.raises(AssertionError, match="for nobody"):  # the control: with a recorder they are
        train(
            small_model, tiny_tokenizer, problems, config(max_steps=1, run_dir=str(tmp_path / "other")), sandbox=sandbox
        )


def test_the_table_of_completions_has_the_advantages_that_are_used_and_each_turns_credit(run):
    result = run(
        {"verifier": Passes(ended)}, max_steps=1, log_completions=True, num_completions_to_print=1, preset="paper"
    )
    table = pd.read_parquet(next((result.run_dir / "checkpoints" / "completions").glob("*.parquet")))
    rows = RunFiles(result.run_dir).rollouts(1)
    assert any(len({turn["advantage"] for turn in row["turns"]}) > 1 for row in rows), "the test would show nothing"
    for row, (_, shown) in zip(rows, table.iterrows(), strict=True):
        weights = [turn["tokens"] for turn in row["turns"]]
        mean = sum(turn["advantage"] * n for turn, n in zip(row["turns"], weights, strict=True)) / sum(weights)
        assert shown["advantage"] == pytest.approx(mean, abs=1e-5)
        assert shown["turn_advantages"] == ", ".join(f"{turn['advantage']:.2f}" for turn in row["turns"])
        assert shown["turn_rewards"] == ", ".join(f"{turn['reward']:.2f}" for turn in row["turns"])
        assert len(shown["turn_returns"].split(", ")) == len(row["turns"])


def test_the_model_card_says_what_the_model_is(run):
    result = run(max_steps=2, algorithm="gtpo", learning_rate=2e-3)
    text = (result.model_dir / "README.md").read_text()
    data = yaml.safe_load(text.split("---")[1])
    assert {"gtpo", "trl"} <= set(data["tags"])
    assert data["library_name"] == "transformers"
    assert "base_model" not in data, "a model that was made on the spot has none"
    for said in (
        "2511.14846",
        "Group Turn Policy Optimization",
        "| `gamma` | `0.9` |",
        "| `learning_rate` | `0.002` |",
    ):
        assert said in text
    assert "None" not in text.replace("`None`", "")
    assert "| pass rate |" in text
    assert (GTPOTrainer._name, GTPOTrainer._paper["id"]) == ("GTPO", "2511.14846")


def test_callbacks_of_the_users_own_are_called(run):
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, *args, **kwargs):
            self.steps += 1

    count = Count()
    assert run({"callbacks": [count]}, max_steps=2).steps == count.steps == 2


def test_a_directory_that_can_not_be_read_as_rollouts_is_named(run):
    result = run(max_steps=1)
    rollouts_path(result.run_dir, 1).write_bytes(b"not gzip")
    from gtpo.errors import DataError

    with pytest.raises((DataError, RecordError), match=r"step_000001\.jsonl\.gz: can't be read"):
        RunFiles(result.run_dir).rollouts(1)
