"""Data sets as they come: published rows, streams, rows without an answer; and a trainer that records itself."""

from __future__ import annotations

import pytest
from datasets import Dataset
from judge import Passes, ended

from gtpo.cli import main
from gtpo.errors import ConfigError, DataError
from gtpo.report import load
from gtpo.rollout import build_prompts
from gtpo.run_directory import read_metrics
from gtpo.training.config import GTPOConfig
from gtpo.training.data import problem_dataset
from gtpo.training.recorder import RunRecorder
from gtpo.training.run import train
from gtpo.training.trainer import GTPOTrainer

GSM8K = [{"question": f"What is {i}+1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(12)]
DAPO = [
    {
        "prompt": [{"role": "user", "content": f"What is {i}+1?"}],
        "reward_model": {"ground_truth": str(i + 1), "style": "rule"},
        "data_source": "math_dapo",
    }
    for i in range(12)
]


@pytest.fixture
def trainer_for(small_model, tiny_tokenizer, sandbox, config, random_turns):
    def make(rows, reward_funcs=None, *, args=None, **changes):
        options = {name: changes.pop(name) for name in ("verifier", "recorder", "eval_dataset") if name in changes}
        dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
        args = args or config(**changes)
        return GTPOTrainer(
            small_model, reward_funcs, args, dataset, processing_class=tiny_tokenizer, sandbox=sandbox, **options
        )

    return make


@pytest.mark.parametrize("rows", [GSM8K, DAPO], ids=["gsm8k", "dapo"])
def test_published_rows_train_as_they_are(trainer_for, rows):
    trainer = trainer_for(rows, system_prompt="Be brief.", max_steps=1)
    trainer.train()
    for problem, row in zip(trainer._batch.problems, trainer._inputs, strict=True):
        assert problem.question.startswith("What is")
        assert problem.answer == str(int(problem.question.split()[2].split("+")[0]) + 1)
        assert row["prompt"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": problem.question},
        ]


def test_columns_reach_reward_functions_as_they_were(trainer_for):
    seen = {}

    def length(prompts, completions, answer, **columns):
        seen.update(prompts=prompts, answer=answer, **columns)
        return [float(len(turns)) for turns in completions]

    trainer_for(GSM8K, length, max_steps=1).train()
    assert all("####" in one for one in seen["answer"]), "not the answer that a verifier would read"
    assert {"question", "trainer_state"} <= set(seen)


def test_a_prompt_of_messages_stays_where_functions_score(trainer_for):
    trainer = trainer_for([{**row, "answer": None} for row in DAPO], lambda completions, **_: [1.0] * len(completions))
    assert trainer.train_dataset[0]["prompt"] == DAPO[0]["prompt"]


def test_further_fields_of_problems_are_columns_too(trainer_for, config, problems):
    from dataclasses import replace

    leveled = [replace(p, extras={"level": i} if i % 2 else {}) for i, p in enumerate(problems)]
    levels = []

    def easy(completions, level, id, extras, **columns):
        levels.extend(zip(id, level, strict=True))
        return [0.0 if one is None else 1.0 for one in level]

    trainer_for(problem_dataset(leveled, build_prompts(config())), easy, max_steps=1).train()
    assert levels
    assert all(level == (int(name[2:]) if int(name[2:]) % 2 else None) for name, level in levels)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stream_trains_in_whole_groups(trainer_for, shuffle):
    stream = Dataset.from_list(GSM8K).to_iterable_dataset()
    trainer = trainer_for(stream, verifier=Passes(ended), shuffle_dataset=shuffle)
    trainer.train()
    assert trainer.state.global_step == 2
    asked = [row["question"] for row in trainer._inputs]
    assert asked[:4] == asked[:1] * 4
    assert asked[4:] == asked[4:5] * 4
    if not shuffle:
        assert [asked[0], asked[4]] == ["What is 2+1?", "What is 3+1?"], "the second batch of two problems"


def test_a_stream_needs_max_steps(trainer_for):
    with pytest.raises(ValueError, match="max_steps"):
        trainer_for(Dataset.from_list(GSM8K).to_iterable_dataset(), max_steps=-1)


def test_rows_without_an_answer_are_for_reward_functions(trainer_for):
    rows = [{"prompt": f"{i}+1", "domain": ["odd"], "final_answer": i, "target": -i} for i in range(12)]
    trainer = trainer_for(rows, lambda completions, **_: [float(len(turns)) for turns in completions], max_steps=1)
    trainer.train()
    assert [p.answer for p in trainer._batch.problems] == [""] * 8


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "1+1", "label": "2"}, r"train_dataset:1: field 'answer': missing .*label.*give reward_funcs"),
        ({"prompt": "1+1", "answer": "2", "final_answer": "3"}, "the answer may be answer or final_answer"),
        ({"instruction": "1+1", "output": "2"}, "train_dataset:1: field"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_rows_that_can_not_be_verified_are_refused_before_training(trainer_for, row, fault, stream):
    dataset = Dataset.from_list([row] * 12)
    with pytest.raises(DataError, match=fault):
        trainer_for(dataset.to_iterable_dataset() if stream else dataset)


def test_an_eval_dataset_of_published_rows_is_evaluated(trainer_for):
    rows = Dataset.from_list(GSM8K)
    parts = {"first": rows.select(range(4)), "second": rows.select(range(4, 8))}
    trainer = trainer_for(rows, verifier=Passes(ended), eval_dataset=parts, per_device_eval_batch_size=4)
    trainer.evaluate()
    assert sum("eval_pass_rate" in row for row in trainer.state.log_history) == 2


def test_a_trainer_made_in_python_records_its_run_as_the_command_does(trainer_for, tmp_path):
    trainer = trainer_for(GSM8K, save_strategy="steps", save_steps=1)
    trainer.train()
    run = load(tmp_path / "run")
    assert sorted(run.metrics.index) == [1, 2]
    assert len(run.rollouts) == 16
    assert run.settings["gamma"] == 0.9
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0

    again = trainer_for(GSM8K)
    with pytest.raises(ConfigError, match=r"holds a run already.*GTPOConfig\(overwrite=True\)"):
        again.train()
    longer = trainer_for(GSM8K, max_steps=3)
    longer.train(resume_from_checkpoint=True, resume_with_changes=True)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3]
    from_first = trainer_for(GSM8K, max_steps=2)
    with pytest.raises(ConfigError, match=r"checkpoint-1' is not the newest whole checkpoint of the run \(.*-2\)"):
        from_first.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoints" / "checkpoint-1"))
    trainer_for(GSM8K, overwrite=True, max_steps=1).train()
    assert sorted(load(tmp_path / "run").metrics.index) == [1]


