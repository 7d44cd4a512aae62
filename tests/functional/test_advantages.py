"""Advantages of turns, tokens and rollouts."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from formulas import group_advantages, gtpo_advantages
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo import functional as F

NORMALIZE_OVER = ("all_turns", "first_turns", "same_turn")


def normaliser(members, eps):
    """What maps a return to its advantage, given the set it is normalised over."""
    if len(members) < 2:
        return lambda value: 0.0
    mean = math.fsum(members) / len(members)
    deviation = math.sqrt(math.fsum((m - mean) ** 2 for m in members) / (len(members) - 1))
    return (lambda value: 0.0) if deviation < 1e-8 else lambda value: (value - mean) / (deviation + eps)


def loop_advantages(returns, num_turns, group_ids, normalize_over, eps=1e-4):
    advantages = [[0.0] * len(row) for row in returns]
    for i, row in enumerate(returns):
        mates = [k for k in range(len(returns)) if group_ids[k] == group_ids[i]]
        for j in range(num_turns[i]):
            if normalize_over == "all_turns":
                members = [returns[k][m] for k in mates for m in range(num_turns[k])]
            elif normalize_over == "first_turns":
                members = [returns[k][0] for k in mates]
            else:
                members = [returns[k][j] for k in mates if num_turns[k] > j]
            advantages[i][j] = normaliser(members, eps)(row[j])
    return advantages


def loop_returns(rewards, num_turns, gamma):
    return [
        [sum(gamma ** (m - j) * row[m] for m in range(j, num_turns[i])) for j in range(len(row))]
        for i, row in enumerate(rewards)
    ]


@st.composite
def batches(draw, values):
    """(values_B_K, num_turns_B, group_ids_B) as lists: groups of unequal size, in any order, with any ids."""
    num_rollouts, max_turns = draw(st.integers(1, 14)), draw(st.integers(1, 5))
    per_rollout = lambda entries: [draw(entries) for _ in range(num_rollouts)]  # noqa: E731
    rows = per_rollout(st.lists(values, min_size=max_turns, max_size=max_turns))
    return rows, per_rollout(st.integers(1, max_turns)), per_rollout(st.sampled_from([-7, 0, 3, 10**12]))


EIGHTHS = st.integers(-8, 8).map(lambda n: n / 8)
"""Exact in every float dtype, so that the loop normalises the same numbers."""

# A, three turns: passed, second call invalid. B, two turns: failed, shaped 0.3.
REWARDS = torch.tensor([[0, -0.1, 1], [0, 0.3, 0]], dtype=torch.float64)
NUM_TURNS = torch.tensor([3, 2])
GROUP = torch.tensor([4, 4])
TURN_IDS = torch.tensor([[0, 0, -1, 1, -1, 2], [-1, 0, -1, -1, 1, 1]])


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


def test_worked_example():
    """The numbers to four places hold without epsilon."""
    returns = F.discounted_returns(REWARDS, NUM_TURNS)
    advantages = group_advantages(returns, NUM_TURNS, GROUP, eps=0)
    close(advantages, [[0.3179, 0.5673, 1.1907], [-1.0847, -0.9912, 0]], tolerance=5e-5)


def test_epsilon_is_added_to_the_sample_deviation():
    returns = F.discounted_returns(REWARDS, NUM_TURNS)
    without, with_eps = (group_advantages(returns, NUM_TURNS, GROUP, eps=eps) for eps in (0, 0.25))
    close(with_eps, without * 0.320811 / 0.570811, tolerance=1e-5)


def test_first_turns_normalises_by_the_first_returns():
    returns = torch.tensor([[1.0, 4], [3, 5]], dtype=torch.float64)
    advantages = group_advantages(returns, torch.tensor([2, 2]), GROUP, normalize_over="first_turns", eps=0)
    close(advantages, torch.tensor([[-1, 2], [1, 3]], dtype=torch.float64) / math.sqrt(2))


def test_same_turn_normalises_by_the_rollouts_that_reach_the_turn():
    returns = torch.tensor([[1.0, 4, 9], [3, 8, 0], [5, 0, 0]], dtype=torch.float64)
    advantages = group_advantages(
        returns, torch.tensor([3, 2, 1]), torch.zeros(3).long(), normalize_over="same_turn", eps=0
    )
    root = math.sqrt(0.5)
    close(advantages, [[-1, -root, 0], [0, root, 0], [1, 0, 0]])


@settings(deadline=None)
@given(batches(EIGHTHS), st.sampled_from(NORMALIZE_OVER), st.sampled_from([0.0, 1e-4, 0.5]), st.data())
def test_group_advantages_match_a_loop(batch, normalize_over, eps, data):
    returns, num_turns, group_ids = batch
    tolerances = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
    dtype = data.draw(st.sampled_from(list(tolerances)))
    advantages = group_advantages(
        torch.tensor(returns, dtype=dtype),
        torch.tensor(num_turns),
        torch.tensor(group_ids),
        normalize_over=normalize_over,
        eps=eps,
    )
    assert advantages.dtype == dtype
    close(advantages.double(), loop_advantages(returns, num_turns, group_ids, normalize_over, eps), tolerances[dtype])


@settings(deadline=None)
@given(batches(st.floats(-1, 1)), st.sampled_from(NORMALIZE_OVER), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_token_advantages_match_a_loop(batch, normalize_over, gamma):
    rewards, num_turns, group_ids = batch
    turn_ids = [[-1, *(j for j in range(count) for _ in range(2)), -1] for count in num_turns]
    turn_ids = [row + [-1] * (12 - len(row)) for row in turn_ids]
    advantages = gtpo_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(num_turns),
        torch.tensor(turn_ids),
        torch.tensor(group_ids),
        gamma=gamma,
        normalize_over=normalize_over,
    )
    turns = loop_advantages(loop_returns(rewards, num_turns, gamma), num_turns, group_ids, normalize_over)
    expected = [[turns[i][k] if k >= 0 else 0.0 for k in row] for i, row in enumerate(turn_ids)]
    close(advantages, expected, tolerance=1e-8)


@settings(deadline=None)
@given(batches(EIGHTHS))
def test_grpo_advantages_match_a_loop(batch):
    rows, _, group_ids = batch
    rewards = [row[:1] for row in rows]
    expected = loop_advantages(rewards, [1] * len(rows), group_ids, "first_turns")
    advantages = F.grpo_advantages(torch.tensor(rewards, dtype=torch.float64)[:, 0], torch.tensor(group_ids))
    close(advantages, [row[0] for row in expected])


@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
def test_the_order_of_the_rollouts_does_not_matter(normalize_over):
    generator = torch.Generator().manual_seed(1)
    returns = torch.rand(20, 4, generator=generator, dtype=torch.float64)
    num_turns = torch.randint(1, 5, (20,), generator=generator)
    groups = torch.randint(0, 4, (20,), generator=generator)
    order = torch.randperm(20, generator=generator)
    straight = group_advantages(returns, num_turns, groups, normalize_over=normalize_over)
    shuffled = group_advantages(returns[order], num_turns[order], groups[order], normalize_over=normalize_over)
    close(shuffled, straight[order])


@pytest.mark.parametrize("normalize_over", NORMALIZE_OVER)
def test_other_groups_and_padding_do_not_matter(normalize_over):
    returns = torch.tensor([[1.0, 2, float("nan")], [3, 7, 50]], dtype=torch.float64)
    alone = group_advantages(returns[:, :2], torch.tensor([2, 2]), GROUP, normalize_over=normalize_over)
    beside = group_advantages(
        torch.cat([returns, torch.tensor([[100.0, -5, 3]], dtype=torch.float64)]),
        torch.tensor([2, 2, 3]),
        torch.tensor([4, 4, 5]),
        normalize_over=normalize_over,
    )
    close(beside[:2, :2], alone)
    assert beside[:2, 2].tolist() == [0, 0]


@pytest.mark.parametrize("value", [0.9, 0.1, -0.1, 1 / 3, 6e4 + 0.1])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 31])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_returns_have_advantage_zero_whatever_their_rounding(value, size, dtype):
    returns = torch.full((size, 3), value, dtype=dtype)
    for normalize_over in NORMALIZE_OVER:
        advantages = group_advantages(
            returns, torch.full((size,), 3), torch.zeros(size).long(), normalize_over=normalize_over, eps=0
        )
        assert not advantages.any()


def test_a_plain_float32_mean_would_lift_equal_returns_over_the_guard():
    """The negative control of the test above: its rounding alone is a deviation above 1e-8."""
    returns = torch.full((7,), 0.9)
    assert (returns - returns.sum() / 7).square().sum().div(6).sqrt() > 1e-8


def test_equal_rollouts_with_penalties_have_advantage_zero():
    rewards = torch.tensor([-0.1, -0.1, 0.0, -0.1, 1.0]).expand(7, -1)
    num_turns, groups = torch.full((7,), 5), torch.zeros(7, dtype=torch.long)
    turn_ids = torch.arange(5).expand(7, -1)
    for normalize_over in ("first_turns", "same_turn"):
        assert not gtpo_advantages(rewards, num_turns, turn_ids, groups, normalize_over=normalize_over, eps=0).any()


@pytest.mark.parametrize(("spread", "is_zero"), [(1e-9, True), (1e-7, False)])
def test_the_guard_is_at_a_deviation_of_1e_8(spread, is_zero):
    returns = torch.tensor([[0.5], [0.5 + spread]], dtype=torch.float64)
    advantages = group_advantages(returns, torch.tensor([1, 1]), GROUP)
    assert bool((advantages == 0).all()) is is_zero


def test_a_set_with_one_member_has_advantage_zero():
    returns = torch.tensor([[5.0, 1], [2, 4]], dtype=torch.float64)
    num_turns, alone = torch.tensor([2, 2]), torch.tensor([0, 1])
    assert not group_advantages(returns, num_turns, alone, normalize_over="first_turns").any()
    assert not group_advantages(returns, num_turns, alone, normalize_over="same_turn").any()
    assert not F.grpo_advantages(returns[:, 0], alone).any()
    assert group_advantages(returns, num_turns, alone, normalize_over="all_turns").all(), "two turns are two members"


def test_float32_is_accurate_far_from_zero():
    """A variance by sums of squares would have no correct digit here."""
    returns = torch.tensor([[10000.0], [10000.25], [10000.5]])
    advantages = group_advantages(returns, torch.ones(3).long(), torch.zeros(3).long(), eps=0)
    close(advantages, [[-1], [0], [1]], tolerance=1e-6)


def test_half_precision_is_computed_in_float32():
    """17 members of 256 and one of 258: in bfloat16 their mean would be 256."""
    rewards = torch.full((18,), 256.0)
    rewards[0] = 258
    groups = torch.zeros(18, dtype=torch.long)
    half = F.grpo_advantages(rewards.bfloat16(), groups)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, F.grpo_advantages(rewards, groups).bfloat16())


def test_the_first_turn_of_a_success_turns_negative_under_all_turns():
    """The known trouble of all_turns, at T = 4: past a success rate of 0.85."""
    first = {}
    for successes in (84, 86):
        passed = torch.arange(100) < successes
        num_turns, groups = torch.full((100,), 4), torch.zeros(100, dtype=torch.long)
        none = torch.zeros(100, 4, dtype=torch.bool)
        rewards = F.turn_rewards(passed, num_turns, none, torch.ones(100, dtype=torch.bool))
        for normalize_over in NORMALIZE_OVER:
            advantages = gtpo_advantages(
                rewards, num_turns, torch.arange(4).expand(100, -1), groups, normalize_over=normalize_over
            )
            first[normalize_over, successes] = advantages[0, 0].item()
    assert first["all_turns", 84] > 0 > first["all_turns", 86]
    assert first["first_turns", 86] > 0
    assert first["same_turn", 86] > 0


def test_normalize_over_and_gamma_make_a_difference():
    def tokens(**options):
        return gtpo_advantages(REWARDS, NUM_TURNS, TURN_IDS, GROUP, **options)

    assert torch.equal(tokens(), tokens(gamma=0.9, normalize_over="all_turns"))
    assert not torch.allclose(tokens(), tokens(gamma=1.0))
    assert not torch.allclose(tokens(), tokens(normalize_over="first_turns"))
    assert not torch.allclose(tokens(), tokens(normalize_over="same_turn"))


def test_positions_of_no_turn_get_exactly_zero():
    advantages = gtpo_advantages(REWARDS, NUM_TURNS, TURN_IDS, GROUP)
    assert torch.equal(advantages != 0, TURN_IDS >= 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_token_advantages_keep_the_dtype(dtype):
    advantages = gtpo_advantages(REWARDS.to(dtype), NUM_TURNS, TURN_IDS, GROUP)
    assert advantages.dtype == dtype
    close(advantages.double(), gtpo_advantages(REWARDS, NUM_TURNS, TURN_IDS, GROUP), tolerance=2e-2)


def test_uniform_groups_get_no_advantage_and_others_keep_theirs():
    """Groups: all failed, all passed, mixed."""
    rewards = torch.tensor([[0, -0.1], [0, 0], [0, 1], [-0.1, 1], [0, 1], [0, 0]])
    num_turns, groups = torch.full((6,), 2), torch.tensor([0, 0, 1, 1, 2, 2])
    passed = torch.tensor([0, 0, 1, 1, 1, 0], dtype=torch.bool)
    kept = group_advantages(rewards, num_turns, groups, passed_B=passed)
    zeroed = group_advantages(rewards, num_turns, groups, passed_B=passed, zero_uniform_groups=True)
    assert kept[:4].any(dim=1).all(), "without the option the penalty is at full size"
    assert not zeroed[:4].any()
    assert torch.equal(zeroed[4:], kept[4:])


LARGE = torch.tensor([[0.5, 1000.0], [0.5 + 1e-3, -1000.0]], dtype=torch.float64)
"""First returns that hardly differ, and later ones that do."""


@pytest.mark.parametrize("clip", [10.0, 2.5])
def test_advantages_are_clipped_at_the_bound(clip):
    free = group_advantages(LARGE, torch.tensor([2, 2]), GROUP, normalize_over="first_turns", eps=0)
    clipped = group_advantages(
        LARGE, torch.tensor([2, 2]), GROUP, normalize_over="first_turns", advantage_clip=clip, eps=0
    )
    assert free.abs().max() > 1e5, "without the option there is no bound"
    close(clipped, free.clamp(-clip, clip))
    close(clipped[:, 0], free[:, 0])


def test_the_defaults_are_first_turns_silenced_uniform_groups_and_a_clip_at_10():
    passed, num_turns = torch.tensor([1, 0, 1, 1]).bool(), torch.tensor([2, 2, 2, 2])
    returns, groups = torch.cat([LARGE, LARGE]), torch.tensor([0, 0, 1, 1])
    found = F.group_advantages(returns, num_turns, groups, passed_B=passed)
    said = group_advantages(
        returns,
        num_turns,
        groups,
        passed_B=passed,
        normalize_over="first_turns",
        zero_uniform_groups=True,
        advantage_clip=10.0,
    )
    assert torch.equal(found, said)
    assert found.abs().max() == 10
    assert not found[2:].any()


def test_an_empty_batch_has_no_advantages():
    none = torch.zeros(0, dtype=torch.long)
    assert gtpo_advantages(torch.zeros(0, 3), none, torch.zeros(0, 5).long(), none).shape == (0, 5)
    assert F.grpo_advantages(torch.zeros(0), none).shape == (0,)


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards_B_K": REWARDS[0]}, "rewards_B_K must have shape"),
        ({"rewards_B_K": REWARDS.long()}, "float dtype"),
        ({"rewards_B_K": REWARDS * NAN}, "rewards_B_K must be finite"),
        ({"num_turns_B": torch.tensor([3])}, "num_turns_B must have shape"),
        ({"num_turns_B": torch.tensor([4, 1])}, "num_turns_B must lie in"),
        ({"num_turns_B": torch.tensor([3, 0])}, "num_turns_B must lie in"),
        ({"turn_ids_B_T": TURN_IDS[:1]}, "turn_ids_B_T must have shape"),
        ({"turn_ids_B_T": TURN_IDS + 1}, "below K = 3, got 3"),
        ({"group_ids_B": torch.tensor([1])}, "group_ids_B must have shape"),
        ({"group_ids_B": torch.tensor([1.0, 1.0])}, "integer dtype"),
        ({"normalize_over": "global"}, "normalize_over must be one of"),
        ({"eps": -1.0}, "eps"),
        ({"eps": NAN}, "eps"),
        ({"gamma": 2.0}, "gamma"),
        ({"advantage_clip": -1.0}, "advantage_clip"),
        ({"advantage_clip": NAN}, "advantage_clip"),
        ({"zero_uniform_groups": True}, "needs passed_B"),
        ({"passed_B": torch.tensor([True])}, "passed_B must have shape"),
    ],
)
def test_bad_arguments_raise(change, message):
    arguments = {
        "rewards_B_K": REWARDS,
        "num_turns_B": NUM_TURNS,
        "turn_ids_B_T": TURN_IDS,
        "group_ids_B": GROUP,
    }
    gtpo_advantages(**arguments)
    with pytest.raises(ValueError, match=message):
        gtpo_advantages(**(arguments | change))


def test_bad_returns_and_rewards_of_a_rollout_raise():
    with pytest.raises(ValueError, match="returns_B_K must be finite"):
        group_advantages(REWARDS / 0, NUM_TURNS, GROUP)
    with pytest.raises(ValueError, match="returns_B_K must have shape"):
        group_advantages(REWARDS[0], NUM_TURNS, GROUP)
    with pytest.raises(ValueError, match="rewards_B must have shape"):
        F.grpo_advantages(REWARDS, GROUP)
    with pytest.raises(ValueError, match="rewards_B must be finite"):
        F.grpo_advantages(torch.tensor([1.0, math.inf]), GROUP)


def test_the_algorithm_loads_no_training_framework():
    program = """
import sys
import gtpo
assert "torch" not in sys.modules and {"credit", "evaluate", "train"} <= set(dir(gtpo))
import torch
before = set(sys.modules)
gtpo.functional.discounted_returns
roots = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(roots - set(sys.stdlib_module_names) - {"torch", "gtpo"}))
print(sorted({"transformers", "trl", "datasets", "accelerate"} & set(sys.modules)))
print(sorted(name for name in sys.modules if name.startswith("gtpo.") and "functional" not in name))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["[]", "[]", "[]"]
