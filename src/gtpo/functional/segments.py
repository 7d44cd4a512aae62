"""Turns as runs of tokens: from a mask to turn ids, from turns to tokens, from tokens to turns."""

from __future__ import annotations

import torch
from torch import Tensor

from gtpo.functional._checks import as_flags, check_floating, check_integer, check_shape, widen

_BLOCK_TOKENS = 1 << 18
"""Tokens gathered at a time on a CPU: 2 MiB of indices stay in its cache (see `benchmarks/advantages.py`)."""


def turn_ids_from_mask(mask_B_T: Tensor) -> Tensor:
    """Number the runs of 1 in a mask of model tokens.

        turn_ids[i,t] = (number of runs of 1 in mask[i,0..t]) - 1 if mask[i,t] = 1, else -1

    Source: a turn is what the model generates between two observations [P]; inferring it from a mask is ours
    [O]. Two turns with nothing between them become one: if the spans are known, use those.

    Args:
        mask_B_T: bool, integer or float, 1 on tokens that the model sampled, 0 on prompt, observation and
            padding.

    Returns:
        turn_ids_B_T: int64, 0-based turn of each model token, -1 elsewhere.

    Raises:
        ValueError: the mask does not have two axes, or holds other values than 0 and 1.
    """
    mask = as_flags("mask_B_T", mask_B_T, (None, None))
    starts = mask.clone()
    starts[:, 1:] &= ~mask[:, :-1]
    return (starts.cumsum(dim=1) - 1).masked_fill_(~mask, -1)


def spread_to_tokens(values_B_K: Tensor, turn_ids_B_T: Tensor) -> Tensor:
    """Give every token of a turn the turn's value, and every other position exactly 0.

        values[i,t] = values[i, turn_ids[i,t]] if turn_ids[i,t] >= 0, else 0

    Source: every token of turn j gets A[i,j], observation tokens are masked [T].

    Args:
        values_B_K: float, one value per turn. Differentiable.
        turn_ids_B_T: integer, -1..K-1. Ids past a rollout's own last turn aren't detected: they get the value of
            the padding.

    Returns:
        values_B_T: in the dtype of `values_B_K`.

    Raises:
        ValueError: shapes or dtypes don't fit, or a turn id lies outside -1..K-1.
    """
    check_shape("values_B_K", values_B_K, (None, None))
    check_floating("values_B_K", values_B_K)
    num_rollouts, num_turns = values_B_K.shape
    _check_turn_ids(turn_ids_B_T, num_rollouts, num_turns)
    num_tokens = turn_ids_B_T.shape[1]
    if turn_ids_B_T.numel() == 0:
        return values_B_K.new_zeros(num_rollouts, num_tokens)
    table = torch.cat([values_B_K.new_zeros(num_rollouts, 1), values_B_K], dim=1)
    # A CPU spends most of a large call on faulting in the pages of the int64 temporary `ids + 1`; in blocks
    # it is small enough to be reused. An accelerator does better with one launch.
    rows = max(1, _BLOCK_TOKENS // num_tokens) if values_B_K.device.type == "cpu" else num_rollouts
    blocks = zip(table.split(rows), turn_ids_B_T.split(rows), strict=True)
    return torch.cat([table_b.gather(1, ids_b.long() + 1) for table_b, ids_b in blocks])


def sum_over_turns(values_B_T: Tensor, turn_ids_B_T: Tensor) -> Tensor:
    """Add up the values of each turn's tokens, for frameworks whose rewards are per token.

        values[i,j] = sum over t with turn_ids[i,t] = j of values[i,t]

    Source: ours [O].

    Args:
        values_B_T: float, one value per token; values where `turn_ids_B_T` is -1 are ignored.
        turn_ids_B_T: integer, -1 or a 0-based turn.

    Returns:
        values_B_K: in the dtype of `values_B_T`, K one more than the largest turn id (0 if there is no turn).

    Raises:
        ValueError: shapes or dtypes don't fit, or a turn id is below -1.
    """
    check_shape("values_B_T", values_B_T, (None, None))
    check_floating("values_B_T", values_B_T)
    check_shape("turn_ids_B_T", turn_ids_B_T, tuple(values_B_T.shape))
    num_turns = _check_turn_ids(turn_ids_B_T, values_B_T.shape[0], None) + 1
    values = widen(values_B_T)
    sums = values.new_zeros(values.shape[0], num_turns + 1).scatter_add(1, turn_ids_B_T.long() + 1, values)
    return sums[:, 1:].to(values_B_T.dtype)


def _check_turn_ids(turn_ids_B_T: Tensor, num_rollouts: int, num_turns: int | None) -> int:
    """The largest turn id; raise ValueError unless all lie in -1..num_turns-1 (None: no upper end)."""
    check_shape("turn_ids_B_T", turn_ids_B_T, (num_rollouts, None))
    check_integer("turn_ids_B_T", turn_ids_B_T)
    if turn_ids_B_T.numel() == 0:
        return -1
    low, high = (int(end) for end in turn_ids_B_T.aminmax())
    if low < -1:
        raise ValueError(f"turn_ids_B_T must be -1 or a 0-based turn, got {low}")
    if num_turns is not None and high >= num_turns:
        raise ValueError(f"turn_ids_B_T must be below K = {num_turns}, got {high}")
    return high
