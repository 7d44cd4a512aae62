"""The endpoint, against a real HTTP server on this machine."""

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import tenacity
import torch
from serving import serving

from gtpo.errors import ConfigError
from gtpo.similarity import SimilarityError, get_similarity
from gtpo.similarity.endpoint import EndpointSimilarity


class Server(ThreadingHTTPServer):
    """An embeddings endpoint; each entry of `failures` spoils one request, first come first served.

    An entry is a status, a status with headers, a body, or "hang".
    """

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.failures: list[int | str | tuple] = []
        self.requests: list[dict] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
        failure = self.server.failures.pop(0) if self.server.failures else None
        if failure == "hang":
            time.sleep(3)
            return
        if isinstance(failure, int):
            self.reply(failure, b"no such model")
        elif isinstance(failure, tuple):
            self.reply(failure[0], b"later", failure[1])
        elif isinstance(failure, str):
            self.reply(200, failure.encode())
        else:
            rows = [
                {"index": i, "object": "embedding", "embedding": [text.count(c) for c in "abx"]}
                for i, text in enumerate(body["input"])
            ]
            self.reply(200, json.dumps({"object": "list", "data": rows[::-1]}).encode())

    def do_GET(self):
        self.server.requests.append({"path": self.path, "key": self.headers["Authorization"]})
        self.reply(200, b"{}")

    def reply(self, status: int, body: bytes, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no proxy stands between a client and its own machine
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(Server()) as server:
        yield server


def test_each_distinct_text_is_sent_once_and_vectors_are_matched_by_index(server):
    similarity = get_similarity(f"endpoint:{server.url}#some/model")
    matrix = similarity.matrix(["ab", "x", "ab", "", "aab"])
    expected = torch.eye(5)
    expected[3, 3] = 0
    for i, j, value in ((0, 2, 1), (0, 4, 3 / 10**0.5), (2, 4, 3 / 10**0.5)):
        expected[i, j] = expected[j, i] = value
    torch.testing.assert_close(matrix, expected)
    similarity.matrix(["x", "ab"])
    assert server.requests == [
        {"path": "/v1/embeddings", "key": None, "model": "some/model", "input": ["ab", "x", "aab"]}
    ]


def test_texts_go_in_batches(server):
    EndpointSimilarity(server.url + "/embeddings", "m", batch_size=2).matrix(["a", "b", "x", "ab", "ax"])
    assert [request["input"] for request in server.requests] == [["a", "b"], ["x", "ab"], ["ax"]]


def test_the_key_comes_from_its_own_environment_variable(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not for others")
    EndpointSimilarity(server.url, "m").matrix(["a"])
    monkeypatch.setenv("MY_KEY", "mine")
    EndpointSimilarity(server.url, "m", api_key_env="MY_KEY").matrix(["a"])
    assert [request["key"] for request in server.requests] == [None, "Bearer mine"]


def test_a_specification_names_the_variable_of_its_key(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "mine\n")
    get_similarity(f"endpoint:{server.url}#some/model?key=MY_KEY").matrix(["a"])
    assert (server.requests[0]["key"], server.requests[0]["model"]) == ("Bearer mine", "some/model")
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="the environment variable MY_KEY is not set"):
        get_similarity(f"endpoint:{server.url}#some/model?key=MY_KEY")
    for spec in ("#m?key=", "#m?token=MY_KEY", "#?key=MY_KEY"):
        with pytest.raises(ConfigError, match="no code similarity"):
            get_similarity(f"endpoint:{server.url}{spec}")


def test_a_key_does_not_go_to_another_machine_over_plain_http(monkeypatch):
    monkeypatch.setenv("MY_KEY", "mine")
    EndpointSimilarity("http://example.org/v1", "m")
    EndpointSimilarity("https://example.org/v1", "m", api_key_env="MY_KEY")
    with pytest.raises(ConfigError, match=r"plain http to http://example.org/v1/embeddings"):
        EndpointSimilarity("http://example.org/v1", "m", api_key_env="MY_KEY")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_follows_a_redirect(server, monkeypatch, status):
    monkeypatch.setenv("MY_KEY", "mine")
    with serving(Server()) as other:
        server.failures = [(status, {"Location": f"{other.url}/embeddings"})]
        with pytest.raises(SimilarityError, match=f"a redirect to {other.url}/embeddings; give that URL itself"):
            EndpointSimilarity(server.url, "m", api_key_env="MY_KEY").matrix(["a"])
        assert other.requests == []
    assert [request["key"] for request in server.requests] == ["Bearer mine"]


@pytest.mark.parametrize("failure", [503, 500, 599, 429, 408, (429, {"Retry-After": "soon"}), "hang"])
def test_passing_failures_are_tried_again(server, failure):
    server.failures = [failure]
    similarity = EndpointSimilarity(server.url, "m", backoff_s=0.01, timeout_s=0.5)
    assert similarity.matrix(["a"]).tolist() == [[1]]
    assert len(server.requests) == 2


@pytest.mark.parametrize("header", ["1", lambda: formatdate(time.time() + 2.5, usegmt=True)], ids=["seconds", "date"])
def test_a_server_is_left_alone_for_as_long_as_it_asks(server, header):
    server.failures = [(429, {"Retry-After": header if isinstance(header, str) else header()})]
    began = time.monotonic()
    EndpointSimilarity(server.url, "m", backoff_s=0.01).matrix(["a"])
    assert 1.0 <= time.monotonic() - began < 5.0


def test_a_server_that_asks_for_more_time_than_there_is_is_given_up_at_once(server):
    server.failures = [(429, {"Retry-After": "3600"})]
    began = time.monotonic()
    with pytest.raises(SimilarityError, match=r"HTTP status 429.*1 tries within 120 s"):
        EndpointSimilarity(server.url, "m").matrix(["a"])
    assert time.monotonic() - began < 5.0


def test_a_server_that_was_away_is_found_again():
    with serving(Server()) as first:
        port = first.server_port
    similarity = EndpointSimilarity(f"http://127.0.0.1:{port}/v1", "m", backoff_s=0.05)
    found = []
    asking = threading.Thread(target=lambda: found.append(similarity.matrix(["a"]).tolist()))
    asking.start()
    time.sleep(0.5)
    assert not found
    with serving(Server(port)):
        asking.join(timeout=20)
    assert found == [[[1]]]


def test_by_default_a_server_may_be_away_for_a_minute_and_the_waits_grow(monkeypatch):
    now, waits = [0.0], []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=sleep))
    similarity = EndpointSimilarity("http://127.0.0.1:9/v1", "m")
    with pytest.raises(SimilarityError, match=r"http://127.0.0.1:9/v1/embeddings: no response"):
        similarity.matrix(["a"])
    assert 60 < now[0] <= 120
    assert waits[0] <= 1.0
    assert 8.0 <= waits[-1] == pytest.approx(max(waits), abs=0.5)
    assert len(set(waits)) == len(waits), "jitter"


