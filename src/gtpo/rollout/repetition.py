"""Degenerate repetition: a turn that repeats the same few tokens over and over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST_PERIOD = 32
"""Length in tokens of the longest block whose repetition is detected."""


def degenerate_at(tokens: Sequence[int], limit: int) -> int | None:
    """Number of tokens after which a turn is degenerate, or None.

    A turn is degenerate once each of its last `limit` tokens equals the token p places before it, for one p of at most
    `LONGEST_PERIOD`. A block of p tokens has then occurred limit / p + 1 times.

    Args:
        tokens: the turn.
        limit: number of repeated tokens at which a turn is degenerate; 0: never.
    """
    if not limit or len(tokens) <= limit:
        return None
    ids = np.asarray(tokens)
    found = [
        end + period
        for period in range(1, min(LONGEST_PERIOD, len(ids) - limit) + 1)
        if (end := _first_run(ids[period:], ids[:-period], limit)) is not None
    ]
    return min(found, default=None)


def _first_run(ones: np.ndarray, others: np.ndarray, length: int) -> int | None:
    """Number of entries up to the end of the first run of `length` equal ones, or None."""
    if not (ones[length - 1 :: length] == others[length - 1 :: length]).any():  # every run covers one of these places
        return None
    equal = ones == others
    sums = np.concatenate([[0], np.cumsum(equal)])
    ends = np.flatnonzero(sums[length:] - sums[:-length] == length)
    return int(ends[0]) + length if len(ends) else None
