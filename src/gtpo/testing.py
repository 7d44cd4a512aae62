"""Fakes for tests of code that uses gtpo: a scripted backend and a tokenizer with another chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerFast

from gtpo.rollout.backends.base import Generation
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
        self._place: dict[tuple[int, ...], int] = {}

    def generate(
        self,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        sampling: Sampling,
        end_ids: frozenset[int],
    ) -> list[Generation]:
        """See `Backend.generate`. Turns longer than the limit are cut there."""
        generations = []
        for context, limit in zip(contexts, max_new_tokens, strict=True):
            self.contexts.append(list(context))
            prompt = next(p for p in self.scripts if tuple(context[: len(p)]) == p)
            place = self._place.get(prompt, 0)
            self._place[prompt] = place + 1
            text = self.scripts[prompt][place]
            ids = self.tokenizer.encode(text.removesuffix(self.CUT), add_special_tokens=False)
            if not text.endswith(self.CUT):
                ids.append(self.tokenizer.eos_token_id)
            ids = ids[:limit]
            generations.append(Generation(tuple(ids), tuple(-float(i) for i in ids)))
        return generations


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