def test_its_files_are_those_of_the_command(trainer_for, tmp_path, small_model, tiny_tokenizer, problems, config):
    trainer_for(GSM8K, max_steps=1).train()
    options = {"engine": trainer_for(GSM8K, recorder=False).engine}
    train(small_model, tiny_tokenizer, problems, config(run_dir=str(tmp_path / "other"), max_steps=1), **options)
    names = [{path.name for path in (tmp_path / run).iterdir() if path.is_file()} for run in ("run", "other")]
    assert names[0] == names[1] == {"config.yaml", "metrics.jsonl"}
    first, other = (set(read_metrics(tmp_path / run)[0]) for run in ("run", "other"))
    assert "pass_rate" in first
    apart = {name.partition("/")[0] for name in first ^ other}
    assert apart <= {"clip_ratio", "entropy"}, "what TRL says of steps with an advantage alone"


def test_nothing_is_recorded_without_a_directory_or_on_request(trainer_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer_for(GSM8K, max_steps=1, recorder=False).train()
    unnamed = trainer_for(GSM8K, max_steps=1, run_dir=GTPOConfig.run_dir)
    unnamed.train()
    assert not list(tmp_path.rglob("metrics.jsonl"))
    given = RunRecorder(tmp_path / "own")
    trainer_for(GSM8K, max_steps=1, recorder=given).train()
    assert list((tmp_path / "own" / "rollouts").iterdir()), "the caller made it ready"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
