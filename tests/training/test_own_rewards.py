"""Rewards of the user's own: functions as in TRL, graded outcomes, turn rewards, function tools."""

from __future__ import annotations

import asyncio
import inspect
import math
import random

import pytest
import torch
from datasets import Dataset
from judge import Passes, ended
from trl import GRPOTrainer

import gtpo
from gtpo import functional as F
from gtpo.credit_assignment import CreditInputs, CreditSettings, compute_credit
from gtpo.errors import ConfigError, RewardError
from gtpo.reward_functions import call_all, guarded
from gtpo.rollout import FunctionTool, ToolResult, build_prompts
from gtpo.run_directory import RunFiles, read_metrics
from gtpo.training.data import problem_dataset
from gtpo.training.recorder import RunRecorder
from gtpo.training.run import train
from gtpo.training.trainer import GTPOTrainer
from gtpo.turn_rewards import execution_feedback, get_turn_reward, repeated_calls, weighted_turn_rewards
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn


@pytest.fixture
def trainer_for(small_model, tiny_tokenizer, problems, sandbox, config, random_turns):
    def make(reward_funcs=None, *, dataset=None, options=(), **changes):
        args = config(**changes)
        dataset = dataset or problem_dataset(problems, build_prompts(args))
        trainer = GTPOTrainer(
            small_model,
            reward_funcs,
            args,
            dataset,
            processing_class=tiny_tokenizer,
            sandbox=sandbox,
            **dict(options),
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # TRL sets it in its training loop
        return trainer

    return make


def score(trainer):
    torch.manual_seed(5)
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def test_the_two_names_are_the_librarys_and_cost_nothing_before_they_are_asked_for():
    assert (gtpo.GTPOTrainer, issubclass(gtpo.GTPOTrainer, GRPOTrainer)) == (GTPOTrainer, True)
    assert gtpo.GTPOConfig("out", bf16=False).run_dir == "out"
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        gtpo.Trainer  # noqa: B018


def says_two(completions, answer, **columns):
    """What the verifier says of these rollouts, which are right where their last turn is 2."""
    last = [messages[-1] for messages in completions]
    return [
        float(m["role"] == "assistant" and m["content"] == f"\\boxed{{{a}}}") for m, a in zip(last, answer, strict=True)
    ]


@pytest.mark.parametrize("algorithm", ["gtpo", "grpo"])
def test_functions_that_say_what_the_verifier_says_come_to_the_same_credit(trainer_for, random_turns, algorithm):
    verified = score(trainer_for(algorithm=algorithm))
    random_turns.batches = 0
    trainer = trainer_for([says_two], algorithm=algorithm)
    scored = score(trainer)
    assert torch.equal(scored["completion_ids"], verified["completion_ids"])
    assert torch.equal(scored["advantages"], verified["advantages"])
    assert scored["advantages"].any()
    assert trainer._metrics["train"]["rewards/says_two/mean"] == trainer._metrics["train"]["pass_rate"]


def test_rewards_are_weighted_graded_and_sync_or_async(trainer_for, random_turns):
    random_turns.turns = ("\\boxed{2}", "\\boxed{3}")
    seen = {}

    def length(prompts, completions, completion_ids, question, trainer_state, **columns):
        seen.update(prompts=prompts, question=question, columns=columns)
        return [len(ids) / 100 for ids in completion_ids]

    async def brevity(completions, **columns):
        await asyncio.sleep(0)
        return [None if "3" in messages[-1]["content"] else 0.5 for messages in completions]

    trainer = trainer_for([length, brevity, "auto"], reward_weights=[2.0, 1.0, 0.25], success_threshold=0.5)
    score(trainer)
    batch = trainer._batch
    for trajectory, outcome, item, verdict in zip(
        batch.trajectories, batch.credit.accuracy_B.tolist(), batch.inputs, batch.verdicts, strict=True
    ):
        right = "2" in trajectory.turns[-1].text
        assert verdict.passed == right
        wanted = 2 * len(trajectory.completion_ids) / 100 + (0.5 + 0.25 if right else 0)
        assert outcome == pytest.approx(wanted, abs=1e-6)
        assert item.passed == (wanted >= 0.5)
    assert {"id", "answer", "domain"} <= set(seen["columns"])
    assert seen["question"] == [row["question"] for row in trainer._inputs]


def test_a_rollout_that_no_function_applies_to_is_dropped(trainer_for, random_turns):
    trainer = trainer_for([lambda completions, **_: [None if i % 2 else 1.0 for i in range(len(completions))]])
    output = score(trainer)
    in_loss = (output["completion_mask"] * output["tool_mask"]).any(dim=1)
    assert in_loss.tolist() == [True, False] * 4
    assert [item.masked for item in trainer._batch.inputs] == [False, True] * 4


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ([1.0], r"reward function bad: got 1 rewards for 8 rollouts"),
        (None, "reward function bad: got a NoneType rewards"),
        ([math.nan] * 8, "reward function bad: rollout 0 got nan, which is not a finite number"),
        (["high"] * 8, "reward function bad: rollout 0 got 'high'"),
    ],
)
def test_what_is_no_reward_is_refused_with_the_functions_name(trainer_for, given, fault):
    def bad(completions, **columns):
        return given

    with pytest.raises(RewardError, match=fault):
        score(trainer_for([bad]))


