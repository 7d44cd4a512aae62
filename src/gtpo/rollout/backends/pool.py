"""Several backends as one: each rollout stays on the backend on which it began, where its prefix is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from gtpo.errors import BackendError, BadAnswerError, ConfigError, ServerGoneError
from gtpo.rollout.backends.base import Backend, Generation, GenerationSession, Request
from gtpo.rollout.settings import Sampling


class BackendPool:
    """Distributes rollouts over backends of the same model; each rollout goes to the backend with the fewest running.

    A backend that is gone (`ServerGoneError`) or returns invalid answers (`BadAnswerError`) is left out for the rest of
    the batch, and its rollouts continue elsewhere. If sampling is deterministic, that does not change what is sampled.

    Args:
        backends: at least one; they sample from the same model.

    Raises:
        ConfigError: there is no backend.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        if not backends:
            raise ConfigError("a pool needs at least one backend")
        self.backends = list(backends)
        self.max_context = min(backend.max_context for backend in backends)

    @asynccontextmanager
    async def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AsyncIterator[GenerationSession]:
        """See `Backend.serve`."""
        async with AsyncExitStack() as stack:
            contexts = [
                backend.serve(rollouts, sampling=sampling, end_ids=end_ids, seed=seed) for backend in self.backends
            ]
            yield _PoolSession([await stack.enter_async_context(context) for context in contexts])


class _PoolSession:
    """One batch of rollouts."""

    def __init__(self, servers: Sequence[GenerationSession]) -> None:
        self._servers = list(servers)
        self._under_way = [0] * len(servers)
        self._lost: dict[int, BackendError] = {}
        self._place: dict[int, int] = {}

    async def generate(self, request: Request) -> Generation:
        """See `GenerationSession.generate`."""
        while True:
            place = self._place_of(request.rollout)
            try:
                return await self._servers[place].generate(request)
            except (ServerGoneError, BadAnswerError) as error:
                self._lost[place] = error
                self.finish(request.rollout)
                if len(self._lost) == len(self._servers):
                    raise

    def finish(self, rollout: int) -> None:
        """See `GenerationSession.finish`."""
        place = self._place.pop(rollout, None)
        if place is not None:
            self._under_way[place] -= 1
            self._servers[place].finish(rollout)

    def _place_of(self, rollout: int) -> int:
        if self._place.get(rollout) in self._lost:
            self.finish(rollout)
        if rollout not in self._place:
            able = [i for i in range(len(self._servers)) if i not in self._lost]
            if not able:
                raise next(iter(self._lost.values()))
            self._place[rollout] = min(able, key=lambda i: self._under_way[i])
            self._under_way[self._place[rollout]] += 1
        return self._place[rollout]
