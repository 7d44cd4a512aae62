"""The exact bench: the process against itself, estimators against what is known of them, and learning."""

from __future__ import annotations

import itertools

import pytest
import torch

from gtpo import functional as F
from gtpo.credit_assignment import ALGORITHMS, CreditSettings
from gtpo.lab.tabular import (
    ACTIONS,
    CallProcess,
    enumerate_expectation,
    estimator,
    learn,
    policy_with_success,
    sampled_expectation,
)
from gtpo.lab.tabular.estimators import shaped_groups

PROCESS = CallProcess(steps=2, max_turns=3)
GOOD, MALFORMED, WRONG, ANSWER = range(4)


@pytest.fixture(scope="module")
def logits():
    return policy_with_success(PROCESS, 0.3) + torch.linspace(-0.3, 0.3, 12, dtype=torch.float64).view(3, 4)


@pytest.mark.parametrize("process", [CallProcess(1, 2), CallProcess(2, 4), CallProcess(1, 5)])
def test_probabilities_of_all_rollouts_sum_to_one_and_those_that_pass_to_the_success_rate(process):
    logits = torch.randn(process.states, len(ACTIONS), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    every = process.every_rollout()
    probability = process.log_probabilities(logits, every).exp()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (probability * every.passed_B).sum().item() == pytest.approx(process.success(logits).item(), abs=1e-12)


@pytest.mark.parametrize(
    ("actions", "passed", "states"),
    [
        ([GOOD, GOOD, ANSWER], True, [0, 1, 2]),
        ([GOOD, ANSWER], False, [0, 1]),
        ([GOOD, MALFORMED, GOOD, ANSWER], True, [0, 1, 1, 2]),
        ([GOOD, WRONG, ANSWER], False, [0, 1, 2]),
        ([GOOD, GOOD, GOOD, ANSWER], True, [0, 1, 2, 2]),
        ([GOOD, GOOD, GOOD, GOOD], False, [0, 1, 2, 2]),
    ],
)
def test_what_passes_and_what_the_policy_sees(actions, passed, states):
    rollouts = CallProcess(2, 4).rollouts_of([actions])
    assert rollouts.passed_B.tolist() == [passed]
    assert rollouts.states_B_K[0, : len(actions)].tolist() == states
    assert rollouts.num_turns_B.tolist() == [len(actions)]


def test_sampled_rollouts_are_as_frequent_as_their_probabilities_say(logits):
    rollouts = PROCESS.sample(logits.expand(40_000, -1, -1), torch.Generator().manual_seed(3))
    every = PROCESS.every_rollout()
    probability = PROCESS.log_probabilities(logits, every).exp()
    keys = [tuple(row) for row in every.actions_B_K.tolist()]
    counts = dict.fromkeys(keys, 0)
    for row in rollouts.actions_B_K.tolist():
        counts[tuple(row)] += 1
    for key, p in zip(keys, probability.tolist(), strict=True):
        assert abs(counts[key] / 40_000 - p) < 5 * (p * (1 - p) / 40_000) ** 0.5 + 1e-9


def test_a_policy_has_the_success_rate_that_was_asked_for():
    for success in (0.02, 0.5, 0.9):
        assert PROCESS.success(policy_with_success(PROCESS, success)).item() == pytest.approx(success)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_mean_of_sampled_groups_is_the_enumerated_one_within_sampling_error(logits, algorithm):
    advantage = estimator(PROCESS, 3, algorithm=algorithm)
    exact = enumerate_expectation(PROCESS, logits, advantage, 3)
    drawn = sampled_expectation(PROCESS, logits, advantage, 3, groups=20_000, seed=5)
    off = (drawn.mean_S_A - exact.mean_S_A).abs() / drawn.error_S_A
    assert off.max().item() < 4.0
    assert drawn.variance == pytest.approx(exact.variance, rel=0.05)


def test_rloo_is_unbiased_for_its_reward_and_leave_one_out_for_the_sum_of_turn_rewards(logits):
    # In three turns no success has a malformed call, so RLOO's reward, which is 0 for those, is the success.
    rloo = enumerate_expectation(PROCESS, logits, estimator(PROCESS, 3, algorithm="rloo"), 3)
    assert torch.allclose(rloo.mean_S_A, PROCESS.true_gradient(logits), atol=1e-12)
    plain = estimator(PROCESS, 3, algorithm="turn_loo", gamma=1.0, alpha=0.0)
    turns = enumerate_expectation(PROCESS, logits, plain, 3)
    assert torch.allclose(turns.mean_S_A, PROCESS.reward_gradient(logits), atol=1e-7)


def test_scope_turn_is_biased_where_the_policy_chooses_when_to_stop(logits):
    options = {"gamma": 1.0, "alpha": 0.0, "format_penalty": 0.0}
    true = PROCESS.true_gradient(logits)
    turn = enumerate_expectation(PROCESS, logits, estimator(PROCESS, 3, normalize_over="same_turn", **options), 3)
    loo = enumerate_expectation(PROCESS, logits, estimator(PROCESS, 3, algorithm="turn_loo", **options), 3)
    assert loo.cosine(true) == pytest.approx(1.0, abs=1e-12)
    assert turn.cosine(true) < 0.9999


def test_grpos_variance_is_the_sum_over_all_groups():
    process = CallProcess(1, 2)
    logits = policy_with_success(process, 0.3)
    every = process.every_rollout()
    probability = process.log_probabilities(logits, every).exp()
    policy = logits.softmax(dim=-1)
    mean, second = torch.zeros_like(logits), 0.0
    clean = every.passed_B & ~every.invalid_B_K.any(dim=1)
    for i, k in itertools.product(range(len(probability)), repeat=2):
        r = torch.tensor([float(clean[i]), float(clean[k])], dtype=torch.float64)
        advantage = (r - r.mean()) / (r.std() + 1e-4) if r.std() > 1e-8 else r * 0
        gradient = torch.zeros_like(logits)
        for row, a in ((i, advantage[0]), (k, advantage[1])):
            for turn in range(int(every.num_turns_B[row])):
                state, action = every.states_B_K[row, turn], every.actions_B_K[row, turn]
                gradient[state] -= a / 2 * policy[state]
                gradient[state, action] += a / 2
        p = probability[i] * probability[k]
        mean += p * gradient
        second += float(p * gradient.square().sum())
    found = enumerate_expectation(process, logits, estimator(process, 2, algorithm="grpo"), 2)
    assert torch.allclose(found.mean_S_A, mean, atol=1e-7)
    assert found.variance == pytest.approx(second - float(mean.square().sum()), rel=1e-5)


@pytest.mark.parametrize(("turns", "share"), [(4, 0.85), (8, 0.67), (16, 0.40)])
def test_all_turns_turns_the_first_turn_of_a_success_negative_where_the_specification_says(turns, share):
    size, found = 200, None
    for passes in range(1, size):
        rewards_B_K = torch.zeros(size, turns, dtype=torch.float64)
        rewards_B_K[:passes, -1] = 1.0
        num_turns_B, group_ids_B = torch.full((size,), turns), torch.zeros(size, dtype=torch.long)
        returns_B_K = F.discounted_returns(rewards_B_K, num_turns_B)
        advantages = F.group_advantages(returns_B_K, num_turns_B, group_ids_B, **F.PAPER)
        if advantages[0, 0] < 0:
            found = passes / size
            break
    assert found == pytest.approx(share, abs=0.01)


def test_shaping_of_many_groups_is_that_of_each():
    generator = torch.Generator().manual_seed(1)
    code = torch.randint(0, 3, (20, 6), generator=generator).double()
    code[3] = 0
    passed = torch.rand(20, generator=generator) < 0.4
    passed[:4] = torch.tensor([True, False, True, False])
    found = shaped_groups(code, passed, 4, 0.5)
    for group in range(5):
        rows = slice(4 * group, 4 * group + 4)
        unit = code[rows] / code[rows].norm(dim=1, keepdim=True).clamp(min=1e-12)
        expected = F.shaped_accuracy(unit @ unit.T, passed[rows], code[rows].sum(dim=1) > 0)
        assert torch.allclose(found[rows], expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_learns_the_process(algorithm):
    process = CallProcess(3, 8)
    curves = learn(process, policy_with_success(process, 0.3), algorithm=algorithm, seeds=4, steps=40, seed=1)
    assert curves.success_N_T.shape == (4, 41)
    assert curves.success_N_T[:, 0].mean().item() == pytest.approx(0.3)
    assert curves.success_N_T[:, -1].min().item() > 0.8


def test_with_rare_success_gtpo_learns_the_format_first_and_zeroing_uniform_groups_mends_that():
    process = CallProcess(3, 8)
    logits = policy_with_success(process, 0.02)
    keep, zero = (
        learn(process, logits, settings=CreditSettings(zero_uniform_groups=rule), seeds=8, steps=20, seed=1)
        for rule in (False, True)
    )
    assert keep.invalid_N_T[:, 19].mean() < 0.5 * keep.invalid_N_T[:, 0].mean()
    assert keep.success_N_T[:, -1].mean() < 0.5 * zero.success_N_T[:, -1].mean()


def test_impossible_processes_and_policies_are_refused():
    with pytest.raises(ValueError, match="max_turns"):
        CallProcess(3, 3)
    with pytest.raises(ValueError, match=r"success rate of 1\.5"):
        policy_with_success(PROCESS, 1.5)
