"""Chooses the server for the next request: among the servers that answer, the one with the fewest in progress.

A server that fails rests, and is then tried with one request at a time until it answers again. The rest doubles with
every failure that follows a rest; requests that fail together count as one failure. A server that asks for time (status
429) gets it, which does not count as a failure. This module does not depend on the kind of request.
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
        url: base URL.
        under_way: number of requests in progress.
        failures: number of consecutive failures; simultaneous ones count once.
        rests_until: time on the monotonic clock until which it gets no requests.
        failed_at: time of the last failure.
        answered: whether it has ever answered.
    """

    url: str
    under_way: int = 0
    failures: int = 0
    rests_until: float = 0.0
    failed_at: float = -1.0
    answered: bool = False


class Endpoints:
    """Several equivalent servers.

    Args:
        urls: base URLs, at least one.
        concurrency: maximum number of requests at once per server.
    """

    def __init__(self, urls: Sequence[str], concurrency: int) -> None:
        self.all = [Endpoint(url) for url in urls]
        self._concurrency = concurrency
        self._changed = threading.Condition()

    def take(self, given_up: threading.Event, avoid: Endpoint | None = None) -> Endpoint | None:
        """Waits for room and returns a server for one request; None if `given_up` is set.

        Args:
            given_up: set by another thread to stop waiting.
            avoid: the server that has just failed this request; it is used only if all others rest.
        """
        with self._changed:
            while not given_up.is_set():
                now = time.monotonic()
                awake = [one for one in self.all if one.rests_until <= now]
                others = [one for one in awake if one is not avoid] or awake
                able = [one for one in others if one.under_way < (1 if one.failures else self._concurrency)]
                if able:  # a server that has failed is tried first, with one request, so that it can recover
                    chosen = min(able, key=lambda one: (not one.failures, one.under_way))
                    chosen.under_way += 1
                    return chosen
                wakes = [one.rests_until - now for one in self.all if one.rests_until > now]
                self._changed.wait(min([_LOOK_S, *wakes]))
            return None

    def done(self, endpoint: Endpoint) -> None:
        """Records that the server answered."""
        with self._changed:
            endpoint.under_way -= 1
            endpoint.failures, endpoint.rests_until, endpoint.answered = 0, 0.0, True
            self._changed.notify_all()

    def failed(self, endpoint: Endpoint, began: float, wait_s: float = 0.0) -> None:
        """Records that the server did not answer, or asked to wait.

        Args:
            endpoint: the server.
            began: start of the request on the monotonic clock. A request that was already in progress at an earlier
                failure does not count again.
            wait_s: the wait in seconds that the server asked for; such a request is not a failure.
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
        """Records that the request ended without a result, for a reason other than the server."""
        with self._changed:
            endpoint.under_way -= 1
            self._changed.notify_all()
