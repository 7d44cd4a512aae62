"""From logits to tokens: transformers' own filters, and one stream of random numbers per rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from gtpo.errors import ModelError
from gtpo.rollout.settings import Sampling

_CHUNK = 256


class Sampler:
    """Samples one token for each row by inverting the distribution's cumulative sum.

    Args:
        sampling: the sampling distribution.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._penalty = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._penalty.append(logits_process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        self._filters = LogitsProcessorList()
        if not sampling.greedy:
            if sampling.top_k:
                self._filters.append(logits_process.TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._filters.append(logits_process.TopPLogitsWarper(sampling.top_p))
            if sampling.min_p is not None:
                self._filters.append(logits_process.MinPLogitsWarper(sampling.min_p))

    @property
    def needs_contexts(self) -> bool:
        """Whether the distribution depends on which tokens a context holds."""
        return bool(self._penalty)

    def sample(
        self, logits_R_V: Tensor, uniforms: Sequence[float], contexts: Sequence[Sequence[int]] = ()
    ) -> tuple[list[int], list[float]]:
        """One token per row, and its log-probability at the sampling temperature, before any truncation.

        Args:
            logits_R_V: next-token logits of R rows, any floating dtype.
            uniforms: a number in [0, 1) per row; not used when greedy.
            contexts: the ids so far of each row, if `needs_contexts`.

        Raises:
            ModelError: a row's logits are not finite.
        """
        scores_R_V = logits_R_V.float()
        if self.needs_contexts:
            scores_R_V = self._penalty(cast(Any, _rectangle(contexts, scores_R_V.device)), cast(Any, scores_R_V))
        if self.sampling.greedy:
            chosen_R = scores_R_V.argmax(-1)
        else:
            scores_R_V = scores_R_V / self.sampling.temperature
            probabilities_R_V = self._filters(cast(Any, None), cast(Any, scores_R_V)).softmax(-1)
            cumulative_R_V = probabilities_R_V.double().cumsum(-1)
            numbers_R = torch.tensor(uniforms, dtype=torch.float64, device=scores_R_V.device)
            chosen_R = torch.searchsorted(
                cumulative_R_V, (numbers_R * cumulative_R_V[:, -1]).unsqueeze(-1), right=True
            ).squeeze(-1)
            chosen_R = chosen_R.clamp(max=scores_R_V.shape[-1] - 1)  # NaN sorts past the end; it is refused below
        total_R = scores_R_V.logsumexp(-1)
        if not bool(total_R.isfinite().all()):
            raise ModelError(
                "the model's logits are not finite (NaN or infinity): its weights may have diverged. Resume from an "
                "earlier checkpoint with a lower learning_rate, or check the model with --dtype float32"
            )
        chosen_logprobs_R = scores_R_V.gather(-1, chosen_R.unsqueeze(-1)).squeeze(-1) - total_R
        return chosen_R.tolist(), chosen_logprobs_R.tolist()


def _rectangle(contexts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """The contexts as one tensor; shorter ones repeat their last id, which does not change a repetition penalty."""
    width = max(map(len, contexts))
    return torch.tensor([[*ids, *[ids[-1]] * (width - len(ids))] for ids in contexts], device=device)


def uniform_numbers(seed: int, rollout: int) -> Iterator[float]:
    """Numbers in [0, 1) for one rollout of a batch, independent of the other rollouts."""
    mixed = torch.Generator().manual_seed(seed)
    high, low = torch.randint(0, 2**31, (2,), generator=mixed).tolist()
    own = torch.Generator().manual_seed((high << 32 | low) + rollout * 0x9E3779B97F4A7C15 & (1 << 63) - 1)
    while True:
        yield from torch.rand(_CHUNK, generator=own, dtype=torch.float64).tolist()
