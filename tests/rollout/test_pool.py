"""Several servers as one backend."""

from __future__ import annotations

import asyncio

import pytest

from gtpo.errors import BackendError, ConfigError, ServerGoneError
from gtpo.rollout import Sampling
from gtpo.rollout.backends import BackendPool, Generation, Request


class Scripted:
    """A backend that counts; it fails from its `fails_at`-th request on."""

    def __init__(self, max_context=100, fails_at=None, error=None):
        self.max_context, self.fails_at = max_context, fails_at
        self.error = error or ServerGoneError("gone")
        self.requests, self.finished, self.open = [], [], 0

    def serve(self, rollouts, *, sampling, end_ids, seed):
        return self

    async def __aenter__(self):
        self.open += 1
        return self

    async def __aexit__(self, *_):
        self.open -= 1

    async def generate(self, request):
        self.requests.append((request.rollout, request.turn))
        await asyncio.sleep(0.001)
        if self.fails_at is not None and len(self.requests) >= self.fails_at:
            raise self.error
        return Generation((request.rollout, request.turn))

    def finish(self, rollout):
        self.finished.append(rollout)


def run(backends, rollouts=12, turns=3):
    async def go():
        pool = BackendPool(backends)
        async with pool.serve(rollouts, sampling=Sampling(), end_ids=frozenset({0}), seed=0) as server:

            async def roll(i):
                found = [(await server.generate(Request(i, turn, [1], 4))).token_ids for turn in range(turns)]
                server.finish(i)
                return found

            return await asyncio.gather(*(roll(i) for i in range(rollouts)))

    return asyncio.run(go())


EXPECTED = [[(i, turn) for turn in range(3)] for i in range(12)]


def test_rollouts_are_spread_evenly_and_stay_where_they_began():
    backends = [Scripted(), Scripted(), Scripted()]
    assert run(backends) == EXPECTED
    for backend in backends:
        mine = {rollout for rollout, _ in backend.requests}
        assert len(mine) == 4
        assert len(backend.requests) == 12
        assert set(backend.finished) == mine
        assert backend.open == 0


def test_rollouts_of_a_lost_server_go_on_elsewhere():
    backends = [Scripted(), Scripted(fails_at=3)]
    assert run(backends) == EXPECTED
    kept = set(backends[0].requests)
    assert {(i, turn) for i in range(12) for turn in range(3)} - kept <= set(backends[1].requests[:2])
    assert len(backends[1].requests) == 6, "those under way when it failed, and none after"


def test_without_any_server_left_it_is_an_error():
    with pytest.raises(ServerGoneError, match="gone"):
        run([Scripted(fails_at=1), Scripted(fails_at=2)])
    with pytest.raises(ConfigError, match="at least one"):
        BackendPool([])


def test_a_request_that_is_refused_costs_no_server():
    refused = Scripted(fails_at=1, error=BackendError("refused"))
    with pytest.raises(BackendError, match="refused"):
        run([refused, Scripted()], rollouts=1)


def test_the_shortest_context_counts():
    assert BackendPool([Scripted(50), Scripted(70)]).max_context == 50
