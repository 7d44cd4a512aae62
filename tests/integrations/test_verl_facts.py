"""What travels through verl, without verl: the credit made of it is the trainer's, with rewards of one's own too."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from quiet import QUIET

from gtpo import functional as F
from gtpo.credit_assignment import CreditInputs, compute_credit
from gtpo.errors import ConfigError
from gtpo.failures import Failure
from gtpo.integrations.verl.facts import Known, facts_of, on_last_tokens, token_advantages, told, turn_ids_of
from gtpo.integrations.verl.rows import reward_columns
from gtpo.reward_functions import completion_messages
from gtpo.scoring import Scored, Scorer
from gtpo.similarity import LexicalSimilarity
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict
from gtpo.training.batch import BatchScorer
from gtpo.training.config import GTPOConfig
from gtpo.turn_rewards import execution_feedback
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn

GROUP = 4


def made_up(rng):
    turns = []
    for _ in range(rng.randint(1, 4)):
        call = rng.choice([ToolCall(f"print({rng.randint(0, 9)})"), InvalidCall("bad")])
        seen = Observation("x", (rng.choice(["ok", "error"]),), (7,) * rng.randint(1, 3))
        turns.append(Turn("a call", tuple(range(rng.randint(1, 5))), (call,), seen))
    turns.append(Turn(str(rng.choice([0, 0.25, 0.5, 1])), tuple(range(rng.randint(1, 5)))))
    return Trajectory((1, 2), tuple(turns), rng.choice([StopReason.ANSWER] * 9 + [StopReason.TOOL_FAILURE]))


def graded(completions, **columns):
    return [float(turns[-1]["content"]) for turns in completions]


def numbered(trajectories, **columns):
    """Another number for each turn, as the sampled tokens have it."""
    return [[0.1 * j - 0.05 * len(turn.token_ids) for j, turn in enumerate(t.turns)] for t in trajectories]


def nothing(trajectories, **columns):
    return [[0.0] * len(t.turns) for t in trajectories]


def of_trainer(tmp_path, trajectories, scorer, **options):
    args = GTPOConfig(run_dir=str(tmp_path / "run"), num_generations=GROUP, **QUIET, **options)
    problems = tuple(Problem(str(i // GROUP), "q", "1") for i in range(len(trajectories)))

    def rewards(verdicts):
        return [[value] for value in graded([completion_messages(trajectory) for trajectory in trajectories])]

    batch = BatchScorer(args, scorer, LexicalSimilarity())
    scored = batch.score(tuple(trajectories), problems, GROUP, lambda _: None, rewards=rewards)
    return args.credit_settings(), scored.credit


def of_plugin(trajectories, scorer, settings, *, knows_own=True):
    """Advantages and returns of tokens, as the trainer and the estimator under verl make them."""
    said, masks = [], []
    for trajectory in trajectories:
        (scored,) = scorer.score([trajectory], [Problem("0", "q", "1")], prompts=["q"])
        said.append(json.loads(json.dumps(told(trajectory, scored))))
        masks.append(torch.tensor(trajectory.mask))
    facts = facts_of([f"group {i // GROUP}" for i in range(len(trajectories))], said)
    credit = compute_credit(facts, LexicalSimilarity(), settings)
    ids = [turn_ids_of(m, None if f.masked else row) for m, f, row in zip(masks, facts, said, strict=True)]
    rewards = [on_last_tokens(row_K, row) for row_K, row in zip(credit.rewards_B_K, ids, strict=True)]
    ids_B_T = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)
    rewards_B_T = torch.nn.utils.rnn.pad_sequence(rewards, batch_first=True)
    known = Known(ids_B_T, torch.tensor([fact.passed for fact in facts]), credit.own_B_K if knows_own else None)
    groups = torch.tensor([fact.group_id for fact in facts])
    return ids_B_T, *token_advantages(rewards_B_T, (ids_B_T >= 0).long(), groups, settings, known)


def rewards_of_ones_own(*turn_rewards):
    return Scorer(
        None,
        reward_funcs=[graded],
        success_threshold=0.5,
        turn_reward_funcs=turn_rewards,
        turn_reward_weights=[0.5] * len(turn_rewards),
    )


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5, "preset": "paper"}, {"normalize_over": "same_turn"}])
def test_the_plugin_gives_the_credit_of_the_trainer(tmp_path, options):
    rng = random.Random(0)
    for _ in range(5):
        trajectories = [made_up(rng) for _ in range(6 * GROUP)]
        scorer = rewards_of_ones_own(numbered, execution_feedback)
        settings, credit = of_trainer(tmp_path, trajectories, scorer, success_threshold=0.5, **options)
        ids, advantages, returns = of_plugin(trajectories, scorer, settings)
        assert advantages.any()
        for values, expected in ((advantages, credit.advantages_B_K), (returns, credit.returns_B_K)):
            wanted = F.spread_to_tokens(expected, ids)
            torch.testing.assert_close(values, wanted, atol=1e-5, rtol=0)


def test_in_groups_of_one_outcome_turn_rewards_are_left(tmp_path):
    rng = random.Random(1)
    trajectories = [made_up(rng) for _ in range(8 * GROUP)]
    failed = [t for t in trajectories if not t.stop_reason.is_failure and float(t.turns[-1].text) < 0.5][: 2 * GROUP]
    scorer = rewards_of_ones_own(numbered)
    settings, credit = of_trainer(tmp_path, failed, scorer, success_threshold=0.5)
    ids, advantages, _ = of_plugin(failed, scorer, settings)
    torch.testing.assert_close(advantages, F.spread_to_tokens(credit.advantages_B_K, ids), atol=1e-5, rtol=0)
    assert advantages.any()
    _, unheard, _ = of_plugin(failed, scorer, settings, knows_own=False)
    assert not unheard.any(), "without them the estimator would silence these groups"


def test_turn_rewards_of_zero_change_nothing(tmp_path):
    rng = random.Random(2)
    trajectories = [made_up(rng) for _ in range(4 * GROUP)]
    settings, _ = of_trainer(tmp_path, trajectories, rewards_of_ones_own())
    _, *plain = of_plugin(trajectories, rewards_of_ones_own(), settings)
    _, *zero = of_plugin(trajectories, rewards_of_ones_own(nothing), settings)
    _, *other = of_plugin(trajectories, rewards_of_ones_own(numbered), settings)
    assert all(map(torch.equal, plain, zero))
    assert not torch.equal(plain[0], other[0])


class ByText:
    """Passes what says 1."""

    def verify_many(self, texts, problems):
        return [Verdict(text == "1", float(text == "1"), "") for text in texts]

    def has_answer(self, text, problem):
        return True


def test_the_verdict_alone_gives_the_credit_of_who_passed(tmp_path):
    rng = random.Random(3)
    trajectories = [made_up(rng) for _ in range(4 * GROUP)]
    scorer = Scorer(ByText())
    said = [told(t, scorer.score([t], [Problem("0", "q", "1")])[0]) for t in trajectories]
    facts = facts_of([str(i // GROUP) for i in range(len(said))], said)
    bare = [
        CreditInputs(i // GROUP, t.turns[-1].text == "1", f.invalid_turns, f.has_call, f.code, masked=f.masked)
        for i, (t, f) in enumerate(zip(trajectories, facts, strict=True))
    ]
    settings, _ = of_trainer(tmp_path, trajectories, rewards_of_ones_own())
    found, wanted = (compute_credit(rows, LexicalSimilarity(), settings) for rows in (facts, bare))
    assert torch.equal(found.advantages_B_K, wanted.advantages_B_K)
    assert torch.equal(found.rewards_B_K, wanted.rewards_B_K)


def test_a_rollout_without_an_outcome_is_masked():
    trajectory = Trajectory((1,), (Turn("1", (1, 2)),), StopReason.ANSWER)
    verdict = Verdict(False, 0.0, "")
    assert not told(trajectory, Scored(verdict, 0.0, False))["masked"]
    assert told(trajectory, Scored(verdict, None, False))["masked"], "no reward function applies"
    assert told(trajectory, Scored(verdict, 0.0, False, failure=Failure("verifier")))["masked"]
    (padding,) = facts_of(["a"], [None])
    assert padding.masked


def test_who_passed_must_be_known_to_silence_groups(tmp_path):
    settings, _ = of_trainer(tmp_path, [made_up(random.Random(0)) for _ in range(GROUP)], rewards_of_ones_own())
    ones = torch.ones(2, 3)
    with pytest.raises(ConfigError, match="trainer_mode=gtpo_sync"):
        token_advantages(ones, ones, torch.zeros(2), settings, None)


def test_reward_functions_get_the_columns_of_both():
    row = {
        "raw_prompt": [{"role": "user", "content": "q"}],
        "data_source": "made up",
        "ability": None,
        "reward_model": {"style": "rule", "ground_truth": np.float64(3)},
        "extra_info": {"index": np.int64(0), "tests": np.array([1, 2])},
    }
    problem = Problem("7", "q", "3", "math", {"level": 5})
    columns = reward_columns(row, problem)
    assert columns["answer"] == ["3"]
    assert columns["level"] == [5]
    assert columns["data_source"] == ["made up"]
    assert columns["reward_model"] == [{"style": "rule", "ground_truth": 3.0}]
    assert columns["extra_info"] == [{"index": 0, "tests": [1, 2]}]
    assert "raw_prompt" not in columns
    assert "ability" not in columns
