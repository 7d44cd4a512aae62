"""The Protocols behind which a model generates: a `Backend` is a model, a `Server` is one batch of rollouts on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from gtpo.rollout.settings import Sampling


@dataclass(frozen=True)
class Generation:
    """What was sampled after one context.

    Attributes:
        token_ids: the sampled ids, an end token included if one was sampled.
        logprobs: log-probability of each sampled id under the model at the temperature of sampling, before any
            truncation (top-k and the like); None if the backend has none.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None


class Server(Protocol):
    """Generates the turns of one batch of rollouts, each as soon as it is asked for."""

    async def generate(self, rollout: int, context: Sequence[int], max_new_tokens: int) -> Generation:
        """Sample after `context` until an end id or `max_new_tokens`.

        Args:
            rollout: its number in the batch, from 0. A later context of a rollout begins with its earlier ones and
                what was sampled after them, so a server may keep what it computed.
            context: prompt, turns and observations so far, as token ids; at least one.
            max_new_tokens: at least 1.
        """
        ...

    def finish(self, rollout: int) -> None:
        """The rollout is over: what is kept for it can go. May be called for one that never began."""
        ...


class Backend(Protocol):
    """A model that generates."""

    max_context: int
    """Longest context the model takes, in tokens."""

    def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AbstractAsyncContextManager[Server]:
        """Serve a batch of rollouts for as long as the context lasts.

        Args:
            rollouts: how many there will be.
            sampling: the sampling distribution.
            end_ids: ids that end a turn.
            seed: of the sampling.
        """
        ...
