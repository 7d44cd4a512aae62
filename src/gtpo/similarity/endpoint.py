"""Similarity by an embedding model behind an OpenAI-compatible HTTP endpoint, such as vLLM's or TEI's.

The code of the rollouts is sent there. A key is sent only if its own environment variable is set.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

import torch
from torch import Tensor

from gtpo._http import retry_after_s
from gtpo.errors import ConfigError
from gtpo.similarity.base import EmbeddingSimilarity, SimilarityError

_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 30.0


class EndpointSimilarity(EmbeddingSimilarity):
    """Cosine similarity of embeddings from an endpoint. See `gtpo.similarity.base.CodeSimilarity`.

    Args:
        url: base of the API, such as `http://localhost:8000/v1`, or its full path that ends in `/embeddings`.
        model: the model's name there.
        api_key_env: name of the environment variable that holds the key; without it no key is sent.
        batch_size: texts a request.
        timeout_s: seconds that a request may take.
        retries: further tries after a failed connection, a time-out, or a status that says to try later.
        backoff_s: seconds before the first further try; doubled each time.
        cache_size: embeddings kept.

    Raises:
        ConfigError: the URL is not one of HTTP, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str = "GTPO_EMBEDDINGS_API_KEY",
        batch_size: int = 64,
        timeout_s: float = 60.0,
        retries: int = 3,
        backoff_s: float = 0.5,
        cache_size: int = 4096,
    ):
        super().__init__(cache_size)
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"embeddings endpoint {url!r}: give a URL that starts with http:// or https://")
        if batch_size < 1 or timeout_s <= 0:
            raise ConfigError(f"batch_size={batch_size}, timeout_s={timeout_s}: both must be above 0")
        if retries < 0:
            raise ConfigError(f"retries={retries}: must be 0 or more")
        base = url.rstrip("/")
        self._url = base if base.endswith("/embeddings") else f"{base}/embeddings"
        self._model, self._api_key_env = model, api_key_env
        self._batch_size, self._timeout_s = batch_size, timeout_s
        self._retries, self._backoff_s = retries, backoff_s

    def embed(self, texts: list[str]) -> Tensor:
        """Embeddings of the texts, one row a text.

        Raises:
            SimilarityError: the endpoint can't be reached, refuses, or answers with something else.
        """
        rows: list[list[float]] = []
        for start in range(0, len(texts), self._batch_size):
            batch = texts[start : start + self._batch_size]
            rows += self._vectors_in(self._post({"model": self._model, "input": batch}), len(batch))
        try:
            return torch.tensor(rows, dtype=torch.float32)
        except (ValueError, TypeError) as error:
            raise SimilarityError(f"{self._url}: embeddings of unequal length or not numbers") from error

    def _vectors_in(self, body: Any, count: int) -> list[list[float]]:
        try:
            items = sorted(body["data"], key=lambda item: item["index"])
            vectors = [item["embedding"] for item in items]
            indices = [item["index"] for item in items]
        except (KeyError, TypeError) as error:
            raise SimilarityError(f"{self._url}: not an embeddings response: {str(body)[:200]}") from error
        if indices != list(range(count)):
            raise SimilarityError(f"{self._url}: {count} texts sent, embeddings {indices[:20]} came back")
        return vectors

    def _post(self, payload: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(self._api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(payload).encode(), headers, method="POST")
        wait_s = self._backoff_s
        for tries_left in reversed(range(self._retries + 1)):
            asked_s = 0.0
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                said = error.read(500).decode(errors="replace")
                problem: SimilarityError = SimilarityError(f"{self._url}: HTTP status {error.code}: {said}")
                if error.code not in _RETRIED:
                    raise problem from error
                asked_s = retry_after_s(error.headers.get("Retry-After"))
            except (OSError, HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                problem = SimilarityError(f"{self._url}: no response ({type(error).__name__}: {reason})")
            except ValueError as error:
                raise SimilarityError(f"{self._url}: the response is not JSON") from error
            if not tries_left:
                raise problem
            time.sleep(min(max(wait_s, asked_s), _LONGEST_WAIT_S))
            wait_s *= 2
        raise AssertionError("unreachable")
