"""Self-supervised reward shaping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo import functional as F


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def similarities(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_worked_example():
    shaped = F.shaped_accuracy(similarities([1, 0.6], [0.6, 1]), flags(1, 0), flags(1, 1))
    torch.testing.assert_close(shaped, torch.tensor([0, 0.3], dtype=torch.float64))


def test_the_mean_is_over_the_passing_rollouts_and_divided_once():
    similarity = similarities([1, 0.2, 0.8, 0.9], [0.2, 1, 0.5, 0.4], [0.8, 0.5, 1, 0.1], [0.9, 0.4, 0.1, 1])
    shaped = F.shaped_accuracy(similarity, flags(0, 1, 1, 0), flags(1, 1, 1, 1))
    expected = [0.5 * (0.2 + 0.8) / 2, 0, 0, 0.5 * (0.4 + 0.1) / 2]
    torch.testing.assert_close(shaped, torch.tensor(expected, dtype=torch.float64))


def test_a_passing_rollout_without_code_counts_in_the_mean_with_similarity_zero():
    similarity = similarities([1, 0.8, 0.8], [0.8, 1, 1], [0.8, 1, 1])
    shaped = F.shaped_accuracy(similarity, flags(0, 1, 1), flags(1, 1, 0))
    torch.testing.assert_close(shaped, torch.tensor([0.2, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("passed", "has_code"),
    [((0, 0), (1, 1)), ((1, 1), (1, 1)), ((0, 1), (0, 1)), ((0, 1), (1, 0))],
    ids=["nobody passed", "everybody passed", "the failure has no code", "the success has no code"],
)
def test_nothing_to_compare_with_gives_zero(passed, has_code):
    assert F.shaped_accuracy(similarities([1, 0.9], [0.9, 1]), flags(*passed), flags(*has_code)).tolist() == [
        0,
        0,
    ]


@pytest.mark.parametrize(("similarity", "reward"), [(-0.7, 0), (1.3, 0.5), (0.5, 0.25)])
def test_similarities_are_clipped(similarity, reward):
    shaped = F.shaped_accuracy(similarities([1, similarity], [similarity, 1]), flags(0, 1), flags(1, 1))
    assert shaped.tolist() == [reward, 0]


def test_alpha_zero_removes_shaping():
    similarity = similarities([1, 0.6], [0.6, 1])
    assert F.shaped_accuracy(similarity, flags(1, 0), flags(1, 1), alpha=0).tolist() == [0, 0]
    assert F.shaped_accuracy(similarity, flags(1, 0), flags(1, 1)).tolist() != [0, 0]


def test_similarities_that_are_not_used_may_be_anything():
    nan = float("nan")
    shaped = F.shaped_accuracy(
        similarities([nan, 0.6, nan], [nan, nan, nan], [nan] * 3), flags(0, 1, 0), flags(1, 1, 0)
    )
    torch.testing.assert_close(shaped, torch.tensor([0.3, 0, 0], dtype=torch.float64))


@settings(deadline=None)
@given(st.data())
def test_shaping_matches_a_loop(data):
    size = data.draw(st.integers(1, 6))
    row = lambda values: data.draw(st.lists(values, min_size=size, max_size=size))  # noqa: E731
    passed, has_code = row(st.booleans()), row(st.booleans())
    similarity = [row(st.floats(-1, 1)) for _ in range(size)]
    alpha = data.draw(st.floats(0, 1))
    expected = []
    for i in range(size):
        passing = [p for p in range(size) if passed[p]]
        total = sum(min(max(similarity[i][p], 0), 1) for p in passing if has_code[p])
        expected.append(alpha * total / len(passing) if passing and has_code[i] and not passed[i] else 0.0)
    shaped = F.shaped_accuracy(similarities(*similarity), flags(*passed), flags(*has_code), alpha=alpha)
    torch.testing.assert_close(shaped, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15)
    assert bool(((shaped >= 0) & (shaped <= alpha + 1e-15)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shaping_keeps_the_dtype(dtype):
    shaped = F.shaped_accuracy(torch.full((2, 2), 0.5, dtype=dtype), flags(0, 1), flags(1, 1))
    assert shaped.dtype == dtype
    assert shaped.tolist() == [0.25, 0]


@pytest.mark.parametrize(
    ("similarity", "passed", "has_code", "alpha", "message"),
    [
        (torch.ones(2, 3), flags(1, 0), flags(1, 1), 0.5, "similarity_G_G must have shape"),
        (torch.ones(2), flags(1, 0), flags(1, 1), 0.5, "similarity_G_G must have shape"),
        (torch.ones(2, 2), flags(1), flags(1, 1), 0.5, "passed_G must have shape"),
        (torch.ones(2, 2), flags(1, 0), flags(1), 0.5, "has_code_G must have shape"),
        (torch.ones(2, 2).long(), flags(1, 0), flags(1, 1), 0.5, "float dtype"),
        (torch.full((2, 2), float("nan")), flags(1, 0), flags(1, 1), 0.5, "must be finite"),
        (torch.ones(2, 2), flags(1, 0), flags(1, 1), 1.5, "alpha"),
        (torch.ones(2, 2), flags(1, 0), flags(1, 1), float("nan"), "alpha"),
    ],
)
def test_bad_arguments_raise(similarity, passed, has_code, alpha, message):
    with pytest.raises(ValueError, match=message):
        F.shaped_accuracy(similarity, passed, has_code, alpha=alpha)
