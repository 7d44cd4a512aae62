"""Where an API key may go, and what a `Retry-After` header asks for."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from gtpo._http import bearer_headers, key_for, parse_url, retry_after_s
from gtpo.errors import ConfigError

HERE = ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://127.8.9.10:80", "http://[::1]:8000/v1"]
ELSEWHERE = [
    "http://example.org/v1",
    "http://10.0.0.1:8000",
    "http://0.0.0.0:8000",
    "http://localhost.example.org",
    "http://127.0.0.1.example.org",
    "http://127.0.0.1@example.org/v1",
    "http://example.org/127.0.0.1",
    "http://example.org#@localhost/",
    "http://[2001:db8::1]/v1",
    "HTTP://EXAMPLE.ORG/v1",
]


@pytest.mark.parametrize("url", [*HERE, "https://example.org/v1", "https://10.0.0.1"])
def test_a_key_goes_over_https_and_to_this_machine(url):
    assert bearer_headers(url, "secret", option="--key") == {"Authorization": "Bearer secret"}


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_key_does_not_go_over_plain_http_to_another_machine(url):
    with pytest.raises(ConfigError, match=r"^--key: .* plain http to .*https://") as caught:
        bearer_headers(url, "secret", option="--key")
    assert url in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", [*HERE, *ELSEWHERE])
def test_no_key_is_no_header(url):
    assert bearer_headers(url, None, option="--key") == bearer_headers(url, "", option="--key") == {}


@pytest.mark.parametrize("key", ["a\nb", "schlüssel", "a\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key):
    with pytest.raises(ConfigError, match="--key: the API key holds characters") as caught:
        bearer_headers("https://example.org", key, option="--key")
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "variable", "key"),
    [
        ("https://api.openai.com/v1", None, "open"),
        ("https://API.OpenAI.com/v1", None, "open"),
        ("https://api.openai.com.example.org/v1", None, None),
        ("https://example.org/api.openai.com", None, None),
        ("http://localhost:8000/v1", None, None),
        ("https://example.org/v1", "MINE", "mine"),
        ("https://api.openai.com/v1", "MINE", "mine"),
        ("https://example.org/v1", "OPENAI_API_KEY", "open"),
    ],
)
def test_a_key_of_the_environment_is_for_the_host_it_was_named_for(monkeypatch, url, variable, key):
    monkeypatch.setenv("OPENAI_API_KEY", "open")
    monkeypatch.setenv("MINE", " mine\n")
    assert key_for(url, variable, option="--key") == key


def test_a_variable_that_was_named_and_is_not_set_is_an_error(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert key_for("https://api.openai.com/v1", None, option="--key") is None
    with pytest.raises(
        ConfigError, match=r"^--key: .*OPENAI_API_KEY is not set; it must hold the API key for https://x"
    ):
        key_for("https://x", "OPENAI_API_KEY", option="--key")


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x", "http://", "/v1", "http://x:port", "http://[::1", ""])
def test_what_is_not_a_url_of_http_is_refused(url):
    with pytest.raises(ConfigError, match="--base_url: "):
        parse_url(url, option="--base_url")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("", 0), ("12", 12), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("nan", 0), ("inf", 0)],
)
def test_retry_after_in_seconds(header, seconds):
    assert retry_after_s(header) == seconds


def test_retry_after_as_a_date():
    assert 27 < retry_after_s(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert retry_after_s(formatdate(time.time() - 30, usegmt=True)) == 0
