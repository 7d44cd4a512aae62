"""Groups of a batch: those of one reward are replaced, and what is drawn does not depend on which were fast."""

from __future__ import annotations

import asyncio
import random

import pytest
from datasets import Dataset

from gtpo.errors import ConfigError
from gtpo.rollout import ChatEncoder, RolloutEngine, get_format
from gtpo.rollout.backends import Generation
from gtpo.run_directory import RunFiles
from gtpo.tasks.problems import Problem
from gtpo.training.groups import Counts, Draw, GroupRollouts, Spread
from gtpo.training.metrics import resample_metrics
from gtpo.training.run import train
from gtpo.training.trainer import GTPOTrainer

ROLLOUTS = 3


class Delays:
    """Answers with a number after a random time."""

    max_context = 4096

    def __init__(self, tokenizer, seed):
        self.tokenizer, self.rng, self.requests = tokenizer, random.Random(seed), []

    def serve(self, rollouts, **options):
        return self

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def generate(self, request):
        self.requests.append(request.rollout)
        await asyncio.sleep(self.rng.random() / 50)
        return Generation((*self.tokenizer.encode(f"\\boxed{{{request.rollout}}}"), self.tokenizer.eos_token_id))

    def finish(self, rollout):
        pass


class NeverCalled:
    async def run(self, code, **options):
        raise AssertionError("nothing calls it")


def draw(index):
    return Draw(tuple({"prompt": [{"role": "user", "content": f"problem {index}"}]} for _ in range(ROLLOUTS)), index)


def run(tokenizer, *, own, spare, teaches, seed=0):
    engine = RolloutEngine(ChatEncoder(tokenizer, get_format("fenced")), NeverCalled())
    groups = []

    def spread(group):
        return Spread(group.draw.index in teaches, ROLLOUTS, 1)

    rolling = GroupRollouts(engine, lambda row: row["prompt"], spread)
    counts = asyncio.run(
        rolling.run(
            Delays(tokenizer, seed),
            [draw(index) for index in own],
            iter([draw(index) for index in spare]),
            weights_step=7,
            seed=0,
            progress=lambda *_: None,
            on_group=groups.append,
        )
    )
    return sorted(groups, key=lambda group: group.number), counts


def indices(groups):
    return [group.draw.index for group in groups]


def test_groups_of_one_reward_are_replaced_until_the_batch_is_full(tiny_tokenizer):
    groups, counts = run(tiny_tokenizer, own=range(4), spare=range(4, 12), teaches={1, 5, 6, 8})
    assert indices(groups) == [1, 5, 6, 8]
    assert counts == Counts(drawn=9, uniform=5, replaced=5, scored=27, passed=9, tools_s=counts.tools_s)
    assert {group.weights_step for group in groups} == {7}


def test_a_batch_that_cannot_be_filled_keeps_its_first_uniform_groups(tiny_tokenizer):
    groups, counts = run(tiny_tokenizer, own=range(4), spare=range(4, 8), teaches={6})
    assert indices(groups) == [0, 1, 2, 6]
    assert (counts.drawn, counts.uniform, counts.replaced) == (8, 7, 4)


@pytest.mark.parametrize("teaches", [{1, 5, 6, 8}, {0, 1, 2, 3}, {11}, {2, 3, 7}])
def test_what_a_batch_holds_does_not_depend_on_which_rollouts_were_fast(tiny_tokenizer, teaches):
    found = [run(tiny_tokenizer, own=range(4), spare=range(4, 12), teaches=teaches, seed=seed) for seed in range(4)]
    assert len({tuple(indices(groups)) for groups, _ in found}) == 1
    assert len({counts.drawn for _, counts in found}) == 1
    texts = {tuple(t.answer_text for group in groups for t in group.trajectories) for groups, _ in found}
    assert len(texts) == 1, "the same numbers of rollouts, so the same streams of random numbers"


def test_figures_add_up_over_processes():
    parts = [Counts(drawn=6, uniform=3, replaced=2, scored=40, passed=10), Counts(drawn=4, uniform=1, scored=40)]
    assert resample_metrics(parts) == {
        "resample/drawn_per_group": 10 / 8,
        "resample/frac_uniform": 0.4,
        "resample/pass_rate": 0.125,
    }
    assert resample_metrics([Counts()]) == {}


@pytest.fixture
def uneven(random_turns):
    """Problems of which only some can be answered, by answers that are right or wrong at random."""
    random_turns.turns = ("```python\n1+1\n```", "\\boxed{2}", "\\boxed{3}")
    return [Problem(id=f"p/{i}", question=f"q{i}", answer="2" if i % 3 == 0 else "9") for i in range(24)]


def trained(model, tokenizer, problems, args, **options):
    train(model, tokenizer, problems, args, **options)
    run = RunFiles(args.run_dir)
    return [run.rollouts(step) for step in run.steps()], run.metrics()


@pytest.mark.parametrize("algorithm", ["gtpo", "grpo"])
def test_a_batch_is_filled_with_groups_that_have_a_spread(uneven, small_model, tiny_tokenizer, config, algorithm):
    args = config(resample_uniform=6, algorithm=algorithm, num_generations=4)
    records, logs = trained(small_model, tiny_tokenizer, uneven, args)
    for rows in records:
        for group in {row["group"] for row in rows}:
            what = "outcome_reward" if algorithm == "grpo" else "passed"
            assert len({row[what] for row in rows if row["group"] == group}) == 2
            assert len({row["problem_id"] for row in rows if row["group"] == group}) == 1
    assert any(log["resample/drawn_per_group"] > 1 for log in logs)
    assert all(0 < log["resample/pass_rate"] < 1 for log in logs)


def test_without_it_uniform_groups_stay(uneven, small_model, tiny_tokenizer, config):
    records, logs = trained(small_model, tiny_tokenizer, uneven, config())
    assert any(not any(row["passed"] for row in rows) for rows in records) or any(
        log["groups/frac_all_failed"] for log in logs
    )
    assert not [name for log in logs for name in log if name.startswith("resample/")]


def test_own_reward_functions_decide_what_is_uniform(uneven, small_model, tiny_tokenizer, config):
    def level(completions, question, **_):
        return [float("2" in completion[-1]["content"]) for completion in completions]

    rows = [{"prompt": problem.question, "question": problem.question} for problem in uneven]
    args = config(resample_uniform=4)
    trainer = GTPOTrainer(
        small_model, level, args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer
    )
    trainer.train()
    for rows in (RunFiles(args.run_dir).rollouts(step) for step in RunFiles(args.run_dir).steps()):
        for group in {row["group"] for row in rows}:
            assert len({row["passed"] for row in rows if row["group"] == group}) == 2


def test_groups_that_are_spread_over_processes_are_refused(config):
    args = config(resample_uniform=2)
    args.per_device_train_batch_size = 6  # of two processes with 12 rollouts together, in groups of 4
    with pytest.raises(ConfigError, match=r"generation batch of 6 rollouts .* multiple of num_generations 4"):
        args._check_groups()


def test_a_data_set_that_is_streamed_is_refused(small_model, tiny_tokenizer, problems, config):
    stream = Dataset.from_list([{"prompt": p.question, "answer": p.answer} for p in problems]).to_iterable_dataset()
    with pytest.raises(ConfigError, match=r"resample_uniform: .*streamed"):
        GTPOTrainer(small_model, args=config(resample_uniform=2), train_dataset=stream, processing_class=tiny_tokenizer)
