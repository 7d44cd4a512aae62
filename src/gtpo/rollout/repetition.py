"""Degenerate repetition: a turn that says the same few tokens over and over."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_PERIOD = 32
"""Tokens of the longest block whose repetition is seen."""


class RepetitionWatch:
    """Told the tokens of a turn one by one, says when it has become degenerate.

    A turn is degenerate once its last `limit` tokens all equal the token p places before, for one p of at most
    `LONGEST_PERIOD`; so a block of p tokens has then stood there limit / p + 1 times.

    Args:
        limit: repeated tokens that are too many; 0 never is.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._recent: list[int] = []
        self._runs = [0] * (LONGEST_PERIOD + 1)

    def push(self, token: int) -> bool:
        """Whether the turn is degenerate now."""
        if not self._limit:
            return False
        recent, runs = self._recent, self._runs
        for period in range(1, len(recent) + 1):
            runs[period] = runs[period] + 1 if recent[-period] == token else 0
        recent.append(token)
        del recent[:-LONGEST_PERIOD]
        return max(runs) >= self._limit


def degenerate_at(tokens: Iterable[int], limit: int) -> int | None:
    """Number of tokens after which a turn is degenerate, or None."""
    watch = RepetitionWatch(limit)
    return next((count for count, token in enumerate(tokens, 1) if watch.push(token)), None)