def test_without_retries_a_passing_failure_is_an_error(server):
    server.failures = [503]
    with pytest.raises(SimilarityError, match=f"{server.url}/embeddings: HTTP status 503"):
        EndpointSimilarity(server.url, "m", server_timeout_s=0).matrix(["a"])


@pytest.mark.parametrize(
    ("failures", "says", "requests"),
    [
        ([404], "HTTP status 404: no such model", 1),
        ([500] * 999, "HTTP status 500", "several"),
        (["hang"] * 999, "no response", "several"),
        (["not json"], "not JSON", 1),
        (['{"error": "no"}'], "not an embeddings response", 1),
        (['{"data": []}'], "2 texts were sent", 1),
        (['{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}'], "2 texts were sent", 1),
        (['{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": []}]}'], "unequal length", 1),
        (['{"data": [{"index": 0, "embedding": "AA"}, {"index": 1, "embedding": "AA"}]}'], "not numbers", 1),
        (['{"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]}'], "not one vector per text", 1),
        (['{"data": [{"index": 0, "embedding": [[1]]}, {"index": 1, "embedding": [[1]]}]}'], "not one vector", 1),
        (['{"data": [{"index": 0, "embedding": [1e999]}, {"index": 1, "embedding": [1]}]}'], "not finite", 1),
        (['{"data": [{"index": 0, "embedding": [null]}, {"index": 1, "embedding": [1]}]}'], "not numbers", 1),
        (['{"data": [{"index": 0, "embedding": [1' + "0" * 400 + ']}, {"index": 1, "embedding": [1]}]}'], "not num", 1),
        (['{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}'], "not finite", 1),
    ],
)
def test_lasting_failures_are_errors_that_name_the_url(server, failures, says, requests):
    server.failures = failures
    similarity = EndpointSimilarity(server.url, "m", server_timeout_s=0.9, backoff_s=0.01, timeout_s=0.3)
    with pytest.raises(SimilarityError, match=says) as caught:
        similarity.matrix(["a", "b"])
    assert len(server.requests) == requests if requests != "several" else len(server.requests) >= 3
    assert str(caught.value).startswith(f"{server.url}/embeddings: ")


def test_embeddings_of_another_length_than_before_are_refused(server):
    similarity = EndpointSimilarity(server.url, "m")
    similarity.matrix(["a", "b"])
    server.failures = ['{"data": [{"index": 0, "embedding": [1, 2]}]}']
    with pytest.raises(SimilarityError, match="have length 2, but had 3 before; was the model 'm' replaced"):
        similarity.matrix(["a", "x"])


def test_of_text_that_is_not_unicode_what_can_be_said_is_sent(server):
    EndpointSimilarity(server.url, "m").matrix(["a\ud800"])
    assert server.requests[0]["input"] == ["a\ufffd"]


def test_nobody_listens():
    with pytest.raises(SimilarityError, match=r"http://127.0.0.1:9/v1/embeddings: no response"):
        EndpointSimilarity("http://127.0.0.1:9/v1", "m", server_timeout_s=0).matrix(["a"])


@pytest.mark.parametrize(
    "settings", [{"url": "localhost/v1"}, {"batch_size": 0}, {"timeout_s": 0}, {"server_timeout_s": -1}]
)
def test_settings_are_checked(settings):
    with pytest.raises(ConfigError):
        EndpointSimilarity(**{"url": "http://x/v1", "model": "m", **settings})
