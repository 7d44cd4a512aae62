"""Fakes for tests of code that uses gtpo: a scripted backend and a tokenizer with another chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerFast

from gtpo.rollout.backends.base import Generation, Request
from gtpo.rollout.settings import Sampling


class ScriptedBackend:
    """Says what it is told to: for each prompt a list of turns, in order.

    Args:
        tokenizer: encodes the turns.
        scripts: for each prompt's ids (as a tuple) the texts of its turns; a text without its end token, written
            as `text + CUT`, is one that ran into the limit.
        max_context: the model's context length.
    """

    CUT = "\0cut"

    def __init__(self, tokenizer: Any, scripts: Mapping[tuple[int, ...], Sequence[str]], *, max_context: int = 2**20):
        self.tokenizer = tokenizer
        self.scripts = {prompt: list(turns) for prompt, turns in scripts.items()}
        self.max_context = max_context
        self.contexts: list[list[int]] = []
        self.finished: list[int] = []

    @asynccontextmanager
    async def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AsyncIterator[ScriptedBackend]:
        """See `Backend.serve`."""
        yield self

    async def generate(self, request: Request) -> Generation:
        """See `Server.generate`. Turns longer than the limit are cut there."""
        context = list(request.context)
        self.contexts.append(context)
        text = next(turns for prompt, turns in self.scripts.items() if tuple(context[: len(prompt)]) == prompt)[
            request.turn
        ]
        ids = self.tokenizer.encode(text.removesuffix(self.CUT), add_special_tokens=False)
        if not text.endswith(self.CUT):
            ids.append(self.tokenizer.eos_token_id)
        ids = ids[: request.max_new_tokens]
        return Generation(tuple(ids), tuple(-float(i) for i in ids))

    def finish(self, rollout: int) -> None:
        """See `Server.finish`."""
        self.finished.append(rollout)


def with_chat_template(
    tokenizer: PreTrainedTokenizerFast, template: str, *, end: str, specials: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer with another chat template, further special tokens, and `end` as its end of turn."""
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": [AddedToken(token) for token in specials]})
    changed.eos_token = end
    changed.chat_template = template
    return changed
