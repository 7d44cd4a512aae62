"""The Protocol behind which a model generates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gtpo.rollout.settings import Sampling


@dataclass(frozen=True)
class Generation:
    """What was sampled after one context.

    Attributes:
        token_ids: the sampled ids, an end token included if one was sampled.
        logprobs: log-probability of each sampled id under the sampling policy, or None if the backend has none.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None


class Backend(Protocol):
    """Generates one turn for each of several contexts."""

    max_context: int
    """Longest context the model takes, in tokens."""

    def generate(
        self,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        sampling: Sampling,
        end_ids: frozenset[int],
    ) -> list[Generation]:
        """Sample after each context until an end id or its own number of new tokens; order kept."""
        ...
