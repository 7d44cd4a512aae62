"""When a turn is degenerate, against the definition read literally."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gtpo.rollout.repetition import LONGEST_PERIOD, degenerate_at


def literally(tokens, limit):
    for end in range(1, len(tokens) + 1):
        for period in range(1, LONGEST_PERIOD + 1):
            start = end - limit
            if start >= period and all(tokens[i] == tokens[i - period] for i in range(start, end)):
                return end
    return None


@given(
    st.lists(st.integers(0, 2), max_size=12),
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_it_is_what_the_definition_says(before, block, times, limit):
    tokens = before + block * times
    assert degenerate_at(tokens, limit) == literally(tokens, limit)


def test_a_block_that_is_too_long_is_not_seen():
    assert degenerate_at([*range(LONGEST_PERIOD)] * 9, 100) == LONGEST_PERIOD + 100
    assert degenerate_at([*range(LONGEST_PERIOD + 1)] * 9, 100) is None


def test_no_limit_never_ends_a_turn():
    assert degenerate_at([1] * 10_000, 0) is None
