"""Generation in process with a `transformers` model: left-padded batches through `model.generate`.

Contexts are sorted by length into batches, so that little is padding. It gives no log-probabilities of its own: the
trainer's are exact, since it is the same model with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from gtpo.rollout.backends.base import Generation
from gtpo.rollout.settings import Sampling


class TransformersBackend:
    """Generates with an in-process model.

    Args:
        model: a causal language model with `generate`.
        pad_id: id to pad with.
        batch_size: contexts generated at a time.
    """

    def __init__(self, model: Any, *, pad_id: int, batch_size: int = 64):
        self.model = model
        self.pad_id = pad_id
        self.batch_size = batch_size
        self.max_context = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)

    def generate(
        self,
        contexts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        *,
        sampling: Sampling,
        end_ids: frozenset[int],
    ) -> list[Generation]:
        """See `Backend.generate`."""
        by_length = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
        generations: dict[int, Generation] = {}
        with _evaluating(self.model):
            for start in range(0, len(by_length), self.batch_size):
                chosen = by_length[start : start + self.batch_size]
                sampled = self._generate_batch(
                    [contexts[i] for i in chosen], max(max_new_tokens[i] for i in chosen), sampling, end_ids
                )
                for i, ids in zip(chosen, sampled, strict=True):
                    generations[i] = Generation(_cut(ids, end_ids, max_new_tokens[i]))
        return [generations[i] for i in range(len(contexts))]

    @torch.no_grad()
    def _generate_batch(
        self, contexts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling, end_ids: frozenset[int]
    ) -> list[list[int]]:
        width = max(map(len, contexts))
        ids_B_T = torch.full((len(contexts), width), self.pad_id)
        mask_B_T = torch.zeros_like(ids_B_T)
        for row, context in enumerate(contexts):
            ids_B_T[row, width - len(context) :] = torch.tensor(context)
            mask_B_T[row, width - len(context) :] = 1
        device = self.model.device
        out_B_T = self.model.generate(
            input_ids=ids_B_T.to(device),
            attention_mask=mask_B_T.to(device),
            generation_config=self._config(max_new_tokens, sampling, end_ids),
        )
        return out_B_T[:, width:].tolist()

    def _config(self, max_new_tokens: int, sampling: Sampling, end_ids: frozenset[int]) -> GenerationConfig:
        options: dict[str, Any] = {"do_sample": False}
        if not sampling.greedy:
            options = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
            }
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(end_ids),
            pad_token_id=self.pad_id,
            repetition_penalty=sampling.repetition_penalty,
            use_cache=True,
            **options,
        )


def _cut(ids: list[int], end_ids: frozenset[int], limit: int) -> tuple[int, ...]:
    """Drop what follows the first end id (padding) or the row's own limit."""
    for position, token in enumerate(ids[:limit]):
        if token in end_ids:
            return tuple(ids[: position + 1])
    return tuple(ids[:limit])


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside (no dropout, key-value cache on), the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