def test_a_data_set_with_a_prompt_and_any_other_columns_trains(trainer_for, random_turns):
    rows = [{"prompt": f"{i}+1", "level": i} for i in range(12)]
    levels = []

    def easy(completions, level, **columns):
        levels.extend(level)
        return [float(one < 6) for one in level]

    trainer = trainer_for([easy], dataset=Dataset.from_list(rows))
    score(trainer)
    assert [p.question for p in trainer._batch.problems] == [row["prompt"] for row in trainer._inputs]
    assert levels == [row["level"] for row in trainer._inputs]


def test_answers_may_be_lists_of_aliases(trainer_for, random_turns):
    random_turns.turns = ("\\boxed{two}",)
    rows = [{"prompt": "1+1", "answer": ["2", "two"], "domain": "commonsense"} for _ in range(12)]
    trainer = trainer_for(dataset=Dataset.from_list(rows))
    score(trainer)
    assert all(verdict.passed for verdict in trainer._batch.verdicts)


class Half(Passes):
    def verify_many(self, texts, problems):
        from gtpo.tasks.verifiers import Verdict

        return [Verdict(False, 0.5 if text else 0.0, "half") for text in texts]


@pytest.mark.parametrize(("graded", "outcome"), [(False, 0.0), (True, 0.5)])
def test_a_verifiers_score_is_rewarded_on_request(trainer_for, random_turns, graded, outcome):
    random_turns.turns = ("\\boxed{2}",)
    trainer = trainer_for(graded=graded, options={"verifier": Half(ended)})
    score(trainer)
    assert set(trainer._batch.credit.accuracy_B.tolist()) == {outcome}
    assert not any(item.passed for item in trainer._batch.inputs)


def turn(text, *statuses, calls=()):
    seen = Observation("", tuple(statuses), (1,)) if statuses else None
    return Turn(text, (1, 2), tuple(calls), seen)


ROLLOUT = Trajectory(
    (1,),
    (
        turn("a", "ok", "error", calls=[ToolCall("x"), ToolCall("y")]),
        turn("b", "invalid", calls=[InvalidCall("open")]),
        turn("c", "ok", calls=[ToolCall(" x ")]),
        turn("d"),
    ),
    StopReason.ANSWER,
)


def test_turn_rewards_that_ship():
    assert execution_feedback([ROLLOUT]) == [[0.5, 0.0, 1.0, 0.0]]
    assert repeated_calls([ROLLOUT]) == [[0.0, 0.0, -1.0, 0.0]]
    assert get_turn_reward("repeated_calls") is repeated_calls
    with pytest.raises(ConfigError, match="no 'nothing'; there are: execution_feedback, repeated_calls"):
        get_turn_reward("nothing")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ([[0.0] * 3], "rollout 0 has 4 turns"),
        ([], "one list per rollout"),
        ([[0.0, math.inf, 0.0, 0.0]], "rollout 0 got inf"),
        ([[0.0, "x", 0.0, 0.0]], "rollout 0 got 'x'"),
    ],
)
def test_what_is_no_turn_reward_is_refused_with_the_functions_name(given, fault):
    def mine(trajectories, **columns):
        return given

    with pytest.raises(RewardError, match=f"turn reward mine: .*{fault}"):
        weighted_turn_rewards([mine], [1.0], [ROLLOUT], {})


def loop_credit(inputs, settings, shaped):
    """Turn rewards and returns of graded rollouts, turn by turn."""
    rewards, returns = [], []
    for item, extra in zip(inputs, shaped, strict=True):
        row = []
        for j, invalid in enumerate(item.invalid_turns):
            last = j == len(item.invalid_turns) - 1
            value = 0.0
            if last:
                value = item.outcome if item.passed or not extra else max(item.outcome, extra)
            if invalid or (j == 0 and not item.has_call):
                value += settings.format_penalty
            row.append(value + sum(own[j] for own in item.turn_rewards.values()))
        rewards.append(row)
        returns.append([sum(settings.gamma ** (m - j) * row[m] for m in range(j, len(row))) for j in range(len(row))])
    return rewards, returns


