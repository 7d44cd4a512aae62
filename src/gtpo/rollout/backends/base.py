"""The protocols of generation: a `Backend` is a model, a `GenerationSession` serves one batch of rollouts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from gtpo.rollout.settings import Sampling


@dataclass(frozen=True)
class Request:
    """A turn to be generated.

    Attributes:
        rollout: number of the rollout in the batch, from 0. A later context of a rollout begins with its earlier ones
            and what was sampled after them, so a server may keep what it computed.
        turn: number of the turn in its rollout, from 0.
        context: prompt, turns and observations so far, as token ids; at least one.
        max_new_tokens: maximum number of tokens to sample, at least 1.
        messages: the context as chat messages, for servers that take no token ids.
        max_repeated_tokens: number of repeated tokens at which a turn is degenerate (`gtpo.rollout.repetition`). A
            backend that sees each token ends the turn there, the others at the turn's end; 0: never.
    """

    rollout: int
    turn: int
    context: Sequence[int]
    max_new_tokens: int
    messages: Sequence[Mapping[str, Any]] = ()
    max_repeated_tokens: int = 0


def turn_seed(seed: int, request: Request) -> int:
    """The seed of one turn, in [0, 2^31), for engines that take one per request.

    Args:
        seed: the seed of the batch.
        request: the turn.
    """
    return random.Random(f"{seed} {request.rollout} {request.turn}").randrange(2**31)


@dataclass(frozen=True)
class Generation:
    """What was sampled after one context.

    Attributes:
        token_ids: the sampled ids, at least one, an end token included if one was sampled.
        logprobs: log-probability of each sampled id under the model at the temperature of sampling, before any
            truncation (top-k and the like) unless the backend says otherwise; None if it has none.
        token_exact: whether these are the ids that were sampled; False if a server returned text, tokenised here.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    token_exact: bool = True


class GenerationSession(Protocol):
    """Generates the turns of one batch of rollouts, each as soon as it is asked for."""

    async def generate(self, request: Request) -> Generation:
        """Sample after the request's context, until an end id or `max_new_tokens`.

        Raises:
            BackendError: the model is unavailable.
        """
        ...

    def finish(self, rollout: int) -> None:
        """Discard what is kept for a rollout that is over. May be called for one that never began."""
        ...


class Backend(Protocol):
    """A model that generates."""

    max_context: int
    """Maximum context length of the model, in tokens."""

    def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AbstractAsyncContextManager[GenerationSession]:
        """Serve a batch of rollouts for as long as the context lasts.

        Args:
            rollouts: number of rollouts in the batch.
            sampling: the sampling distribution.
            end_ids: ids that end a turn.
            seed: seed of the sampling. A backend whose engine has its own random number stream uses the seed only if
                the sampling is to be deterministic.
        """
        ...
