"""Generation on a server that speaks OpenAI's HTTP API: vLLM's, or any other.

With vLLM (`dialect="vllm"`), contexts are sent as token ids and sampled ids come back, so the rollouts are exact and
can be trained on. Other servers (`dialect="openai"`) return text only, which is tokenised here; such a generation is
marked as not exact. With `api="chat"`, the server renders the conversation itself, from messages; that is never exact.

A request that finds no server, or one that is starting or overloaded, is retried with growing waits until the server
has answered nothing for `server_timeout_s`. A request whose answer can't be used (`gtpo.rollout.backends.answers`), or
is not complete after `timeout_s`, is tried three times in all.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from gtpo._http import Answer, AnswerTooLargeError, ask, ask_async, bearer_headers, certificates, parse_url
from gtpo._text import well_formed
from gtpo.errors import BackendError, BadAnswerError, ConfigError, ServerGoneError
from gtpo.rollout.backends.answers import checked_generation, ended_by_itself, only_choice, text_of
from gtpo.rollout.backends.base import Generation, GenerationSession, Request, turn_seed
from gtpo.rollout.settings import Sampling

_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0
_SAID_CHARS = 500
_RELOADS = 5
"""How often one request may find that the server does not know the model."""
_BAD_ANSWERS = 3
"""How often one request may get an answer that can't be used, or none in time."""
_ANSWER_BYTES, _BYTES_PER_TOKEN = 8 << 20, 1 << 10
"""Maximum size of an answer in bytes: a constant, plus a number of bytes for each token of the context and the turn."""
_MODELS_S = 30.0
_CONNECTIONS = 16
"""Per HTTP client, because httpx scans all connections of a client for each request."""


