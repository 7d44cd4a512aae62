"""Similarity by an embedding model of sentence-transformers, run in this process.

The model is loaded when the first matrix is requested. The paper's authors use a closed embedding model; which
open model comes closest to it is not known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gtpo.errors import ConfigError
from gtpo.similarity.base import EmbeddingSimilarity, SimilarityError


class SentenceTransformerSimilarity(EmbeddingSimilarity):
    """Cosine similarity of embeddings. See `gtpo.similarity.base.CodeSimilarity`.

    Args:
        model: name or folder of a sentence-transformers model. Text beyond its maximum length is truncated by the
            model.
        device: where it runs, such as "cpu" or "cuda:0"; None leaves it to sentence-transformers.
        batch_size: number of texts embedded at once.
        cache_size: number of embeddings kept.

    Raises:
        ConfigError: sentence-transformers is not installed.
    """

    def __init__(self, model: str, *, device: str | None = None, batch_size: int = 32, cache_size: int = 4096):
        super().__init__(cache_size)
        try:
            import sentence_transformers
        except ImportError as error:
            raise ConfigError(
                "similarity by sentence-transformers needs an extra: pip install 'gtpo[embeddings]'"
            ) from error
        self._load = lambda: sentence_transformers.SentenceTransformer(model, device=device)
        self._name, self._batch_size = model, batch_size
        self._model: Any = None

    def embed(self, texts: list[str]) -> Tensor:
        """Embeddings of the texts, one row per text."""
        if self._model is None:
            try:
                self._model = self._load()
            except (OSError, ValueError) as error:
                raise SimilarityError(f"can't load the embedding model {self._name!r}: {error}") from error
        rows = self._model.encode(texts, batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False)
        return torch.as_tensor(rows)
