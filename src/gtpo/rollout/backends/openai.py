"""Generation on a server that speaks OpenAI's HTTP API: vLLM's, or any other.

Against vLLM (`dialect="vllm"`) contexts go as token ids and sampled ids come back, so the rollouts are exact and can be
trained on. Another server (`dialect="openai"`) gives text only, which is tokenised here; such a generation says that it
is not exact. With `api="chat"` the server renders the conversation itself, from messages; that is never exact.

A request that finds no server, or one that is starting or overloaded, is tried again after growing waits, until the
server has not answered anybody for `server_timeout_s`.
"""

from __future__ import annotations

import asyncio
import functools
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from gtpo._http import bearer_headers, parse_url
from gtpo.errors import BackendError, ConfigError, ServerGoneError
from gtpo.rollout.backends.base import Generation, GenerationSession, Request
from gtpo.rollout.settings import Sampling

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0
_SAID_CHARS = 500
_RELOADS = 5
"""Times that one request may find the model gone."""
_CONNECTIONS = 16
"""Of one HTTP client: httpx looks at all of a client's connections for each request."""


def until_answered(ask: Callable[[], httpx.Response], server_timeout_s: float, otherwise: str) -> httpx.Response:
    """Ask until there is an answer that is about the request, and not about a server that is starting or overloaded.

    Args:
        ask: sends the request.
        server_timeout_s: how long to go on.
        otherwise: what is said if there is none, before the cause.

    Raises:
        ServerGoneError: there was none.
    """
    deadline, wait_s = time.monotonic() + server_timeout_s, _FIRST_WAIT_S
    while True:
        try:
            answer = ask()
            if answer.status_code not in _PASSING:
                return answer
            cause = f"HTTP status {answer.status_code}: {answer.text[:_SAID_CHARS]}"
        except httpx.TransportError as error:
            cause = f"{type(error).__name__}: {error}"
        if time.monotonic() + wait_s > deadline:
            raise ServerGoneError(f"{otherwise} ({cause})")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


