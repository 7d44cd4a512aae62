"""Turn-level rewards and the outcome reward of the GRPO baseline."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo import functional as F


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def test_worked_example():
    """A: three turns, the second invalid, right. B: two turns, wrong, shaped 0.3."""
    rewards = F.turn_rewards(
        flags(1, 0),
        torch.tensor([3, 2]),
        flags([0, 1, 0], [0, 0, 0]),
        flags(1, 1),
        shaped_B=torch.tensor([0.0, 0.3], dtype=torch.float64),
    )
    expected = torch.tensor([[0, -0.1, 1], [0, 0.3, 0]], dtype=torch.float64)
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-15)


def test_a_success_whose_last_turn_is_invalid_gets_both():
    rewards = F.turn_rewards(flags(1), torch.tensor([2]), flags([0, 1]), flags(1))
    torch.testing.assert_close(rewards, torch.tensor([[0, 0.9]]))


@pytest.mark.parametrize(
    ("invalid", "has_call", "first_reward"),
    [(False, True, 0.0), (True, True, -0.1), (False, False, -0.1), (True, False, -0.1)],
)
def test_the_first_turn_is_penalised_once_at_most(invalid, has_call, first_reward):
    rewards = F.turn_rewards(flags(0), torch.tensor([2]), flags([invalid, 0]), flags(has_call))
    torch.testing.assert_close(rewards, torch.tensor([[first_reward, 0]]))


def test_a_rollout_without_any_call_is_penalised_at_its_first_turn_only():
    rewards = F.turn_rewards(flags(1, 1), torch.tensor([3, 3]), flags([0] * 3, [0] * 3), flags(0, 1))
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0, 1], [0, 0, 1]]))


def test_without_the_penalty_only_the_outcome_is_left():
    rewards = F.turn_rewards(flags(1), torch.tensor([2]), flags([1, 1]), flags(0), format_penalty=0)
    assert rewards.tolist() == [[0, 1]]


def test_padding_is_ignored():
    rewards = F.turn_rewards(flags(1), torch.tensor([1]), flags([0, 1, 1]), flags(1))
    assert rewards.tolist() == [[1, 0, 0]]


@settings(deadline=None)
@given(st.data())
def test_rewards_match_a_loop(data):
    num_rollouts, max_turns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    draw = lambda values: [data.draw(values) for _ in range(num_rollouts)]  # noqa: E731
    passed, has_call, num_turns = draw(st.booleans()), draw(st.booleans()), draw(st.integers(1, max_turns))
    invalid = draw(st.lists(st.booleans(), min_size=max_turns, max_size=max_turns))
    shaped = [0.0 if ok else value for ok, value in zip(passed, draw(st.floats(0, 0.5)), strict=True)]
    expected = [[0.0] * max_turns for _ in range(num_rollouts)]
    for i in range(num_rollouts):
        for j in range(num_turns[i]):
            if invalid[i][j] or (j == 0 and not has_call[i]):
                expected[i][j] += -0.25
            if j == num_turns[i] - 1:
                expected[i][j] += 1.0 if passed[i] else shaped[i]
    rewards = F.turn_rewards(
        torch.tensor(passed),
        torch.tensor(num_turns),
        torch.tensor(invalid),
        torch.tensor(has_call),
        format_penalty=-0.25,
        shaped_B=torch.tensor(shaped, dtype=torch.float64),
    )
    assert torch.equal(rewards, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rewards_have_the_dtype_of_the_shaped_rewards(dtype):
    shaped = torch.tensor([0.0, 0.25], dtype=dtype)
    rewards = F.turn_rewards(flags(1, 0), torch.tensor([1, 1]), flags([0], [1]), flags(1, 1), shaped_B=shaped)
    torch.testing.assert_close(rewards, torch.tensor([[1.0], [0.15]], dtype=dtype))


def test_the_grpo_reward_is_the_minimum_of_outcome_and_format():
    rewards = F.grpo_rewards(flags(0, 0, 1, 1), flags(0, 1, 0, 1))
    assert rewards.tolist() == [0, 0, 0, 1]
    assert rewards.dtype == torch.get_default_dtype()


ARGUMENTS = {
    "passed_B": flags(1, 0),
    "num_turns_B": torch.tensor([1, 2]),
    "invalid_B_K": flags([0, 0], [0, 0]),
    "first_turn_has_call_B": flags(1, 1),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passed_B": flags(1)}, "passed_B must have shape"),
        ({"passed_B": torch.tensor([0.5, 0])}, "passed_B must hold only 0 and 1"),
        ({"first_turn_has_call_B": flags(1, 1, 1)}, "first_turn_has_call_B must have shape"),
        ({"invalid_B_K": flags(0, 0)}, "invalid_B_K must have shape"),
        ({"num_turns_B": torch.tensor([0, 2])}, r"1\.\.K = 2"),
        ({"num_turns_B": torch.tensor([1, 3])}, r"1\.\.K = 2"),
        ({"num_turns_B": torch.tensor([1.0, 2.0])}, "integer dtype"),
        ({"format_penalty": 0.1}, "format_penalty"),
        ({"format_penalty": float("nan")}, "format_penalty"),
        ({"shaped_B": torch.tensor([0.1, 0.0])}, "0 on rollouts that passed"),
        ({"shaped_B": torch.tensor([0.0, float("nan")])}, "shaped_B must be finite"),
        ({"shaped_B": torch.tensor([0, 0])}, "float dtype"),
    ],
)
def test_bad_arguments_raise(change, message):
    F.turn_rewards(**ARGUMENTS)
    with pytest.raises(ValueError, match=message):
        F.turn_rewards(**(ARGUMENTS | change))


def test_grpo_rewards_of_unequal_length_raise():
    with pytest.raises(ValueError, match="format_ok_B must have shape"):
        F.grpo_rewards(flags(1, 0), flags(1))


def test_information_gain_by_hand():
    """Probabilities before each turn; the gains 0.3, -0.1 and 0.1 have a mean of 0.1 and a deviation of 0.2."""
    logprobs = torch.tensor([[0.1, 0.4, 0.3], [0.5, 0.6, 0.9], [0.5, 0.9, 0.9]], dtype=torch.float64).log()
    gains = F.information_gain(logprobs, torch.tensor([3, 2, 1]), torch.tensor([4, 4, 4]), eps=0)
    expected = torch.tensor([[1, -1, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(gains, expected, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(st.data())
def test_information_gain_equals_a_loop(data):
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    groups = [data.draw(st.integers(0, 2)) for _ in counts]
    rows = [data.draw(st.lists(st.floats(-8, 0), min_size=5, max_size=5)) for _ in counts]
    padding = torch.arange(5) >= torch.tensor(counts)[:, None]
    logprobs = torch.tensor(rows, dtype=torch.float64).masked_fill(padding, float("nan"))
    found = F.information_gain(logprobs, torch.tensor(counts), torch.tensor(groups)).tolist()
    gains = [
        [math.exp(row[j + 1]) - math.exp(row[j]) for j in range(count - 1)]
        for row, count in zip(rows, counts, strict=True)
    ]
    for i, group in enumerate(groups):
        members = [value for k, row in enumerate(gains) if groups[k] == group for value in row]
        spread = stdev(members) if len(members) > 1 else 0.0
        if abs(spread - 1e-8) < 1e-10:
            return
        loop = [(value - fmean(members)) / (spread + 1e-4) if spread > 1e-8 else 0.0 for value in gains[i]]
        assert found[i] == pytest.approx([*loop, *[0] * (5 - len(loop))], abs=1e-6)


def test_information_gain_has_no_say_on_how_many_calls_are_made():
    """Where every call makes the answer less likely, a call is no worse than none: the mean is taken out."""
    logprobs = torch.tensor([[0.5, 0.4, 0.2], [0.5, 0.3, 0.0], [0.5, 0.0, 0.0]], dtype=torch.float64)
    logprobs = logprobs.clamp(min=1e-9).log()
    gains = F.information_gain(logprobs, torch.tensor([3, 2, 1]), torch.zeros(3).long())
    assert float(gains.sum()) == pytest.approx(0, abs=1e-9)
    assert gains.abs().sum() > 1


def test_information_gain_refuses_what_is_no_log_probability():
    with pytest.raises(ValueError, match="answer_logprobs_B_K"):
        F.information_gain(torch.tensor([[0.0, float("-inf")]]), torch.tensor([2]), torch.tensor([0]))
