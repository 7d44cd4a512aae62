"""The protocol of code similarities, and the shared code of those that use vectors.

A group's similarities are one square matrix: it is cheap once each distinct text has a vector, and it is what
`gtpo.functional.shaped_accuracy` takes.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gtpo._text import well_formed
from gtpo.errors import GtpoError


class SimilarityError(GtpoError, RuntimeError):
    """A code similarity can't be computed, because its model or its endpoint failed."""


class CodeSimilarity(Protocol):
    """Similarity of programs, for shaping the reward of failed rollouts (sim of docs/algorithm.md)."""

    def matrix(self, texts: Sequence[str]) -> Tensor:
        """The similarity of each pair of texts.

        Args:
            texts: N programs, such as the code of a group's rollouts; broken or blank ones are fine.

        Returns:
            A symmetric float32 tensor of shape (N, N) on the CPU, entries in [0, 1]: 1 for equal texts, 0
            wherever one of the two is blank (also between two blank texts, so the diagonal is 0 there).
        """
        ...


def cosine_matrix(vectors_N_D: Tensor) -> Tensor:
    """Cosine similarity of each pair of rows, clipped to [0, 1]; 0 wherever a row is zero.

    Returns:
        A float32 tensor (N, N), exactly symmetric, with exactly 1 or 0 on its diagonal.

    Raises:
        ValueError: the vectors are not a matrix.
    """
    if vectors_N_D.ndim != 2:
        raise ValueError(f"vectors of shape {tuple(vectors_N_D.shape)}; give a matrix, one row per text")
    vectors = vectors_N_D.detach().to("cpu", torch.float64)
    norms = vectors.norm(dim=1, keepdim=True)
    unit = vectors / norms.where(norms > 0, torch.ones_like(norms))
    cosine = unit @ unit.T
    cosine = ((cosine + cosine.T) / 2).clamp(0, 1)
    cosine.diagonal().copy_((norms[:, 0] > 0).to(cosine))
    return cosine.float()


def distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct texts in order of appearance, and for each text its index among them."""
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(places), torch.tensor([places[text] for text in texts], dtype=torch.long)


class EmbeddingSimilarity(ABC):
    """Cosine similarity of embeddings; a subclass defines how to embed. Safe to use from any thread.

    Embeddings of the `cache_size` last used texts are cached, by a hash of the whole text. Blank texts are not
    embedded.
    """

    def __init__(self, cache_size: int = 4096):
        self._cache_size = cache_size
        self._vectors: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @abstractmethod
    def embed(self, texts: list[str]) -> Tensor:
        """Embeddings of distinct texts that are not blank, one row per text.

        Raises:
            SimilarityError: the model or its endpoint failed.
        """

    def matrix(self, texts: Sequence[str]) -> Tensor:
        """See `CodeSimilarity.matrix`.

        Raises:
            SimilarityError: the model or its endpoint failed, or did not return one finite vector per text.
        """
        unique, places = distinct([well_formed(text) for text in texts])
        written = [text for text in unique if text.strip()]
        if not written:
            return torch.zeros(len(texts), len(texts))
        with self._lock:
            vectors = self._cached(written)
        rows = {text: i for i, text in enumerate(written)}
        blank = torch.zeros_like(vectors[0])
        stacked = torch.stack([vectors[rows[text]] if text in rows else blank for text in unique])
        return cosine_matrix(stacked)[places][:, places]

    def _cached(self, texts: list[str]) -> list[Tensor]:
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        found = {key: self._vectors[key] for key in keys if key in self._vectors}
        missing = [(key, text) for key, text in zip(keys, texts, strict=True) if key not in found]
        if missing:
            rows = self.embed([text for _, text in missing]).detach().to("cpu", torch.float32)
            if rows.ndim != 2 or len(rows) != len(missing):
                raise SimilarityError(f"{len(missing)} texts gave embeddings of shape {tuple(rows.shape)}")
            if not torch.isfinite(rows).all():
                raise SimilarityError("the embeddings hold values that are not finite")
            found |= {key: row for (key, _), row in zip(missing, rows, strict=True)}
        for key in keys:
            self._vectors[key] = found[key]
            self._vectors.move_to_end(key)
        while len(self._vectors) > self._cache_size:
            self._vectors.popitem(last=False)
        return [found[key] for key in keys]