class Alike:
    def matrix(self, texts):
        return torch.full((len(texts), len(texts)), 0.6)


@pytest.mark.parametrize("seed", range(20))
def test_graded_outcomes_and_turn_rewards_match_a_loop_over_random_batches(seed):
    rng = random.Random(seed)
    settings = CreditSettings(gamma=rng.choice([0.5, 0.9, 1.0]))
    inputs = []
    for i in range(24):
        turns = rng.randint(1, 5)
        outcome = rng.choice([0.0, 0.2, 0.7, 1.0, 1.5])
        own = {name: tuple(rng.uniform(-1, 1) for _ in range(turns)) for name in ("a", "b")}
        invalid = tuple(rng.random() < 0.2 for _ in range(turns))
        inputs.append(CreditInputs(i // 6, outcome >= 0.7, invalid, rng.random() < 0.9, "x", False, outcome, own))
    credit = compute_credit(inputs, Alike(), settings)
    rewards, returns = loop_credit(inputs, settings, credit.shaped_B.tolist())
    for i, item in enumerate(inputs):
        count = len(item.invalid_turns)
        assert credit.rewards_B_K[i, :count].tolist() == pytest.approx(rewards[i], abs=1e-5)
        assert credit.returns_B_K[i, :count].tolist() == pytest.approx(returns[i], abs=1e-5)


def test_turn_rewards_of_zero_and_outcomes_of_the_verdict_change_nothing():
    plain = [CreditInputs(0, i % 2 == 0, (False, i == 1), True, "x") for i in range(4)]
    same = [
        CreditInputs(0, i % 2 == 0, (False, i == 1), True, "x", False, float(i % 2 == 0), {"mine": (0.0, 0.0)})
        for i in range(4)
    ]
    for algorithm in ("gtpo", "grpo", "mt_grpo", "turn_loo"):
        one = compute_credit(plain, Alike(), CreditSettings(), algorithm=algorithm)
        other = compute_credit(same, Alike(), CreditSettings(), algorithm=algorithm)
        assert torch.equal(one.advantages_B_K, other.advantages_B_K)


def test_in_groups_of_one_outcome_only_turn_rewards_of_ones_own_are_left_at_the_size_of_their_weight():
    returns = torch.tensor([[0.5, 0.0], [0.2, 0.1]], dtype=torch.float64)
    own = torch.tensor([[0.3, 0.0], [-0.1, 0.0]], dtype=torch.float64)
    counts, groups, failed = torch.tensor([2, 2]), torch.zeros(2).long(), torch.zeros(2).bool()
    silenced = F.group_advantages(returns, counts, groups, passed_B=failed, own_returns_B_K=own)
    torch.testing.assert_close(silenced, torch.tensor([[0.2, -0.1], [-0.2, -0.1]], dtype=torch.float64))
    tenth = F.group_advantages(returns, counts, groups, passed_B=failed, own_returns_B_K=own / 10)
    torch.testing.assert_close(tenth, silenced / 10)
    assert not F.group_advantages(returns, counts, groups, passed_B=failed).any(), "the control: without any, nothing"
    mixed = torch.tensor([True, False])
    assert F.group_advantages(returns, counts, groups, passed_B=mixed, own_returns_B_K=own)[0, 0] > 0.6, (
        "scaled elsewhere"
    )


def test_turn_rewards_are_logged_recorded_and_refused_where_they_would_have_no_effect(
    small_model, tiny_tokenizer, problems, sandbox, config, random_turns
):
    args = config(turn_reward_funcs=["execution_feedback", "repeated_calls"], turn_reward_weights=[0.5, 0.1])
    result = train(small_model, tiny_tokenizer, problems, args, sandbox=sandbox)
    lines, rows = read_metrics(result.run_dir), RunFiles(result.run_dir).rollouts(1)
    mean = sum(turn["turn_rewards"]["execution_feedback"] for row in rows for turn in row["turns"]) / len(rows)
    assert lines[0]["turn_reward/execution_feedback"] == pytest.approx(mean, abs=1e-6)
    assert mean > 0
    for row in rows:
        for turn in row["turns"]:
            assert turn["r_own"] == pytest.approx(sum(turn["turn_rewards"].values()), abs=1e-6)
            parts = turn["r_acc"] + turn["r_shaped"] + turn["r_format"] + turn["r_own"]
            assert turn["reward"] == pytest.approx(parts, abs=1e-6)
    with pytest.raises(ConfigError, match="algorithm grpo has one reward per rollout"):
        GTPOTrainer(
            small_model,
            args=config(algorithm="grpo", turn_reward_funcs=["repeated_calls"]),
            train_dataset=problem_dataset(problems, build_prompts(args)),
            processing_class=tiny_tokenizer,
        )


def shares(total, **_):
    return [1 / total]


async def late_shares(total, **_):
    return shares(total)


@pytest.mark.parametrize("function", [shares, late_shares])
def test_what_a_reward_function_raises_is_told_with_its_name_and_line(function):
    line = inspect.getsourcelines(shares)[1] + 1
    said = rf"^reward function {function.__name__} raised ZeroDivisionError: division by zero \(.*\.py, line {line}\)$"
    with pytest.raises(RewardError, match=said) as raised:
        call_all([guarded(function)], [], [], {"total": 0})
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_what_a_turn_reward_raises_is_told_likewise():
    with pytest.raises(RewardError, match=r"^turn reward <lambda> raised KeyError: 'x' \(.*\.py, line \d+\)$"):
        weighted_turn_rewards([lambda trajectories, **_: {}["x"]], [1.0], [], {})


def test_to_reward_functions_any_final_text_is_an_answer(trainer_for, random_turns):
    random_turns.turns = ("no idea", "seven")
    trainer = trainer_for([lambda completions, **_: [0.5] * len(completions)])
    score(trainer)
    assert all(trainer._batch.has_answer)
    assert {verdict.extracted for verdict in trainer._batch.verdicts} == {None}


def lookup(name: str) -> str:
    """Look a name up.

    Args:
        name: whose number.
    """
    return {"ann": "7"}[name]


async def submit(answer: str) -> ToolResult:
    """Give the final answer.

    Args:
        answer: the answer.
    """
    return ToolResult(f"\\boxed{{{answer}}}", final=True)


def test_functions_are_tools_sync_or_async_and_may_end_the_rollout(trainer_for, random_turns):
    random_turns.turns = ("```submit\n2\n```", "```submit\n3\n```", "```lookup\nann\n```", "```lookup\nbob\n```")
    trainer = trainer_for(options={"tools": [lookup, submit]})
    score(trainer)
    trajectories = trainer._batch.trajectories
    reasons = {trajectory.stop_reason for trajectory in trajectories}
    assert StopReason.FINAL in reasons
    for trajectory, verdict in zip(trajectories, trainer._batch.verdicts, strict=True):
        if trajectory.stop_reason is StopReason.FINAL:
            assert verdict.passed == ("submit\n2" in trajectory.turns[-1].text)
        for turn in trajectory.turns[:-1]:
            wanted = "7" if "ann" in turn.text else "KeyError: 'bob'"
            assert turn.observation.text == wanted


def test_a_function_that_blocks_is_cut_at_its_limit():
    import time

    def slow(seconds: int) -> str:
        """Wait.

        Args:
            seconds: how long.
        """
        time.sleep(seconds)
        return "done"

    start = time.monotonic()
    tool = FunctionTool(slow, timeout_s=0.2)

    async def main():
        return await tool.run(ToolCall("", "slow", {"seconds": 5}))

    loop = asyncio.new_event_loop()
    result = loop.run_until_complete(main())
    assert (result.status, result.text) == ("timeout", "TimeoutError: no result within 0.2 s")
    assert time.monotonic() - start < 4
    loop.close()


def test_a_function_without_a_docstring_is_refused_with_what_to_add():
    def bare(x: int) -> int:
        return x

    with pytest.raises(ConfigError, match=r"the function 'bare' can't be a tool.*docstring"):
        FunctionTool(bare)


def test_what_a_function_returns_is_told_as_json_if_it_is_no_text():
    def numbers(name: str) -> list:
        """Give numbers.

        Args:
            name: of the list.
        """
        return [1, {name: "ä"}]

    assert asyncio.run(FunctionTool(numbers).run(ToolCall("", "numbers", {"name": "a"}))).text == '[1, {"a": "ä"}]'


def test_a_recorder_writes_what_a_trainer_of_its_own_makes(trainer_for, tmp_path, random_turns):
    trainer = trainer_for([says_two], options={"recorder": RunRecorder(tmp_path / "run")}, max_steps=1)
    trainer.train()
    assert {row["passed"] for row in RunFiles(tmp_path / "run").rollouts(1)} <= {True, False}


def test_a_verifier_given_as_a_reward_function_is_refused_with_what_it_is():
    def verdict(answer_text, problem):
        return 1.0

    with pytest.raises(ConfigError, match=r"verdict\(answer_text, problem\) can't be called.*give it as --verifier"):
        guarded(verdict)
