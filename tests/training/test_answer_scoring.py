"""Gold answers scored by the policy in the place of each turn, and information gain as a turn reward made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, stdev

import pytest
import torch
from peft import LoraConfig

from gtpo.errors import ConfigError, RewardError
from gtpo.rollout import build_encoder, build_prompts
from gtpo.rollout.tool_spec import PYTHON
from gtpo.run_directory import RunFiles
from gtpo.tasks.problems import Problem
from gtpo.training.answer_scoring import AnswerScorer
from gtpo.training.data import problem_dataset
from gtpo.training.recorder import RunRecorder
from gtpo.training.trainer import GTPOTrainer
from gtpo.turn_rewards import information_gain
from gtpo.types import StopReason

CALL = "```python\n{}\n```"


@pytest.fixture
def encoder(tiny_tokenizer, config):
    return build_encoder(config(), tiny_tokenizer, [PYTHON])


@pytest.fixture
def scorer(encoder, config):
    return AnswerScorer(encoder, build_prompts(config()))


def rollout(encoder, question, *calls, answer="\\boxed{3}"):
    messages = [{"role": "user", "content": question}]
    for call, result in calls:
        messages += [{"role": "assistant", "content": CALL.format(call)}, {"role": "tool", "content": result}]
    return encoder.trace([*messages, {"role": "assistant", "content": answer}])


@pytest.fixture
def rollouts(encoder):
    """Of one to four turns."""
    calls = [("1+1", "2"), ("2*3", "6"), ("6*7", "42")]
    return [rollout(encoder, "1+1", *calls[:count]) for count in (2, 0, 3, 1)]


def gold(answer, *aliases, **fields):
    return Problem("p", "1+1", answer, extras={"aliases": list(aliases)} if aliases else {}, **fields)


def one_by_one(model, encoder, trajectory, answer):
    """A forward pass for each turn: the context up to there, and the answer behind it."""
    model.eval()
    frame = encoder.tokenizer.encode("\\boxed{")
    ids = encoder.tokenizer.encode(f"\\boxed{{{answer}")
    context, found = list(trajectory.prompt_ids), []
    for turn in trajectory.turns:
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *ids]], device=model.device)).logits[0].float()
        first = len(context) + len(frame)
        values = [logits[i - 1].log_softmax(-1)[token] for i, token in enumerate([*context, *ids]) if i >= first]
        found.append(float(sum(values) / len(values)))
        context += [*turn.token_ids, *(turn.observation.token_ids if turn.observation else ())]
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", [16_384, 100])
def test_one_pass_per_rollout_equals_one_pass_per_turn(
    small_model, encoder, scorer, rollouts, attention, tokens, monkeypatch
):
    monkeypatch.setattr("gtpo.training.answer_scoring._TOKENS", tokens)
    small_model.set_attn_implementation(attention)
    passes = []
    small_model.register_forward_pre_hook(lambda module, args: passes.append(1))
    found = scorer.logprobs(small_model.train(), rollouts, [gold("42")] * 4)
    assert small_model.training
    assert len(passes) <= len(rollouts)
    for trajectory, values in zip(rollouts, found, strict=True):
        assert values == pytest.approx(one_by_one(small_model, encoder, trajectory, "42"), abs=1e-5)
    assert len({round(value, 4) for value in found[2]}) == 4, "the control: places differ"


def test_a_model_that_keeps_more_than_keys_and_values_takes_a_pass_per_turn(
    small_model, encoder, scorer, rollouts, monkeypatch
):
    monkeypatch.setattr("gtpo.training.answer_scoring.attends_to_all", lambda model: False)
    masks = []
    hook = small_model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"].shape), with_kwargs=True
    )
    found = scorer.logprobs(small_model, rollouts, [gold("42")] * 4)
    hook.remove()
    assert [len(mask) for mask in masks] == [2], "rows and columns, as such models take them"
    assert masks[0][0] == 4, "the rollouts begin alike, so their places are four"
    for trajectory, values in zip(rollouts, found, strict=True):
        assert values == pytest.approx(one_by_one(small_model, encoder, trajectory, "42"), abs=1e-5)


def test_rollouts_without_a_call_are_scored_once_per_prompt(small_model, scorer, rollouts, encoder):
    rows = []
    small_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    other = rollout(encoder, "1+1", answer="\\boxed{4}")
    alone, same, longer = scorer.logprobs(small_model, [rollouts[1], other, rollouts[3]], [gold("42")] * 3)
    assert sum(rows) == 2
    assert alone == same
    assert longer[0] == pytest.approx(alone[0], abs=1e-5)


def test_what_comes_later_is_not_seen(small_model, encoder, scorer):
    one = rollout(encoder, "1+1", ("1+1", "2"), ("2*3", "6"), ("6*7", "42"))
    other = rollout(encoder, "1+1", ("1+1", "2"), ("2*3", "7"), ("9-5", "12"))
    first, second = scorer.logprobs(small_model, [one, other], [gold("42")] * 2)
    assert first[:2] == pytest.approx(second[:2], abs=1e-5)
    assert abs(first[2] - second[2]) > 1e-4
    assert abs(first[3] - second[3]) > 1e-4


def test_of_several_aliases_the_likeliest_counts_at_each_place(small_model, scorer, rollouts):
    names = ["42", "7", "a b"]
    each = [scorer.logprobs(small_model, rollouts[:1], [gold(name)])[0] for name in names]
    (found,) = scorer.logprobs(small_model, rollouts[:1], [gold("42", "7", "a b", "42", " ")])
    assert found == pytest.approx([max(values) for values in zip(*each, strict=True)], abs=1e-5)


def test_rollouts_without_an_answer_to_score_have_none(small_model, scorer, rollouts):
    failed = replace(rollouts[0], stop_reason=StopReason.TOOL_FAILURE)
    tests = Problem("p", "write f", "assert f(1)", domain="code")
    given = [gold(""), tests, gold("42"), gold("42")]
    found = scorer.logprobs(small_model, [*rollouts[:2], failed, rollouts[3]], given)
    assert found[:3] == [None, None, None]
    assert len(found[3]) == 2
    gains = information_gain([*rollouts[:2], failed, rollouts[2]], [None] * 3 + [[-1.0, -2.0, -2.5, -1.5]], [0] * 4)
    assert gains[:3] == [[0.0] * 3, [0.0], [0.0] * 3]
    assert [value > 0 for value in gains[3]] == [False, False, True, False]
    assert sum(gains[3]) == pytest.approx(0, abs=1e-9)


def test_where_the_answer_does_not_fit_the_number_before_stands_again(small_model, scorer, rollouts):
    (whole,) = scorer.logprobs(small_model, rollouts[2:3], [gold("42")])
    observed = rollouts[2].turns[1].observation
    places = len(rollouts[2].prompt_ids) + sum(
        len(turn.token_ids) + len(turn.observation.token_ids) for turn in rollouts[2].turns[:2]
    )
    assert observed
    small_model.config.max_position_embeddings = places
    (found,) = scorer.logprobs(small_model, rollouts[2:3], [gold("42")])
    assert found == pytest.approx([whole[0], whole[1], whole[1], whole[1]], abs=1e-5)
    small_model.config.max_position_embeddings = 3
    assert scorer.logprobs(small_model, rollouts[2:3], [gold("42")]) == [None]


def test_tokens_that_hold_a_part_of_the_answer_count_and_the_frame_does_not(scorer, encoder):
    (answer,) = scorer._answers(gold("42"), encoder.prompt_ids([{"role": "user", "content": "1+1"}]))
    assert [encoder.decode([i]) for i in answer.ids] == ["\\boxed{", "4", "2"]
    assert answer.counted == (False, True, True)
    strange = scorer._answer("\\boxed{", "4\u00e92")  # a character that the tokenizer does not know
    assert strange.counted == (False, True, True, True, True)


def test_a_prompt_that_opens_a_thought_has_it_closed_before_the_answer(scorer, encoder):
    opened = [*encoder.prompt_ids([{"role": "user", "content": "1+1"}]), *encoder.tokenizer.encode("<think>\n")]
    (answer,) = scorer._answers(gold("42"), opened)
    assert encoder.decode(answer.ids) == "</think>\n\n\\boxed{42"
    assert sum(answer.counted) == 2


def test_without_a_policy_that_scores_it_is_refused(rollouts):
    with pytest.raises(ConfigError, match="information_gain needs answer_logprobs"):
        information_gain(rollouts)


@pytest.fixture
def trainer_for(small_model, tiny_tokenizer, problems, sandbox, config, random_turns):
    def make(funcs, *, peft_config=None, **changes):
        args = config(turn_reward_funcs=funcs, **changes)
        return GTPOTrainer(
            small_model,
            args=args,
            train_dataset=problem_dataset(problems, build_prompts(args)),
            processing_class=tiny_tokenizer,
            sandbox=sandbox,
            recorder=RunRecorder(args.run_dir),
            peft_config=peft_config,
        )

    return make


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-6),
        ({"bf16": True}, 0.02),
        ({"peft_config": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)}, 1e-6),
    ],
)
def test_information_gain_is_scored_by_the_policy_of_the_step_logged_and_recorded(trainer_for, options, tolerance):
    trainer = trainer_for(
        ["information_gain"], turn_reward_weights=[0.5], gradient_checkpointing=True, max_steps=1, **options
    )
    expected = []

    def compare(trajectories, problems, group_size):
        columns = type(trainer)._scored_answers(trainer, trajectories, problems, group_size)
        policy = trainer.accelerator.unwrap_model(trainer.model)
        for trajectory, problem, values in zip(trajectories, problems, columns["answer_logprobs"], strict=True):
            training = policy.training
            slow = one_by_one(policy, trainer.engine.encoder, trajectory, problem.answer)
            policy.train(training)
            assert [math.exp(v) for v in values] == pytest.approx([math.exp(v) for v in slow], abs=tolerance)
            expected.append([math.exp(b) - math.exp(a) for a, b in pairwise(values)])
        assert columns["group_ids"] == [0] * 4 + [1] * 4
        return columns

    trainer._scored_answers = compare
    trainer.train()
    rows = RunFiles(trainer.args.run_dir).rollouts(1)
    for row, gains in zip(rows, expected, strict=True):
        group = [
            gain for other, ones in zip(rows, expected, strict=True) if other["group"] == row["group"] for gain in ones
        ]
        normalised = [0.5 * (gain - fmean(group)) / (stdev(group) + 1e-4) for gain in gains]
        recorded = [turn["turn_rewards"]["information_gain"] for turn in row["turns"]]
        assert recorded == pytest.approx([*normalised, 0.0], abs=1e-4)
        assert [turn["r_own"] for turn in row["turns"]] == pytest.approx(recorded, abs=1e-6)
    assert any(map(any, expected))
    line = trainer.state.log_history[0]
    assert line["turn_reward/information_gain"] == pytest.approx(0, abs=1e-4)
    assert line["time/scoring_s"] > 0


def test_nothing_is_scored_unless_a_function_asks_for_it(trainer_for, monkeypatch):
    monkeypatch.setattr(AnswerScorer, "logprobs", None)
    trainer_for(["execution_feedback"], max_steps=1).train()
    trainer = trainer_for(["information_gain"])
    with pytest.raises(TypeError):
        trainer.train()


def mine(trajectories, answer_logprobs, **columns):
    return [[float("nan")] * len(t.turns) for t in trajectories if answer_logprobs]


def test_a_function_of_ones_own_is_given_what_it_asks_for(trainer_for):
    with pytest.raises(RewardError, match="turn reward mine: rollout 0 got nan"):
        trainer_for([f"{__name__}:mine"]).train()
