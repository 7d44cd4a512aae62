"""Random similarities: a negative control, to test whether the similarity of code matters for training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gtpo.similarity.base import distinct


class RandomSimilarity:
    """Uniform on [0, 1] as a function of the two texts: the same pair gets the same number in every process and run.

    See `gtpo.similarity.base.CodeSimilarity`. As there, equal texts get 1 and blank ones 0, so a failed rollout with
    the code of a success always has similarity 1.
    """

    def matrix(self, texts: Sequence[str]) -> Tensor:
        """See `CodeSimilarity.matrix`."""
        unique, places = distinct(texts)
        matrix = torch.zeros(len(unique), len(unique))
        for i, first in enumerate(unique):
            if not first.strip():
                continue
            matrix[i, i] = 1.0
            for j, second in enumerate(unique[:i]):
                if second.strip():
                    matrix[i, j] = matrix[j, i] = _uniform(*sorted((first, second)))
        return matrix[places][:, places]


def _uniform(first: str, second: str) -> float:
    text = f"{len(first)} {first}{second}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big") / 2**56
