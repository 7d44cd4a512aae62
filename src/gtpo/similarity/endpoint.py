"""Similarity by an embedding model behind an OpenAI-compatible HTTP endpoint, such as vLLM's or TEI's.

The code of the rollouts is sent there. An API key is sent only to the host for which it was given (`gtpo._http`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import torch
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_before_delay,
    wait_exponential,
    wait_random,
)
from torch import Tensor

from gtpo._http import (
    ANSWER_BYTES,
    AnswerTooLargeError,
    ask,
    bearer_headers,
    is_this_machine,
    key_for,
    parse_url,
    retry_after_s,
)
from gtpo.errors import ConfigError
from gtpo.similarity.base import EmbeddingSimilarity, SimilarityError

_RETRIED = {408, 425, 429}
"""Statuses below 500 that ask the client to try again later."""
_LONGEST_WAIT_S = 8.0


class _TryLaterError(SimilarityError):
    """A failure that a retry may fix, after `wait_s` seconds or more."""

    def __init__(self, message: str, wait_s: float = 0.0):
        super().__init__(message)
        self.wait_s = wait_s


class EndpointSimilarity(EmbeddingSimilarity):
    """Cosine similarity of embeddings from an endpoint. See `gtpo.similarity.base.CodeSimilarity`.

    A request that finds no server, or one that is starting or overloaded (status 408, 425, 429, 5xx), is retried after
    growing waits with jitter, or when the server's `Retry-After` says. Redirects are not followed.

    Args:
        url: base URL of the API, such as `http://localhost:8000/v1`, or its full URL that ends in `/embeddings`.
        model: the model's name there.
        api_key_env: name of the environment variable with the key for this URL. None: `OPENAI_API_KEY` if the host is
            api.openai.com, else no key.
        batch_size: number of texts per request.
        timeout_s: seconds that a request may take, from its connection to the last byte of the answer.
        server_timeout_s: seconds of retrying before that is an error; 0: one try.
        backoff_s: seconds before the second try, plus up to as many at random; doubled each time up to 8.
        cache_size: number of embeddings kept.

    Raises:
        ConfigError: the URL is not an HTTP URL, a number is out of range, `api_key_env` is not set, or its key would go
            over plain http to another machine.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        batch_size: int = 64,
        timeout_s: float = 60.0,
        server_timeout_s: float = 120.0,
        backoff_s: float = 0.5,
        cache_size: int = 4096,
    ):
        super().__init__(cache_size)
        if batch_size < 1 or timeout_s <= 0:
            raise ConfigError(f"batch_size={batch_size}, timeout_s={timeout_s}: both must be above 0")
        if server_timeout_s < 0 or backoff_s < 0:
            raise ConfigError(f"server_timeout_s={server_timeout_s}, backoff_s={backoff_s}: both must be at least 0")
        base = url.rstrip("/")
        self._url = base if base.endswith("/embeddings") else f"{base}/embeddings"
        option = "similarity endpoint"
        parsed = parse_url(self._url, option=option)
        headers = bearer_headers(self._url, key_for(self._url, api_key_env, option=option), option=option)
        self._headers, self._timeout_s = {"Accept": "application/json", **headers}, timeout_s
        self._trust_env = not is_this_machine(parsed)  # a proxy of the environment is for other machines
        self._model, self._batch_size = model, batch_size
        self._server_timeout_s = server_timeout_s
        self._backoff = wait_exponential(backoff_s, max=_LONGEST_WAIT_S) + wait_random(0, backoff_s)
        self._length: int | None = None

    def embed(self, texts: list[str]) -> Tensor:
        """Embeddings of the texts, one row per text.

        Raises:
            SimilarityError: the endpoint is unavailable, refuses, or answers with something other than one finite
                vector per text, of the same length as before.
        """
        rows: list[list[float]] = []
        for start in range(0, len(texts), self._batch_size):
            batch = texts[start : start + self._batch_size]
            rows += self._vectors_in(self._post({"model": self._model, "input": batch}), len(batch))
        try:
            vectors = torch.tensor(rows, dtype=torch.float32)
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            raise SimilarityError(f"{self._url}: embeddings of unequal length or not numbers") from error
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise SimilarityError(f"{self._url}: embeddings of shape {tuple(vectors.shape)}, not one vector per text")
        if not torch.isfinite(vectors).all():
            raise SimilarityError(f"{self._url}: the embeddings hold values that are not finite")
        if self._length not in (None, vectors.shape[1]):
            raise SimilarityError(
                f"{self._url}: embeddings have length {vectors.shape[1]}, but had {self._length} before; was the model "
                f"{self._model!r} replaced there?"
            )
        self._length = vectors.shape[1]
        return vectors

    def _vectors_in(self, body: Any, count: int) -> list[list[float]]:
        try:
            items = sorted(body["data"], key=lambda item: item["index"])
            vectors = [item["embedding"] for item in items]
            indices = [item["index"] for item in items]
        except (KeyError, TypeError) as error:
            raise SimilarityError(f"{self._url}: not an embeddings response: {str(body)[:200]}") from error
        if indices != list(range(count)):
            raise SimilarityError(f"{self._url}: {count} texts were sent, but embeddings {indices[:20]} came back")
        return vectors

    def _post(self, payload: Mapping[str, Any]) -> Any:
        retrying = Retrying(
            retry=retry_if_exception_type(_TryLaterError),
            wait=self._wait_s,
            stop=stop_before_delay(self._server_timeout_s),
        )
        try:
            return retrying(self._ask, payload)
        except RetryError as error:
            last = error.last_attempt
            tried = f"{last.attempt_number} tries within {self._server_timeout_s:g} s"
            raise SimilarityError(f"{last.exception()} ({tried}); is the server running?") from last.exception()

    def _wait_s(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        return max(self._backoff(state), failure.wait_s if isinstance(failure, _TryLaterError) else 0.0)

    def _ask(self, payload: Mapping[str, Any]) -> Any:
        try:
            response = ask(
                "POST",
                self._url,
                timeout_s=self._timeout_s,
                document=payload,
                headers=self._headers,
                trust_env=self._trust_env,
                most_bytes=ANSWER_BYTES,
            )
        except AnswerTooLargeError as error:
            raise SimilarityError(f"{self._url}: {error}") from error
        except httpx.RequestError as error:
            raise _TryLaterError(f"{self._url}: no response ({type(error).__name__}: {error})") from error
        status = response.status_code
        if 300 <= status < 400 and "Location" in response.headers:
            target = response.headers.get("Location")
            raise SimilarityError(f"{self._url}: HTTP status {status}, a redirect to {target}; give that URL itself")
        if status != 200:
            problem = f"{self._url}: HTTP status {status}: {response.text[:500]}"
            if status in _RETRIED or status >= 500:
                raise _TryLaterError(problem, retry_after_s(response.headers.get("Retry-After")))
            raise SimilarityError(problem)
        try:
            return response.json()
        except ValueError as error:
            raise SimilarityError(f"{self._url}: the response is not JSON") from error
