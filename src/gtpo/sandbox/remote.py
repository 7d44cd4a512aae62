"""A code sandbox on other machines, behind SandboxFusion's HTTP API (github.com/bytedance/SandboxFusion).

`gtpo sandbox serve` offers `LocalSandbox` over the same API. With several servers, the least busy one gets the next
program; a server that fails gets no programs for a while, and its programs go to the others.

The client does not know what the server denies to programs. With SandboxFusion's default (`isolation: none`) it denies
nothing, so put it on a machine, or in a container, that holds nothing of value.

SandboxFusion runs plain scripts. The client sends a script that runs the program the way `LocalSandbox` does: it shows
the value of a last expression, prints clean tracebacks, provides an empty stdin and directory, and limits CPU time,
memory and output. That needs Python 3.9 or newer on the server. The remaining differences from `LocalSandbox`:

- `Limits.cpu_s` is rounded up to whole seconds; it and `Limits.wall_s` include the start of the interpreter.
- A stream holds at most 256 bytes less than 1 MiB, since the server keeps no more than 1 MiB. Older versions of the
  server, which do not read output while it is written, time out from about 190 KB on: use `output_bytes=100_000`.
- Bytes that are not UTF-8 can only be written by bypassing Python's text streams. They cost the whole stream: the
  server replaces it by a line that begins with "[DecodeError]".
- The server chooses the hash seed, so the order of sets varies.
- There are no sessions.
- Cancelling a task does not reach the server: the program continues there to its end or its limits.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from urllib.parse import urlsplit

from gtpo.errors import ConfigError, SandboxError
from gtpo.sandbox import _fusion
from gtpo.sandbox._dispatch import Dispatcher
from gtpo.sandbox._endpoints import Endpoint, Endpoints
from gtpo.sandbox._fusion import NotBegunError, RetryableError
from gtpo.sandbox._jobs import all_results, killed_if_interrupted
from gtpo.sandbox.base import ExecResult, Limits, Session, Status
from gtpo.sandbox.levels import Level, level_of

_GRACE_S = 30.0
_PING_S = 10.0


class SandboxFusionSandbox:
    """Runs Python programs on SandboxFusion servers; `gtpo.sandbox.remote` documents the differences to `LocalSandbox`.

    A temporary failure (no connection, no answer in time or an unreadable one, HTTP status 408, 425, 429
    or 5xx, the server's own "SandboxError") is tried again up to `retries` times, after a growing, random wait; then
    the status is `Status.TOOL_FAILURE`. The sandbox is not tied to an event loop: it may be used from several loops and
    threads.

    Args:
        url: base URL of the server, such as `http://localhost:8080`, or the full URL that ends in `/run_code`; or
            several URLs of equivalent servers.
        limits: default limits of each program; `run` can override them.
        concurrency: maximum number of requests at once per server. Do not set it higher than the number of programs
            that a server runs at once: the time limit for an answer includes the wait in its queue.
        retries: number of further attempts after a temporary failure, on another server if there is one.
        headers: HTTP headers sent with each request, such as a key for a gateway.
        compile_timeout_s: time limit in seconds that is passed to the server, which uses it for compiled languages.

    Raises:
        ConfigError: a URL is not an HTTP URL, or a number is out of range.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        limits: Limits | None = None,
        concurrency: int = 32,
        retries: int = 3,
        headers: Mapping[str, str] | None = None,
        compile_timeout_s: float = 10.0,
    ) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        for one in urls or [""]:
            if not (one.startswith(("http://", "https://")) and urlsplit(one).hostname):
                raise ConfigError(f"sandbox server {one!r}: give a URL that starts with http:// or https:// and a host")
        for name, number, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, not {number!r}")
        if not (math.isfinite(compile_timeout_s) and compile_timeout_s > 0):
            raise ConfigError(f"compile_timeout_s must be finite and above 0, not {compile_timeout_s!r}")
        self.limits = Limits() if limits is None else limits
        self._endpoints = Endpoints([one.rstrip("/").removesuffix("/run_code") for one in urls], concurrency)
        self._retries, self._compile_timeout_s = retries, compile_timeout_s
        self._headers = dict(headers or {})
        self._dispatcher = Dispatcher(range(concurrency * len(urls)))
        self._calls: set[threading.Event] = set()
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._closed = False

    async def run(
        self, code: str, *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> ExecResult:
        """Runs one program in a fresh process on the server, as soon as there is room for the request.

        Args:
            code: source code of the program.
            limits: limits of this program; default: those of the sandbox.
            seed: seed for `random`, and for numpy's global generator if the program names numpy; default: fresh
                randomness.
            key: the queue of the program, for example its rollout; queues of different keys take turns.

        Raises:
            SandboxError: the server refuses the request (HTTP status 4xx); or it has never answered and a final
                `ping` fails, so the URL is probably wrong; or this sandbox is closed or was created by another
                process.
            TypeError: `code` is not a string.
        """
        call, job = self._submit(code, limits, seed, key)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            call.set()
            raise

    async def run_many(
        self, codes: Sequence[str], *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> list[ExecResult]:
        """Runs all programs, at most `concurrency` at once per server; returns results in the order of `codes`.

        No item raises: one whose `run` would raise becomes `Status.TOOL_FAILURE`. A closed sandbox raises.
        """
        self._check()
        jobs = (self.run(code, limits=limits, seed=seed, key=key) for code in codes)
        return await all_results(jobs)

    def run_sync(
        self, code: str, *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> ExecResult:
        """Like `run`, for callers without an event loop; blocks the calling thread."""
        call, job = self._submit(code, limits, seed, key)
        return killed_if_interrupted(job, call.set)

    def session(self, *, fresh: bool = False, seed: int | None = None) -> Session:
        """Not supported: the server keeps nothing between programs.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a SandboxFusion server starts a new process for each program and has no sessions: use tool_state "
            "'stateless', or the local sandbox"
        )

    def ping(self) -> None:
        """Checks that every server answers. `run` does so only after a failure, if no server has ever answered.

        Raises:
            SandboxError: no SandboxFusion server answers at one of the URLs; the message has the answer, if any.
        """
        for endpoint in self._endpoints.all:
            self._ping(endpoint)

    def _ping(self, endpoint: Endpoint) -> None:
        try:
            said = _fusion.fetch(f"{endpoint.url}/v1/ping", None, self._headers, _PING_S)
        except RetryableError as failure:
            raise SandboxError(
                f"no SandboxFusion server answers: {failure}; check the URL and that the server runs"
            ) from failure
        if b"pong" not in said:
            raise SandboxError(f"{endpoint.url}/v1/ping: not a SandboxFusion server, it answered {said[:200]!r}")

    def level(self) -> Level:
        """Returns a level without any guarantee: the client does not know what the server denies."""
        sentence = "Programs run on a remote server; what it denies them is unknown."
        return replace(level_of(()), name="remote", sentence=sentence)

    async def aclose(self) -> None:
        """Starts no more requests, waits for those in progress, and frees all threads; idempotent."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Like `aclose`, for callers without an event loop."""
        with self._lock:
            self._closed = True
            for call in self._calls:
                call.set()
        if os.getpid() == self._owner:
            self._dispatcher.shutdown()

    async def __aenter__(self) -> SandboxFusionSandbox:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check(self) -> None:
        if self._closed:
            raise SandboxError("the sandbox is closed; create a new one")
        if os.getpid() != self._owner:
            raise SandboxError("the sandbox was created by another process; create a new one after a fork")

    def _submit(
        self, code: str, limits: Limits | None, seed: int | None, key: Hashable
    ) -> tuple[threading.Event, Future[ExecResult]]:
        if not isinstance(code, str):
            raise TypeError(f"code must be a string, not {type(code).__name__}")
        call = threading.Event()
        with self._lock:
            self._check()
            self._calls.add(call)
            job = self._dispatcher.submit(lambda _: self._run(code, limits or self.limits, call, seed), key=key)
        job.add_done_callback(lambda _: self._dismiss(call))
        return call, job

    def _dismiss(self, call: threading.Event) -> None:
        with self._lock:
            self._calls.discard(call)

    def _run(self, code: str, limits: Limits, call: threading.Event, seed: int | None) -> ExecResult:
        """Runs one program, with retries until a server answers; setting `call` gives up."""
        word = secrets.token_hex(16)
        payload = _fusion.request(_fusion.script(code, word, limits, seed), limits, self._compile_timeout_s)
        timeout_s = self._compile_timeout_s + limits.wall_s + _GRACE_S
        cause, endpoint, not_begun = "", None, False
        refusals: list[SandboxError] = []
        for _ in range(self._retries + 1):
            endpoint = self._endpoints.take(call, avoid=endpoint)
            if endpoint is None:
                return ExecResult(Status.TOOL_FAILURE, note="cancelled")
            began = time.monotonic()
            try:
                ended = _fusion.ended(_fusion.fetch(f"{endpoint.url}/run_code", payload, self._headers, timeout_s))
                result = _fusion.result(ended, limits, word)
            except NotBegunError as failure:  # the server itself works
                cause, not_begun = str(failure), True
                self._endpoints.done(endpoint)
            except RetryableError as failure:
                cause, not_begun = str(failure), False
                self._endpoints.failed(endpoint, began, failure.wait_s)
            except SandboxError as refusal:
                self._endpoints.failed(endpoint, began)  # the other servers may accept what this one refuses
                refusals.append(refusal)
                if len(refusals) >= len(self._endpoints.all):
                    raise
            except BaseException:
                self._endpoints.drop(endpoint)
                raise
            else:
                self._endpoints.done(endpoint)
                return result
        if refusals:
            raise refusals[-1]
        if not_begun:  # on every attempt, by servers that answer: an error of the program, which may have written this
            return ExecResult(Status.ERROR, note=cause)
        if endpoint is not None and not any(one.answered for one in self._endpoints.all):
            self._ping(endpoint)
        return ExecResult(Status.TOOL_FAILURE, note=cause)
