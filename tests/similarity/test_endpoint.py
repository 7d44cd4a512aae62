"""The endpoint, against a real HTTP server on this machine."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from serving import serving

from gtpo.errors import ConfigError
from gtpo.similarity import SimilarityError, get_similarity
from gtpo.similarity.endpoint import EndpointSimilarity


class Server(ThreadingHTTPServer):
    """An embeddings endpoint; each entry of `failures` spoils one request, first come first served."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.failures: list[int | str] = []
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
        elif isinstance(failure, str):
            self.reply(200, failure.encode())
        else:
            rows = [
                {"index": i, "object": "embedding", "embedding": [text.count(c) for c in "abx"]}
                for i, text in enumerate(body["input"])
            ]
            self.reply(200, json.dumps({"object": "list", "data": rows[::-1]}).encode())

    def reply(self, status: int, body: bytes):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
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


@pytest.mark.parametrize("failure", [503, 429, "hang"])
def test_passing_failures_are_tried_again(server, failure):
    server.failures = [failure]
    similarity = EndpointSimilarity(server.url, "m", backoff_s=0.01, timeout_s=0.5)
    assert similarity.matrix(["a"]).tolist() == [[1]]
    assert len(server.requests) == 2


def test_without_retries_a_passing_failure_is_an_error(server):
    server.failures = [503]
    with pytest.raises(SimilarityError, match=f"{server.url}/embeddings: HTTP status 503"):
        EndpointSimilarity(server.url, "m", retries=0).matrix(["a"])


@pytest.mark.parametrize(
    ("failures", "says", "requests"),
    [
        ([404], "HTTP status 404: no such model", 1),
        ([500] * 9, "HTTP status 500", 3),
        (["hang"] * 9, "no response", 3),
        (["not json"], "not JSON", 1),
        (['{"error": "no"}'], "not an embeddings response", 1),
        (['{"data": []}'], "2 texts sent", 1),
        (['{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}'], "2 texts sent", 1),
        (['{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": []}]}'], "unequal length", 1),
        (['{"data": [{"index": 0, "embedding": "AA"}, {"index": 1, "embedding": "AA"}]}'], "not numbers", 1),
        (['{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}'], "not finite", 1),
    ],
)
def test_lasting_failures_are_errors_that_name_the_url(server, failures, says, requests):
    server.failures = failures
    similarity = EndpointSimilarity(server.url, "m", retries=2, backoff_s=0.01, timeout_s=0.3)
    with pytest.raises(SimilarityError, match=says) as caught:
        similarity.matrix(["a", "b"])
    assert len(server.requests) == requests
    if says != "not finite":
        assert str(caught.value).startswith(f"{server.url}/embeddings: ")


def test_nobody_listens():
    with pytest.raises(SimilarityError, match=r"http://127.0.0.1:9/v1/embeddings: no response"):
        EndpointSimilarity("http://127.0.0.1:9/v1", "m", retries=0).matrix(["a"])


@pytest.mark.parametrize("settings", [{"url": "localhost/v1"}, {"batch_size": 0}, {"timeout_s": 0}, {"retries": -1}])
def test_settings_are_checked(settings):
    with pytest.raises(ConfigError):
        EndpointSimilarity(**{"url": "http://x/v1", "model": "m", **settings})
