"""What clients of HTTP services share: where an API key may go, and how long a server asks to be left alone.

An API key is sent to the hosts it was named for and to no others, never over plain http except to this machine, and
never along a redirect: clients that send one do not follow redirects (httpx's default).
"""

from __future__ import annotations

import ipaddress
import math
import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from gtpo.errors import ConfigError

OPENAI_HOST = "api.openai.com"


def parse_url(url: str, *, option: str) -> httpx.URL:
    """The URL, read by the library that will send to it.

    Args:
        url: starts with http:// or https://.
        option: what gave it, for the message.

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
        url: of the service.
        variable: name of the environment variable that the user gave for this URL. None: `OPENAI_API_KEY` if the host
            is api.openai.com, else no key.
        option: what names the variable, for the message.

    Returns:
        The key without surrounding white space; None for no key.

    Raises:
        ConfigError: the variable that was named is not set.
    """
    if variable is None:
        own = parse_url(url, option=option).host == OPENAI_HOST
        return (os.environ.get("OPENAI_API_KEY", "").strip() or None) if own else None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"{option}: the environment variable {variable} is not set; {url} was to get its key from it")
    return key


def bearer_headers(url: str, key: str | None, *, option: str) -> dict[str, str]:
    """The header that carries an API key; empty without a key.

    Args:
        url: where it is to be sent.
        key: the key.
        option: what gave the key, for the message.

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
            f"{option}: the API key would go over plain http to {url}; give its https:// URL, reach it on this "
            "machine (as through an SSH tunnel to localhost), or give no key"
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
