"""Credit of whole batches: the worked example, the baseline's reward, masked rollouts, metrics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gtpo.credit_assignment import (
    CreditInputs,
    CreditSettings,
    compute_credit,
    credit_inputs,
    credit_metrics,
    default_gamma,
)
from gtpo.errors import ConfigError
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn


class FixedSimilarity:
    """The same similarity for every pair of different texts; counts the matrices asked for."""

    def __init__(self, value=0.6):
        self.value, self.calls = value, 0

    def matrix(self, texts):
        self.calls += 1
        return torch.full((len(texts), len(texts)), self.value).fill_diagonal_(1.0)


def facts(group=0, passed=True, invalid=(False,), has_call=True, code="x", masked=False):
    return CreditInputs(group, passed, tuple(invalid), has_call, code, masked)


A = facts(passed=True, invalid=(False, True, False), code="a")
B = facts(passed=False, invalid=(False, False), code="b")


def test_the_worked_example_of_the_paper():
    credit = compute_credit([A, B], FixedSimilarity(0.6), CreditSettings.paper(), eps=0.0)
    assert credit.rewards_B_K.tolist() == [pytest.approx([0, -0.1, 1]), pytest.approx([0, 0.3, 0])]
    assert credit.returns_B_K.tolist() == [pytest.approx([0.72, 0.8, 1.0]), pytest.approx([0.27, 0.3, 0])]
    assert credit.advantages_B_K[0].tolist() == pytest.approx([0.3179, 0.5673, 1.1907], abs=1e-4)
    assert credit.advantages_B_K[1].tolist() == pytest.approx([-1.0847, -0.9912, 0], abs=1e-4)
    assert credit.shaped_B.tolist() == pytest.approx([0, 0.3])


BATCH = [
    A,
    B,
    facts(passed=True, invalid=(False, False)),
    facts(passed=True, has_call=False),
    facts(group=1, passed=False, invalid=(True,)),
    facts(group=1, passed=True, invalid=(False, False, False)),
]


def test_without_its_three_parts_and_penalties_gtpo_is_grpo_on_the_bare_outcome():
    bare = CreditSettings(turn_rewards=False, turn_returns=False, alpha=0.0, format_penalty=0.0)
    gtpo = compute_credit(BATCH, FixedSimilarity(), bare)
    clean = [replace(fact, invalid_turns=(False,) * len(fact.invalid_turns), has_call=True) for fact in BATCH]
    grpo = compute_credit(clean, FixedSimilarity(), CreditSettings(), algorithm="grpo")
    assert torch.equal(gtpo.advantages_B_K, grpo.advantages_B_K)
    assert torch.equal(gtpo.rewards_B_K, grpo.rewards_B_K)


def test_without_turn_rewards_the_same_sum_stands_at_the_last_turn():
    parts = compute_credit([A, B], FixedSimilarity(0.6), CreditSettings())
    credit = compute_credit([A, B], FixedSimilarity(0.6), CreditSettings(turn_rewards=False))
    assert credit.rewards_B_K.tolist() == [[0, 0, pytest.approx(0.9)], [0, pytest.approx(0.3), 0]]
    assert torch.allclose(credit.rewards_B_K.sum(dim=1), parts.rewards_B_K.sum(dim=1))
    assert credit.returns_B_K[0].tolist() == pytest.approx([0.81 * 0.9, 0.9 * 0.9, 0.9])


def test_without_turn_returns_every_turn_has_the_sum_and_the_same_advantage():
    credit = compute_credit([A, B], FixedSimilarity(0.6), CreditSettings(turn_returns=False), eps=0.0)
    assert credit.returns_B_K.tolist() == [pytest.approx([0.9] * 3), pytest.approx([0.3, 0.3, 0])]
    half = 0.5**0.5
    assert credit.advantages_B_K.tolist() == [pytest.approx([half] * 3), pytest.approx([-half, -half, 0])]


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("dr_grpo", [[-0.5] * 3, [0.5, 0.5, 0]]),
        ("rloo", [[-1.0] * 3, [1.0, 1.0, 0]]),
    ],
)
def test_estimators_of_whole_rollouts_take_the_baselines_reward(algorithm, expected):
    clean = facts(passed=True, invalid=(False, False))
    credit = compute_credit([A, clean], FixedSimilarity(), CreditSettings(), algorithm=algorithm)
    assert credit.advantages_B_K.tolist() == expected
    assert credit.shaped_B.tolist() == [0, 0]


def test_leave_one_out_takes_gtpos_returns():
    credit = compute_credit([A, B], FixedSimilarity(0.6), CreditSettings(), algorithm="turn_loo")
    expected = [pytest.approx([0.72 - 0.27, 0.8 - 0.3, 1.0 - 0.3]), pytest.approx([0.27 - 0.72, 0.3 - 0.8, 0])]
    assert credit.advantages_B_K.tolist() == expected


def test_mt_grpo_takes_penalties_and_outcome_apart():
    credit = compute_credit([A, B], FixedSimilarity(0.6), CreditSettings(), algorithm="mt_grpo", eps=0.0)
    half = 0.5**0.5
    assert credit.shaped_B.tolist() == [0, 0]
    assert credit.advantages_B_K.tolist() == [pytest.approx([half, 0.0, half]), pytest.approx([-half, -half, 0])]


def test_alpha_zero_turns_shaping_off_and_compares_nothing():
    similarity = FixedSimilarity()
    credit = compute_credit([A, B], similarity, CreditSettings(alpha=0.0))
    assert credit.shaped_B.tolist() == [0, 0]
    assert similarity.calls == 0


@pytest.mark.parametrize("passed", [True, False])
def test_groups_that_need_no_shaping_are_not_compared(passed):
    similarity = FixedSimilarity()
    compute_credit([facts(passed=passed), facts(passed=passed)], similarity, CreditSettings())
    assert similarity.calls == 0


def test_grpo_gives_one_reward_a_rollout_and_the_same_advantage_at_each_turn():
    clean = facts(passed=True, invalid=(False, False))
    without_call = facts(passed=True, has_call=False)
    credit = compute_credit([A, B, clean, without_call], FixedSimilarity(), CreditSettings(), algorithm="grpo")
    assert credit.outcome_B.tolist() == [0, 0, 1, 0]  # A is right but has an invalid call
    assert credit.advantages_B_K[2, 0] == credit.advantages_B_K[2, 1] > 0
    assert credit.advantages_B_K[2, 2] == 0
    assert credit.shaped_B.tolist() == [0, 0, 0, 0]


def test_the_baselines_format_reward_does_not_depend_on_the_size_of_the_penalty():
    credit = compute_credit([A, B], FixedSimilarity(), CreditSettings(format_penalty=0.0), algorithm="grpo")
    assert credit.outcome_B.tolist() == [0, 0]


@pytest.mark.parametrize("algorithm", ["gtpo", "grpo"])
def test_a_masked_rollout_counts_for_nothing_in_its_group(algorithm):
    masked = facts(passed=True, invalid=(True, True, True, True), code="z", masked=True)
    group = [A, B, facts(passed=True)]
    with_masked = compute_credit([masked, *group], FixedSimilarity(), CreditSettings(), algorithm=algorithm)
    without = compute_credit(group, FixedSimilarity(), CreditSettings(), algorithm=algorithm)
    assert not with_masked.advantages_B_K[0].any()
    assert not with_masked.rewards_B_K[0].any()
    assert torch.equal(with_masked.advantages_B_K[1:, :3], without.advantages_B_K)


def test_a_batch_of_masked_rollouts_gets_no_credit():
    credit = compute_credit([facts(masked=True)] * 2, FixedSimilarity(), CreditSettings())
    assert not credit.advantages_B_K.any()
    assert credit_metrics([facts(masked=True)] * 2, credit)["rollouts/frac_masked"] == 1


def test_groups_may_come_in_any_order():
    batch = [A, facts(group=7), B, facts(group=7, passed=False, code="y")]
    credit = compute_credit(batch, FixedSimilarity(), CreditSettings())
    alone = compute_credit([A, B], FixedSimilarity(), CreditSettings())
    assert torch.equal(credit.advantages_B_K[[0, 2]], alone.advantages_B_K)


def test_uniform_groups_are_silenced_unless_the_formulas_are_asked_for():
    batch = [facts(passed=False, invalid=(True,)), facts(passed=False)]
    keep = compute_credit(batch, FixedSimilarity(), CreditSettings.paper())
    zero = compute_credit(batch, FixedSimilarity(), CreditSettings(zero_uniform_groups=True))
    assert keep.advantages_B_K[0, 0] < 0 < keep.advantages_B_K[1, 0]
    assert not zero.advantages_B_K.any()


def test_metrics_of_a_batch():
    batch = [A, B, facts(group=1), facts(group=1), facts(group=2, passed=False), facts(group=2, passed=False)]
    credit = compute_credit(batch, FixedSimilarity(), CreditSettings())
    metrics = credit_metrics(batch, credit)
    assert metrics["pass_rate"] == pytest.approx(3 / 6)
    assert metrics["reward/format"] == pytest.approx(-0.1 / 6)
    assert metrics["reward/shaped"] == pytest.approx(0.3 / 6)
    assert metrics["groups/frac_all_passed"] == pytest.approx(1 / 3)
    assert metrics["groups/frac_all_failed"] == pytest.approx(1 / 3)
    assert metrics["advantage/frac_negative_on_success"] == 0


def test_a_success_below_the_mean_of_its_group_is_counted_as_negative():
    batch = [facts(invalid=(False,) * 4, code="a"), *[facts(code="a")] * 5]
    credit = compute_credit(batch, FixedSimilarity(), CreditSettings(zero_uniform_groups=False))
    assert credit_metrics(batch, credit)["advantage/frac_negative_on_success"] == pytest.approx(3 / 9)


def trajectory(*turns, stop=StopReason.ANSWER):
    return Trajectory((1,), turns, stop)


def test_facts_of_a_trajectory():
    seen = Observation("1", ("ok",), (9,))
    turns = (
        Turn("", (1,), (ToolCall("a"), InvalidCall("empty")), seen),
        Turn("", (2,), (ToolCall("b"),), seen),
        Turn("", (3,)),
    )
    got = credit_inputs(trajectory(*turns), passed=True, group_id=3)
    assert got == CreditInputs(3, True, (True, False, False), True, "a\nb", False)


def test_syntax_errors_count_as_invalid_only_on_request():
    turns = (Turn("", (1,), (ToolCall("(("),)), Turn("", (2,)))
    plain = credit_inputs(trajectory(*turns), passed=False, group_id=0)
    strict = credit_inputs(trajectory(*turns), passed=False, group_id=0, penalize_syntax_errors=True)
    assert plain.invalid_turns == (False, False)
    assert strict.invalid_turns == (True, False)


def test_a_failed_sandbox_masks_its_rollout():
    assert credit_inputs(trajectory(Turn("", (1,)), stop=StopReason.TOOL_FAILURE), passed=False, group_id=0).masked


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"gamma": 1.1}, "gamma"),
        ({"alpha": -0.1}, "alpha"),
        ({"format_penalty": 0.1}, "format_penalty"),
        ({"normalize_over": "group"}, "normalize_over"),
        ({"zero_uniform_groups": "drop"}, "zero_uniform_groups"),
        ({"advantage_clip": -1.0}, "advantage_clip"),
        ({"advantage_clip": float("inf")}, "advantage_clip"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change, field):
    with pytest.raises(ConfigError, match=field):
        CreditSettings(**change)


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ConfigError, match="ppo"):
        compute_credit([A], FixedSimilarity(), CreditSettings(), algorithm="ppo")


def test_credit_bounds_the_advantages_of_a_group_whose_first_returns_hardly_differ():
    """Two successes of unlike length and penalties that make the first returns almost equal."""
    long = facts(passed=True, invalid=(False,) * 7 + (True,) + (False,) * 12, code="a")
    batch = [long, replace(long, invalid_turns=(False,) * 6 + (True,) + (False,) * 13), facts(passed=False, code="")]
    batch = batch[:2] * 4 + [facts(passed=False, has_call=True, invalid=(False,) * 20, code="")]
    free = compute_credit(batch, FixedSimilarity(), CreditSettings(advantage_clip=0.0))
    bound = compute_credit(batch, FixedSimilarity(), CreditSettings())
    assert free.advantages_B_K.abs().max() > 10
    assert bound.advantages_B_K.abs().max() == 10


def test_one_set_of_defaults_everywhere():
    """Functions, settings, report and, but for gamma, the trainer have the same; a preset has the paper's."""
    import inspect
    from dataclasses import asdict

    from gtpo import functional as F
    from gtpo.run_directory import SETTINGS
    from gtpo.training.config import GTPOConfig

    chosen = asdict(CreditSettings())
    for function in (F.group_advantages, F.gtpo_advantages, F.discounted_returns, F.shaped_accuracy, F.turn_rewards):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in chosen:
                assert parameter.default == chosen[name], (function.__name__, name)
    assert {name: SETTINGS[name] for name in chosen} == chosen
    assert GTPOConfig(bf16=False, max_turns=4).credit_settings() == CreditSettings()
    assert GTPOConfig(bf16=False, max_turns=8).credit_settings() == CreditSettings(gamma=default_gamma(8))
    assert GTPOConfig(bf16=False, preset="paper").credit_settings() == CreditSettings.paper()
    mixed = GTPOConfig(bf16=False, preset="paper", zero_uniform_groups=True).credit_settings()
    assert mixed == CreditSettings.paper(zero_uniform_groups=True)
