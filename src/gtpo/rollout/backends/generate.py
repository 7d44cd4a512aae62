"""Generation with `generate` of transformers, for models whose state the rows of `KVRowCache` can't hold.

Layers with sliding windows, with convolutions or with linear attention keep their own state, which `generate` creates
and fills. Turns are generated one at a time, and each computes its whole context: slower than the row cache by a factor
of about the number of concurrent rollouts. The sampled tokens, the random numbers and the log-probabilities are as in
`TransformersBackend`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from gtpo.rollout.backends.base import Generation, Request
from gtpo.rollout.backends.sampling import Sampler, uniform_numbers
from gtpo.rollout.repetition import LONGEST_PERIOD, degenerate_at
from gtpo.rollout.settings import Sampling

_LOOK_EVERY = 16


class GenerateSession:
    """A `GenerationSession` that generates the turns of one batch of rollouts one after another.

    Args:
        model: a causal language model.
        sampling: the sampling distribution.
        end_ids: ids that end a turn.
        seed: seed of the sampling.
    """

    def __init__(self, model: Any, sampling: Sampling, end_ids: frozenset[int], seed: int) -> None:
        self._model, self._end_ids, self._seed = model, end_ids, seed
        self._sampler = Sampler(sampling)
        self._uniforms: dict[int, Iterator[float]] = {}
        self._turn = asyncio.Lock()

    async def generate(self, request: Request) -> Generation:
        """See `GenerationSession.generate`."""
        async with self._turn:
            await asyncio.sleep(0)  # so that tools can start, and what was cancelled is not computed
            if request.rollout not in self._uniforms:
                self._uniforms[request.rollout] = uniform_numbers(self._seed, request.rollout)
            chosen = _Chosen(self._sampler, self._uniforms[request.rollout])
            ids_1_T = torch.tensor([list(request.context)], device=self._model.device)
            config = GenerationConfig(
                max_new_tokens=request.max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(self._end_ids),
                pad_token_id=min(self._end_ids),
            )
            own, self._model.generation_config = self._model.generation_config, config  # its defaults would be merged
            try:
                with torch.no_grad():
                    self._model.generate(
                        ids_1_T,
                        attention_mask=torch.ones_like(ids_1_T),
                        generation_config=config,
                        logits_processor=LogitsProcessorList([chosen]),
                        stopping_criteria=StoppingCriteriaList([_Degenerate(chosen, request.max_repeated_tokens)]),
                    )
            finally:
                self._model.generation_config = own
        limit = request.max_repeated_tokens
        end = degenerate_at(chosen.tokens, limit) if limit else None
        return Generation(tuple(chosen.tokens[:end]), tuple(chosen.logprobs[:end]))

    def finish(self, rollout: int) -> None:
        """See `GenerationSession.finish`."""
        self._uniforms.pop(rollout, None)


class _Chosen(LogitsProcessor):
    """Samples as `Sampler` does, and leaves `generate` only the sampled token."""

    def __init__(self, sampler: Sampler, uniforms: Iterator[float]) -> None:
        self._sampler, self._uniforms = sampler, uniforms
        self.tokens: list[int] = []
        self.logprobs: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        greedy, contexts = self._sampler.sampling.greedy, self._sampler.needs_contexts
        numbers = [0.0 if greedy else next(self._uniforms)]
        tokens, logprobs = self._sampler.sample(scores, numbers, input_ids.tolist() if contexts else ())
        self.tokens += tokens
        self.logprobs += logprobs
        only = torch.full_like(scores, -torch.inf)
        only[0, tokens[0]] = 0.0
        return cast(torch.FloatTensor, only)


class _Degenerate(StoppingCriteria):
    """Ends a turn that repeats the same few tokens over and over; checked every few tokens."""

    def __init__(self, chosen: _Chosen, limit: int) -> None:
        self._chosen, self._limit = chosen, limit

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        tokens = self._chosen.tokens
        over = False
        if self._limit and len(tokens) % _LOOK_EVERY == 0:
            over = degenerate_at(tokens[-(self._limit + LONGEST_PERIOD + _LOOK_EVERY) :], self._limit) is not None
        return cast(torch.BoolTensor, torch.full((1,), over, device=input_ids.device, dtype=torch.bool))