class OpenAIBackend:
    """Generates on a server.

    Args:
        base_url: with its version, such as `http://localhost:8000/v1`.
        model: the name under which the server knows the model; by default the first one it lists.
        tokenizer: of that model. It encodes what a server gives as text.
        dialect: `vllm` (ids go and come) or `openai` (standard fields only).
        api: `completions`, or `chat` for a server that has nothing else.
        api_key: sent as a bearer token; never over plain http to another machine, never along a redirect.
        max_context: longest context in tokens; by default what the server says.
        concurrency: requests at once.
        timeout_s: for one request.
        server_timeout_s: how long a server may be away before that is an error.
        extra: further fields of each request.
        reload: makes the server know the model again when it does not (HTTP status 404), as after a start; called in a
            thread, once for all requests that wait for it.
        transport: of httpx, for tests.

    Raises:
        ConfigError: the URL is none, the key would go over plain http to another machine, or the server knows neither
            the model nor its longest context.
        BackendError: the server does not answer within `server_timeout_s`.
    """

    def __init__(
        self,
        base_url: str,
        tokenizer: Any,
        *,
        model: str | None = None,
        dialect: Literal["vllm", "openai"] = "vllm",
        api: Literal["completions", "chat"] = "completions",
        api_key: str | None = None,
        max_context: int | None = None,
        concurrency: int = 128,
        timeout_s: float = 600.0,
        server_timeout_s: float = 120.0,
        extra: Mapping[str, Any] | None = None,
        reload: Callable[[], None] | None = None,
        transport: httpx.AsyncBaseTransport | httpx.BaseTransport | None = None,
    ) -> None:
        parse_url(base_url, option="base_url")
        self.base_url, self.tokenizer = base_url.rstrip("/"), tokenizer
        self.dialect, self.api, self.extra = dialect, api, dict(extra or {})
        self.concurrency, self.timeout_s, self.server_timeout_s = concurrency, timeout_s, server_timeout_s
        self.reload = reload
        self._headers = bearer_headers(base_url, api_key, option="api_key")
        self._transport: Any = transport
        known = {} if model and max_context else self._models()
        if known and reload and model not in known:  # a server that was started anew
            reload()
            known = self._models()
        self.model = model or next(iter(known), "")
        if not self.model:
            raise ConfigError(f"{self.base_url}: the server lists no model; give its name")
        stated = known.get(self.model)
        if max_context is None and stated is None:
            listed = f" (it lists {', '.join(known)})" if known and self.model not in known else ""
            raise ConfigError(
                f"{self.base_url}: the server does not say how long a context of {self.model!r} may be{listed}; give "
                "max_context"
            )
        self.max_context = min(max_context or stated or 0, stated or max_context or 0)

    def _models(self) -> dict[str, int | None]:
        """Names and longest contexts of the models that the server lists; an adapter has that of its base."""
        with httpx.Client(headers=self._headers, timeout=30.0, transport=self._transport) as client:
            answer = until_answered(
                lambda: client.get(f"{self.base_url}/models"),
                self.server_timeout_s,
                f"{self.base_url}: no server answers",
            )
        if answer.status_code != 200:
            raise ConfigError(f"{self.base_url}/models: HTTP status {answer.status_code}: {answer.text[:_SAID_CHARS]}")
        models = {model["id"]: model for model in answer.json().get("data", [])}
        stated = {name: model.get("max_model_len") for name, model in models.items()}
        return {name: stated[name] or stated.get(model.get("parent")) for name, model in models.items()}

    @asynccontextmanager
    async def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AsyncIterator[GenerationSession]:
        """See `Backend.serve`."""
        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        timeout = httpx.Timeout(self.timeout_s, pool=None)
        async with AsyncExitStack() as stack:
            clients = [
                httpx.AsyncClient(
                    headers=self._headers,
                    limits=limits,
                    timeout=timeout,
                    transport=self._transport,
                    verify=_certificates(),
                )
                for _ in range(-(-self.concurrency // _CONNECTIONS))
            ]
            for client in clients:
                await stack.enter_async_context(client)
            yield _HttpSession(self, clients, self._fixed(sampling, end_ids), end_ids, seed)

    def _fixed(self, sampling: Sampling, end_ids: frozenset[int]) -> dict[str, Any]:
        """The fields that all requests share."""
        fields: dict[str, Any] = {"model": self.model, "temperature": sampling.temperature, "top_p": sampling.top_p}
        if self.dialect == "vllm":
            fields |= {
                "top_k": sampling.top_k,
                "min_p": sampling.min_p or 0.0,
                "repetition_penalty": sampling.repetition_penalty,
                "stop_token_ids": sorted(end_ids),
                "return_token_ids": True,
                "skip_special_tokens": False,
                "spaces_between_special_tokens": False,
                "logprobs": 0 if self.api == "completions" else True,
            }
        elif sampling.top_k or sampling.min_p or sampling.repetition_penalty != 1:
            raise ConfigError("top_k, min_p and repetition_penalty are not in OpenAI's API; dialect 'vllm' has them")
        return fields | self.extra


@dataclass
class _Client:
    http: httpx.AsyncClient
    under_way: int = 0


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a request."""
    return httpx.create_ssl_context()


class _HttpSession:
    """The requests of one batch of rollouts."""

    def __init__(
        self,
        backend: OpenAIBackend,
        clients: Sequence[httpx.AsyncClient],
        fields: Mapping[str, Any],
        end_ids: frozenset[int],
        seed: int,
    ) -> None:
        self._backend = backend
        self._clients = [_Client(client) for client in clients]
        self._fields, self._end_ids, self._seed = fields, end_ids, seed
        self._url = f"{backend.base_url}/{'chat/completions' if backend.api == 'chat' else 'completions'}"
        self._answered_at = time.monotonic()
        self._jitter = random.Random(seed)
        self._reloading, self._reloaded_at = asyncio.Lock(), 0.0
        self._turnstile = asyncio.Semaphore(backend.concurrency)  # httpx's own queue is slow when it is long

    async def generate(self, request: Request) -> Generation:
        """See `GenerationSession.generate`."""
        body = {**self._fields, "max_tokens": request.max_new_tokens}
        body["seed"] = random.Random(f"{self._seed} {request.rollout} {request.turn}").randrange(2**31)
        if self._backend.api == "chat":
            body["messages"] = [dict(message) for message in request.messages]
        else:
            body["prompt"] = list(request.context)
        return self._read(await self._post(body), request)

    def finish(self, rollout: int) -> None:
        """See `GenerationSession.finish`."""

    async def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer, however often it has to be asked for."""
        wait_s = _FIRST_WAIT_S
        asked_at = time.monotonic()
        reloads = 0
        while True:
            try:
                async with self._turnstile:
                    sent_at = time.monotonic()
                    answer = await self._send(body)
                if answer.status_code == 200:
                    self._answered_at = time.monotonic()
                    return answer.json()
                cause = f"HTTP status {answer.status_code}: {answer.text[:_SAID_CHARS]}"
                if answer.status_code == 404 and self._backend.reload and reloads < _RELOADS:
                    reloads += 1
                    await self._reload(sent_at)
                elif answer.status_code not in _PASSING:
                    raise BackendError(f"{self._url}: {cause}")
            except httpx.TransportError as error:
                cause = f"{type(error).__name__}: {error}"
            except ValueError as error:
                cause = f"not JSON: {error}"
            if time.monotonic() + wait_s > max(self._answered_at, asked_at) + self._backend.server_timeout_s:
                raise ServerGoneError(f"{self._url}: no answer for {self._backend.server_timeout_s:g} s ({cause})")
            await asyncio.sleep(wait_s * self._jitter.uniform(0.75, 1.25))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _send(self, body: Mapping[str, Any]) -> httpx.Response:
        """By the client with the fewest requests under way."""
        client = min(self._clients, key=lambda client: client.under_way)
        client.under_way += 1
        try:
            return await client.http.post(self._url, json=body)
        finally:
            client.under_way -= 1

    async def _reload(self, sent_at: float) -> None:
        """Once for all requests that were sent before the server knew the model again."""
        async with self._reloading:
            if self._backend.reload and sent_at > self._reloaded_at:
                await asyncio.to_thread(self._backend.reload)
                self._reloaded_at = time.monotonic()
        self._answered_at = max(self._answered_at, self._reloaded_at)  # the server did answer

    def _read(self, answer: Mapping[str, Any], request: Request) -> Generation:
        try:
            choice = answer["choices"][0]
            ended = choice["finish_reason"] == "stop"
            ids = None if self._backend.api == "chat" else choice.get("token_ids")
            exact = ids is not None
            if ids is None:
                text = choice["message"]["content"] if self._backend.api == "chat" else choice["text"]
                ids = self._backend.tokenizer.encode(text or "", add_special_tokens=False)[: request.max_new_tokens]
            logprobs = choice["logprobs"]["token_logprobs"] if exact and choice.get("logprobs") else None
        except (KeyError, IndexError, TypeError) as error:
            raise BackendError(f"{self._url}: an answer that can't be read ({error!r}): {str(answer)[:200]}") from error
        if ended and not (ids and ids[-1] in self._end_ids):
            exact, logprobs = False, None  # the server kept the end token to itself
            ids = [*ids, self._backend.tokenizer.eos_token_id]
        if not ids:
            raise BackendError(f"{self._url}: an answer without a token: {str(answer)[:200]}")
        return Generation(tuple(ids), tuple(logprobs) if logprobs else None, exact)
