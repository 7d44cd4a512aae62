"""What clients of HTTP services share: rules for API keys, `Retry-After`, and requests whose answer is bounded in time
and size.

httpx's time limits apply to each read: a server that sends a byte now and then, in the head or in the body, would block
a client for ever. `ask` bounds the time of the whole request and the size of its answer.

An API key is sent only to the hosts for which it was given, never over plain http except to this machine, and never
along a redirect: clients that send a key do not follow redirects (httpx's default).
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import math
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from gtpo._async import run_async
from gtpo.errors import ConfigError

OPENAI_HOST = "api.openai.com"
ANSWER_BYTES = 64 << 20
"""Default limit on the size of an answer."""


class AnswerTooLargeError(httpx.TransportError):
    """A server sent more than the answer's size limit."""


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        status_code: HTTP status.
        headers: by name, case-insensitive.
        content: the body, decompressed.
    """

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The body as text; what is not UTF-8 is replaced."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body read as JSON.

        Raises:
            ValueError: it is not JSON, or nested too deeply.
        """
        try:
            return json.loads(self.content)
        except RecursionError:
            raise ValueError("JSON nested too deeply") from None


async def ask_async(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    timeout_s: float,
    content: bytes | None = None,
    params: Mapping[str, str] | None = None,
    most_bytes: int = ANSWER_BYTES,
) -> Answer:
    """Send a request and read its whole answer. Redirects are not followed.

    Args:
        client: sends it.
        method: such as POST.
        url: the address.
        timeout_s: seconds for the whole request, from the connection to the last byte.
        content: the body, JSON.
        params: query parameters.
        most_bytes: size limit of the answer.

    Raises:
        httpx.TransportError: no answer, none in time (`ReadTimeout`), or one that is too large (`AnswerTooLargeError`).
    """
    headers = {"Content-Type": "application/json"} if content is not None else {}
    parts: list[bytes] = []
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream(method, url, content=content, params=params, headers=headers) as response,
        ):
            left = most_bytes
            async for part in response.aiter_bytes():
                left -= len(part)
                if left < 0:
                    raise AnswerTooLargeError(f"an answer of more than {most_bytes} bytes")
                parts.append(part)
    except TimeoutError:
        raise httpx.ReadTimeout(f"no whole answer within {timeout_s:g} s") from None
    except httpx.DecodingError as error:
        raise httpx.RemoteProtocolError(f"a body that can't be decompressed: {error}") from error
    return Answer(response.status_code, response.headers, b"".join(parts))


def ask(
    method: str,
    url: str,
    *,
    timeout_s: float,
    document: Any = None,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    trust_env: bool = True,
    transport: httpx.AsyncBaseTransport | None = None,
    most_bytes: int = ANSWER_BYTES,
) -> Answer:
    """`ask_async` with its own client, for callers without an event loop.

    Args:
        document: sent as JSON; None sends no body.
        headers: further headers to send.
        trust_env: whether proxies set in the environment are used.
        transport: an httpx transport, for tests.
        method, url, timeout_s, params, most_bytes: see `ask_async`.

    Raises:
        httpx.TransportError: see `ask_async`.
    """
    content = None if document is None else json.dumps(document).encode()

    async def asking() -> Answer:
        async with httpx.AsyncClient(
            headers=dict(headers or {}),
            timeout=timeout_s,
            trust_env=trust_env,
            transport=transport,
            verify=certificates(),
        ) as client:
            return await ask_async(
                client, method, url, timeout_s=timeout_s, content=content, params=params, most_bytes=most_bytes
            )

    return run_async(asking())


@functools.cache
def certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a request."""
    return httpx.create_ssl_context()


def parse_url(url: str, *, option: str) -> httpx.URL:
    """The URL, read by the library that will send to it.

    Args:
        url: starts with http:// or https://.
        option: the option that gave it, for the message.

    Raises:
        ConfigError: it is not a URL of HTTP.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigError(f"{option}: {url!r} is not a URL ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{option}: {url!r}: give a URL such as http://localhost:8000/v1")
    return parsed


def is_this_machine(url: httpx.URL) -> bool:
    """Whether the host is `localhost` or a loopback address (127.0.0.0/8, ::1). No name is looked up."""
    if url.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False


def key_for(url: str, variable: str | None, *, option: str) -> str | None:
    """The API key that the environment holds for a URL.

    Args:
        url: URL of the service.
        variable: name of the environment variable that the user gave for this URL. None: `OPENAI_API_KEY` if the host
            is api.openai.com, else no key.
        option: the option that names the variable, for the message.

    Returns:
        The key without surrounding white space; None for no key.

    Raises:
        ConfigError: the given variable is not set.
    """
    if variable is None:
        own = parse_url(url, option=option).host == OPENAI_HOST
        return (os.environ.get("OPENAI_API_KEY", "").strip() or None) if own else None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"{option}: the environment variable {variable} is not set; it must hold the API key for {url}"
        )
    return key


def bearer_headers(url: str, key: str | None, *, option: str) -> dict[str, str]:
    """The header that carries an API key; empty without a key.

    Args:
        url: where the key is to be sent.
        key: the key.
        option: the option that gave the key, for the message.

    Raises:
        ConfigError: the key would go over plain http to another machine, or is not printable ASCII.
    """
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{option}: the API key holds characters that no HTTP header can carry")
    parsed = parse_url(url, option=option)
    if parsed.scheme != "https" and not is_this_machine(parsed):
        raise ConfigError(
            f"{option}: the API key would go over plain http to {url}; give its https:// URL, reach it through this "
            "machine (such as an SSH tunnel to localhost), or give no key"
        )
    return {"Authorization": f"Bearer {key}"}


def retry_after_s(header: str | None) -> float:
    """Seconds that a `Retry-After` header asks for, as a number or as a date; 0 without one or if it is neither."""
    text = (header or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            asked = parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        seconds = (asked.replace(tzinfo=asked.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