def until_answered(ask: Callable[[], Answer], server_timeout_s: float, otherwise: str) -> Answer:
    """Ask until an answer is about the request, and not about a server that is starting or overloaded.

    Args:
        ask: sends the request.
        server_timeout_s: seconds after which to give up.
        otherwise: the message if there is no such answer; the cause is appended.

    Raises:
        ServerGoneError: there was no such answer in time.
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
    """Generates on a server with OpenAI's HTTP API.

    Args:
        base_url: URL with the version of the API, such as `http://localhost:8000/v1`.
        model: name of the model on the server; by default the first one that the server lists.
        tokenizer: the tokenizer of that model; it encodes what a server returns as text.
        dialect: `vllm` (token ids in both directions) or `openai` (standard fields only).
        api: `completions`, or `chat` for a server that has nothing else.
        api_key: sent as a bearer token; never over plain http to another machine, never along a redirect.
        max_context: maximum context length, in tokens; by default the one that the server states.
        concurrency: maximum number of concurrent requests.
        timeout_s: time limit of one request in seconds, from its connection to the last byte of the answer.
        server_timeout_s: seconds for which a server may be unavailable before that is an error.
        extra: additional fields of each request.
        reload: loads the model on the server again if the server does not know it (HTTP status 404), as after a
            restart; called in a thread, once for all requests that wait for it.
        transport: httpx transport, for tests.

    Raises:
        ConfigError: the URL is invalid, the key would go over plain http to another machine, or the server lists no
            model, or does not state the maximum context length of the model and `max_context` is not given.
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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        parse_url(base_url, option="base_url")
        self.base_url, self.tokenizer = base_url.rstrip("/"), tokenizer
        self.dialect, self.api, self.extra = dialect, api, dict(extra or {})
        self.concurrency, self.timeout_s, self.server_timeout_s = concurrency, timeout_s, server_timeout_s
        self.reload = reload
        self._headers = bearer_headers(base_url, api_key, option="api_key")
        self._transport = transport
        known = {} if model and max_context else self._models()
        if known and reload and model not in known:  # a server that was started anew
            reload()
            known = self._models()
        self.model = model or next(iter(known), "")
        if not self.model:
            raise ConfigError(f"{self.base_url}: the server lists no model; give the model's name")
        stated = known.get(self.model)
        if max_context is None and stated is None:
            listed = f" (it lists {', '.join(known)})" if known and self.model not in known else ""
            raise ConfigError(
                f"{self.base_url}: the server does not state the context length of {self.model!r}{listed}; give "
                "max_context"
            )
        self.max_context = min(max_context or stated or 0, stated or max_context or 0)

    def _models(self) -> dict[str, int | None]:
        """Names and context lengths of the models that the server lists; an adapter has the length of its base."""
        url = f"{self.base_url}/models"
        answer = until_answered(
            lambda: ask("GET", url, timeout_s=_MODELS_S, headers=self._headers, transport=self._transport),
            self.server_timeout_s,
            f"{self.base_url}: no server answers",
        )
        if answer.status_code != 200:
            raise ConfigError(f"{url}: HTTP status {answer.status_code}: {answer.text[:_SAID_CHARS]}")
        try:
            models = {str(model["id"]): model for model in answer.json()["data"]}
            stated = {name: _whole_number(model.get("max_model_len")) for name, model in models.items()}
            return {name: stated[name] or stated.get(str(model.get("parent"))) for name, model in models.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = ascii(answer.text[:_SAID_CHARS])
            raise ConfigError(f"{url}: the answer is not a list of models of OpenAI's API ({error}): {said}") from error

    @asynccontextmanager
    async def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AsyncIterator[GenerationSession]:
        """See `Backend.serve`."""
        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        timeout = httpx.Timeout(self.timeout_s, pool=None)  # of a read; `ask_async` bounds the whole
        async with AsyncExitStack() as stack:
            clients = [
                httpx.AsyncClient(
                    headers=self._headers,
                    limits=limits,
                    timeout=timeout,
                    transport=self._transport,
                    verify=certificates(),
                )
                for _ in range(-(-self.concurrency // _CONNECTIONS))
            ]
            for client in clients:
                await stack.enter_async_context(client)
            yield _HttpSession(self, clients, self._fixed(sampling, end_ids), end_ids, seed, sampling)

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
            raise ConfigError(
                "top_k, min_p and repetition_penalty are not in OpenAI's API: use dialect 'vllm', or leave them at "
                "their defaults"
            )
        return fields | self.extra


@dataclass
class _Client:
    http: httpx.AsyncClient
    under_way: int = 0


def _whole_number(value: Any) -> int | None:
    """A context length as a server states it; ValueError if it is invalid."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"max_model_len is {ascii(value)[:_SAID_CHARS]}")


class _HttpSession:
    """The requests of one batch of rollouts."""

    def __init__(
        self,
        backend: OpenAIBackend,
        clients: Sequence[httpx.AsyncClient],
        fields: Mapping[str, Any],
        end_ids: frozenset[int],
        seed: int,
        sampling: Sampling,
    ) -> None:
        self._backend, self._deterministic = backend, sampling.deterministic
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
        if self._deterministic:
            body["seed"] = turn_seed(self._seed, request)
        if self._backend.api == "chat":
            body["messages"] = [dict(message) for message in request.messages]
        else:
            body["prompt"] = list(request.context)
        return await self._post(body, request)

    def finish(self, rollout: int) -> None:
        """See `GenerationSession.finish`."""

    async def _post(self, body: Mapping[str, Any], request: Request) -> Generation:
        """Send a request, again if necessary, and return what was generated."""
        wait_s, asked_at = _FIRST_WAIT_S, time.monotonic()
        reloads = bad = 0
        while True:
            try:
                async with self._turnstile:
                    sent_at = time.monotonic()
                    answer = await self._send(body, request)
                if answer.status_code == 200:
                    found = self._read(answer, request)
                    self._answered_at = time.monotonic()
                    return found
                cause = f"HTTP status {answer.status_code}: {answer.text[:_SAID_CHARS]}"
                if answer.status_code == 404 and self._backend.reload and reloads < _RELOADS:
                    reloads += 1
                    await self._reload(sent_at)
                elif answer.status_code not in _PASSING:
                    raise BackendError(f"{self._url}: {cause}")
            except (BadAnswerError, AnswerTooLargeError, httpx.ReadTimeout) as error:
                cause, bad = str(error).removeprefix(f"{self._url}: "), bad + 1
                if bad == _BAD_ANSWERS:
                    raise BadAnswerError(f"{self._url}: {cause} ({bad} tries)") from error
            except httpx.TransportError as error:
                cause = f"{type(error).__name__}: {error}"
            if time.monotonic() + wait_s > max(self._answered_at, asked_at) + self._backend.server_timeout_s:
                raise ServerGoneError(f"{self._url}: no answer for {self._backend.server_timeout_s:g} s ({cause})")
            await asyncio.sleep(wait_s * self._jitter.uniform(0.75, 1.25))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _send(self, body: Mapping[str, Any], request: Request) -> Answer:
        """Send a request by the client with the fewest running requests."""
        client = min(self._clients, key=lambda client: client.under_way)
        client.under_way += 1
        try:
            return await ask_async(
                client.http,
                "POST",
                self._url,
                timeout_s=self._backend.timeout_s,
                content=json.dumps(body).encode(),
                most_bytes=_ANSWER_BYTES + _BYTES_PER_TOKEN * (len(request.context) + request.max_new_tokens),
            )
        finally:
            client.under_way -= 1

    async def _reload(self, sent_at: float) -> None:
        """Reload the model once for all requests that were sent before the server knew it again."""
        async with self._reloading:
            if self._backend.reload and sent_at > self._reloaded_at:
                await asyncio.to_thread(self._backend.reload)
                self._reloaded_at = time.monotonic()
        self._answered_at = max(self._answered_at, self._reloaded_at)  # the server did answer

    def _read(self, answer: Answer, request: Request) -> Generation:
        """What was generated.

        Raises:
            BadAnswerError: it can't be what was requested.
        """
        try:
            document = answer.json()
        except ValueError as error:
            raise BadAnswerError(f"{self._url}: the answer is not JSON: {error}") from error
        choice = only_choice(document, self._url)
        ended = ended_by_itself(choice, self._url)
        chat = self._backend.api == "chat"
        ids = None if chat else choice.get("token_ids")
        if ids is None:
            return self._encoded(text_of(choice, chat, self._url), ended, request)
        logprobs = choice.get("logprobs")
        if not ids and ended:
            return self._with_end([], request)
        found = checked_generation(
            ids,
            logprobs.get("token_logprobs", "nothing") if isinstance(logprobs, dict) else "nothing",
            request,
            source=self._url,
            end_ids=self._end_ids,
            vocabulary=len(self._backend.tokenizer),
        )
        if ended and found.token_ids[-1] not in self._end_ids:  # the server kept the end token to itself
            return self._with_end(found.token_ids, request)
        return found

    def _encoded(self, text: str, ended: bool, request: Request) -> Generation:
        ids = self._backend.tokenizer.encode(well_formed(text), add_special_tokens=False)
        if ended and len(ids) <= request.max_new_tokens:
            return self._with_end(ids, request)
        if not ids:
            raise BadAnswerError(f"{self._url}: an answer without a token")
        return Generation(tuple(ids[: request.max_new_tokens]), None, token_exact=False)

    def _with_end(self, ids: Sequence[int], request: Request) -> Generation:
        """Append an end token that the server did not return; the ids are then not exactly those that were sampled."""
        if ids and ids[-1] in self._end_ids:
            return Generation(tuple(ids), None, token_exact=False)
        kept = ids[: request.max_new_tokens - 1]
        return Generation((*kept, self._backend.tokenizer.eos_token_id), None, token_exact=False)
