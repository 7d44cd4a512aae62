"""Turns as runs of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo import functional as F

# Two rollouts: "turn, observation, turn, padding" and "prompt, turn".
MASK = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1]])
TURN_IDS = torch.tensor([[0, 0, -1, -1, 1, -1], [-1, -1, -1, 0, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32])
def test_runs_of_one_become_turns(dtype):
    turn_ids = F.turn_ids_from_mask(MASK.to(dtype))
    assert turn_ids.dtype == torch.int64
    assert turn_ids.tolist() == TURN_IDS.tolist()


def test_a_mask_without_model_tokens_has_no_turns():
    assert F.turn_ids_from_mask(torch.zeros(2, 3)).tolist() == [[-1] * 3] * 2
    assert F.turn_ids_from_mask(torch.zeros(2, 0)).shape == (2, 0)


def test_turns_with_nothing_between_them_merge():
    """Why spans are better where they are known."""
    assert F.turn_ids_from_mask(torch.tensor([[1, 1, 1, 0, 1]])).tolist() == [[0, 0, 0, -1, 1]]


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=5))
def test_turn_ids_match_a_loop_over_tokens(mask):
    expected = []
    for row in mask:
        turn, before, ids = -1, False, []
        for is_model in row:
            turn += is_model and not before
            ids.append(turn if is_model else -1)
            before = is_model
        expected.append(ids)
    assert F.turn_ids_from_mask(torch.tensor(mask)).tolist() == expected


def test_the_mask_is_left_as_it_was():
    mask = MASK.bool()
    F.turn_ids_from_mask(mask)
    assert torch.equal(mask, MASK.bool())


def test_every_token_of_a_turn_gets_its_value_and_other_positions_exactly_zero():
    values = torch.tensor([[0.25, -3.0], [7.0, 8.0]])
    spread = F.spread_to_tokens(values, TURN_IDS)
    assert spread.tolist() == [[0.25, 0.25, 0, 0, -3.0, 0], [0, 0, 0, 7.0, 7.0, 7.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32, torch.int8])
def test_spreading_keeps_the_dtype(dtype, ids_dtype):
    spread = F.spread_to_tokens(torch.ones(2, 2, dtype=dtype), TURN_IDS.to(ids_dtype))
    assert spread.dtype == dtype
    assert spread.tolist() == MASK.tolist()


def test_spreading_a_batch_of_several_blocks_matches_a_loop():
    """512 x 1024 tokens are two blocks on a CPU."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(512, 3, generator=generator)
    turn_ids = torch.randint(-1, 3, (512, 1024), generator=generator)
    rows, table = turn_ids.tolist(), values.tolist()
    expected = [[table[i][k] if k >= 0 else 0.0 for k in row] for i, row in enumerate(rows)]
    assert torch.equal(F.spread_to_tokens(values, turn_ids), torch.tensor(expected))


def test_spreading_is_differentiable():
    values = torch.zeros(2, 2, requires_grad=True)
    F.spread_to_tokens(values, TURN_IDS).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[2, 1], [3, 0]]


def test_summing_adds_up_each_turn_and_leaves_other_positions_out():
    values = torch.tensor([[1, 2, 99, float("nan"), 4, 99], [99, 99, 99, 1, 2, 4]], dtype=torch.float32)
    assert F.sum_over_turns(values, TURN_IDS).tolist() == [[3, 4], [7, 0]]


def test_summing_undoes_spreading_a_value_over_one_token_turns():
    values = torch.tensor([[0.5, 1.5, -2.0]], dtype=torch.float64)
    turn_ids = torch.tensor([[-1, 0, -1, 1, 2]])
    assert torch.equal(F.sum_over_turns(F.spread_to_tokens(values, turn_ids), turn_ids), values)


def test_half_precision_sums_are_taken_in_float32():
    """In bfloat16, 256 + 1 is 256: adding 512 ones one at a time would stop there."""
    ones = torch.ones(1, 512, dtype=torch.bfloat16)
    assert F.sum_over_turns(ones, torch.zeros(1, 512, dtype=torch.long)).tolist() == [[512]]


def test_no_turns_sum_to_no_columns():
    assert F.sum_over_turns(torch.ones(2, 3), torch.full((2, 3), -1)).shape == (2, 0)
    assert F.spread_to_tokens(torch.ones(2, 3), torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.turn_ids_from_mask(torch.ones(3)), "mask_B_T must have shape"),
        (lambda: F.turn_ids_from_mask(torch.tensor([[2]])), "only 0 and 1"),
        (lambda: F.spread_to_tokens(torch.ones(2), TURN_IDS), "values_B_K must have shape"),
        (lambda: F.spread_to_tokens(torch.ones(3, 2), TURN_IDS), "turn_ids_B_T must have shape"),
        (lambda: F.spread_to_tokens(torch.ones(2, 2, dtype=torch.long), TURN_IDS), "float dtype"),
        (lambda: F.spread_to_tokens(torch.ones(2, 2), TURN_IDS.float()), "integer dtype"),
        (lambda: F.spread_to_tokens(torch.ones(2, 1), TURN_IDS), "below K = 1, got 1"),
        (lambda: F.spread_to_tokens(torch.ones(2, 2), TURN_IDS - 1), "got -2"),
        (lambda: F.sum_over_turns(torch.ones(2, 5), TURN_IDS), "turn_ids_B_T must have shape"),
        (lambda: F.sum_over_turns(torch.ones(2, 6), TURN_IDS - 1), "got -2"),
    ],
)
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
