"""Which of several servers gets the next request: the one with the fewest under way among those that answer.

A server that fails rests, and then is tried with one request at a time until it answers again. The rest doubles with
every failure that follows a rest; requests that fail together count as one. One that asks for time (status 429) gets
it, and nothing is held against it. Nothing here knows what a request is.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

BACKOFF_S = 0.5
LONGEST_REST_S = 30.0
_LOOK_S = 0.5
_JITTER = random.Random()


@dataclass(eq=False)
class Endpoint:
    """A server.

    Attributes:
        url: its base.
        under_way: requests it has now.
        failures: in a row, those of one time counted once.
        rests_until: on the monotonic clock; before, it gets nothing.
        failed_at: when it last did.
        answered: whether it ever did.
    """

    url: str
    under_way: int = 0
    failures: int = 0
    rests_until: float = 0.0
    failed_at: float = -1.0
    answered: bool = False


class Endpoints:
    """Servers that do the same.

    Args:
        urls: their bases, at least one.
        concurrency: requests that each of them has at once, at most.
    """

    def __init__(self, urls: Sequence[str], concurrency: int) -> None:
        self.all = [Endpoint(url) for url in urls]
        self._concurrency = concurrency
        self._changed = threading.Condition()

    def take(self, given_up: threading.Event, avoid: Endpoint | None = None) -> Endpoint | None:
        """A server for one request, as soon as there is room; None if `given_up` is set.

        Args:
            given_up: set by another thread to stop waiting.
            avoid: the one that has just failed this request; it is taken only if no other is awake.
        """
        with self._changed:
            while not given_up.is_set():
                now = time.monotonic()
                awake = [one for one in self.all if one.rests_until <= now]
                others = [one for one in awake if one is not avoid] or awake
                able = [one for one in others if one.under_way < (1 if one.failures else self._concurrency)]
                if able:  # one that has failed is tried first, with one request, so that it can come back
                    chosen = min(able, key=lambda one: (not one.failures, one.under_way))
                    chosen.under_way += 1
                    return chosen
                wakes = [one.rests_until - now for one in self.all if one.rests_until > now]
                self._changed.wait(min([_LOOK_S, *wakes]))
            return None

    def done(self, endpoint: Endpoint) -> None:
        """It answered."""
        with self._changed:
            endpoint.under_way -= 1
            endpoint.failures, endpoint.rests_until, endpoint.answered = 0, 0.0, True
            self._changed.notify_all()

    def failed(self, endpoint: Endpoint, began: float, wait_s: float = 0.0) -> None:
        """It did not answer, or asked to be left alone for a while.

        Args:
            endpoint: the server.
            began: when the request did, on the monotonic clock. One that was under way when the server failed before
                says nothing new.
            wait_s: what it asked for; such a request is no failure.
        """
        with self._changed:
            endpoint.under_way -= 1
            now = time.monotonic()
            if wait_s > 0:
                rest_s = min(wait_s, LONGEST_REST_S)
            else:
                if began > endpoint.failed_at:
                    endpoint.failures += 1
                    endpoint.failed_at = now
                rest_s = min(BACKOFF_S * 2 ** (endpoint.failures - 1), LONGEST_REST_S)
            rest_s *= _JITTER.uniform(0.75, 1.25)
            endpoint.rests_until = max(endpoint.rests_until, now + rest_s)
            self._changed.notify_all()

    def drop(self, endpoint: Endpoint) -> None:
        """The request came to nothing through no fault of the server."""
        with self._changed:
            endpoint.under_way -= 1
            self._changed.notify_all()
