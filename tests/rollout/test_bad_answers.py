"""Servers that answer nonsense: refused as failing servers, whatever the nonsense, and never taken for a rollout."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from openai_server import CompletionServer

from gtpo._http import AnswerTooLargeError, ask
from gtpo.errors import BackendError, BadAnswerError, ConfigError
from gtpo.rollout import ChatEncoder, RolloutEngine, RolloutLimits, Sampling, get_format
from gtpo.rollout.backends import BackendPool, OpenAIBackend, Request, VLLMBackend
from gtpo.sandbox import ExecResult, Status
from gtpo.similarity import SimilarityError
from gtpo.similarity.endpoint import EndpointSimilarity
from gtpo.types import StopReason

NAN = float("nan")
ASKED = 6


class Nothing:
    async def run(self, code, *, limits=None, seed=None, key=None):
        return ExecResult(Status.OK)


def good(end, **changes):
    """A whole answer of three tokens, with changes."""
    choice = {"text": "ab", "finish_reason": "stop", "token_ids": [5, 6, end]}
    choice["logprobs"] = {"token_logprobs": [-0.5, -1, 0.0]}
    return {"choices": [choice | changes]}


def logprobs(values):
    return {"logprobs": {"token_logprobs": values}}


NONSENSE = {
    "NaN": logprobs([-0.5, NAN, 0.0]),
    "minus infinity": logprobs([-0.5, -float("inf"), 0.0]),
    "positive": logprobs([-0.5, 0.7, 0.0]),
    "text": logprobs([-0.5, "-1", 0.0]),
    "null": logprobs([None, -1.0, 0.0]),
    "true": logprobs([True, -1.0, 0.0]),
    "too few": logprobs([-0.5]),
    "none": {"logprobs": None},
    "empty": {"logprobs": {}},
    "a list": {"logprobs": [-1.0, -1.0, -1.0]},
    "a number that no float holds": logprobs([-0.5, -(10**400), 0.0]),
    "outside of the vocabulary": {"token_ids": [5, 2**40, 7]},
    "negative id": {"token_ids": [5, -1, 7]},
    "an id that is text": {"token_ids": [5, "6", 7]},
    "an id that is a float": {"token_ids": [5, 6.0, 7]},
    "ids that are text": {"token_ids": "123"},
    "no ids": {"token_ids": [], "finish_reason": "length"},
    "more than asked": {"token_ids": [5] * (ASKED + 1), **logprobs([-1.0] * (ASKED + 1))},
    "aborted": {"finish_reason": "abort"},
    "no reason": {"finish_reason": None},
    "a reason that is a list": {"finish_reason": ["stop"]},
}
DOCUMENTS = {
    "no choice": {"choices": []},
    "two choices": {"choices": [{}, {}]},
    "choices of text": {"choices": ["a"]},
    "choices in an object": {"choices": {"0": {}}},
    "an array": [],
    "null": None,
    "an error": {"error": {"message": "no"}},
    "text that is none": {"choices": [{"finish_reason": "stop", "text": ["a"]}]},
}


@pytest.fixture
def serve():
    servers = []

    def make(script):
        servers.append(CompletionServer(script))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("gtpo.rollout.backends.openai._FIRST_WAIT_S", 0.001)


def generate(backend, tokenizer):
    async def main():
        end_ids = frozenset({tokenizer.eos_token_id})
        async with backend.serve(1, sampling=Sampling(), end_ids=end_ids, seed=0) as session:
            return await session.generate(Request(0, 0, [1, 2], ASKED))

    return asyncio.run(main())


def test_the_whole_answer_is_taken(serve, tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    found = generate(OpenAIBackend(serve(lambda body: (200, good(end))).url, tiny_tokenizer), tiny_tokenizer)
    assert (found.token_ids, found.logprobs, found.token_exact) == ((5, 6, end), (-0.5, -1.0, 0.0), True)


@pytest.mark.parametrize("kind", [*NONSENSE, *DOCUMENTS, "an id after the end", "not JSON", "too deep"])
def test_nonsense_is_asked_for_again_and_then_a_failing_server(serve, tiny_tokenizer, kind):
    end = tiny_tokenizer.eos_token_id
    document = good(end, **NONSENSE[kind]) if kind in NONSENSE else DOCUMENTS.get(kind)
    if kind == "an id after the end":
        document = good(end, token_ids=[5, end, 6])
    raw = {"not JSON": b"{'", "too deep": b"[" * 10**5}.get(kind, json.dumps(document).encode())
    server = serve(lambda body: (200, raw))
    with pytest.raises(BadAnswerError, match=rf"^{server.url}/completions: .*\(3 tries\)"):
        generate(OpenAIBackend(server.url, tiny_tokenizer), tiny_tokenizer)
    assert len(server.bodies) == 3


def test_nonsense_that_passes_costs_nothing(serve, tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    answers = [good(end), good(end, **NONSENSE["NaN"]), good(end, **NONSENSE["aborted"])]
    server = serve(lambda body: (200, answers.pop()))
    assert generate(OpenAIBackend(server.url, tiny_tokenizer), tiny_tokenizer).logprobs == (-0.5, -1.0, 0.0)


def test_rollouts_of_a_server_of_nonsense_are_masked_and_a_pool_goes_on_without_it(serve, tiny_tokenizer):
    bad = serve(lambda body: (200, good(tiny_tokenizer.eos_token_id, **NONSENSE["NaN"])))
    fine = serve(lambda body: (200, good(tiny_tokenizer.eos_token_id)))
    engine = RolloutEngine(
        ChatEncoder(tiny_tokenizer, get_format("fenced")), Nothing(), RolloutLimits(max_turn_tokens=ASKED)
    )
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(4)]
    backends = [OpenAIBackend(server.url, tiny_tokenizer) for server in (bad, fine)]
    masked = engine.run(prompts, backends[0], mask_failures=True).trajectories
    assert [(t.stop_reason, "nan is not a valid" in t.note) for t in masked] == [(StopReason.MODEL_FAILURE, True)] * 4
    with pytest.raises(BackendError, match="is not a valid log-probability"):
        engine.run(prompts, backends[0])
    found = engine.run(prompts, BackendPool(backends)).trajectories
    assert [t.stop_reason for t in found] == [StopReason.ANSWER] * 4


def test_a_text_longer_than_asked_ends_at_the_limit_and_one_that_is_not_unicode_is_read(serve, tiny_tokenizer):
    texts = ["a\ud800b", "a" * 10_000]
    server = serve(lambda body: (200, {"choices": [{"finish_reason": "stop", "text": texts.pop()}]}))
    backend = OpenAIBackend(server.url, tiny_tokenizer, dialect="openai")
    long, odd = (generate(backend, tiny_tokenizer) for _ in range(2))
    assert (len(long.token_ids), long.token_ids[-1] == tiny_tokenizer.eos_token_id) == (ASKED, False)
    assert not odd.token_exact


@pytest.mark.parametrize(
    "models", [b"{}", b"[]", b"<html>", b'{"data": [{"id": "base", "max_model_len": "many"}]}', b'{"data": ["base"]}']
)
def test_a_list_of_models_that_is_none_is_an_error_that_names_the_url(models, tiny_tokenizer):
    with _Dripping(models, pause_s=0, head=_head(models)) as url, pytest.raises(ConfigError, match=f"^{url}/models: "):
        OpenAIBackend(url, tiny_tokenizer)


def _head(body):
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)


class _Dripping:
    """A server that sends one byte after another, for ever or to the end of what it has."""

    def __init__(self, body, pause_s, head=b""):
        self.data, self.pause_s, self.socket = head + body, pause_s, socket.create_server(("127.0.0.1", 0))
        self.over = threading.Event()

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"

    def __exit__(self, *_):
        self.over.set()
        self.socket.close()

    def accept(self):
        while not self.over.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        with connection:
            try:
                connection.recv(1 << 16)
                if not self.pause_s:
                    connection.sendall(self.data)
                    return
                for byte in self.data:
                    connection.sendall(bytes([byte]))
                    if self.over.wait(self.pause_s):
                        return
            except OSError:
                return


@pytest.mark.parametrize("where", ["head", "body"])
def test_an_answer_that_drips_is_given_up_at_its_time(where, tiny_tokenizer):
    data = (
        b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 1\r\n" * 10**4 if where == "head" else _head(b" " * 10**6) + b" " * 10**6
    )
    with _Dripping(data, pause_s=0.02) as url:
        backend = OpenAIBackend(url, tiny_tokenizer, model="m", max_context=64, timeout_s=0.2)
        began = time.monotonic()
        with pytest.raises(BadAnswerError, match=r"no whole answer within 0.2 s \(3 tries\)"):
            generate(backend, tiny_tokenizer)
        similarity = EndpointSimilarity(url, "m", timeout_s=0.2, server_timeout_s=0)
        with pytest.raises(SimilarityError, match=r"/embeddings: no response .*no whole answer within 0.2 s"):
            similarity.matrix(["a"])
        assert time.monotonic() - began < 20


def test_an_answer_that_does_not_end_is_given_up_at_its_size(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("gtpo.rollout.backends.openai._ANSWER_BYTES", 1000)
    with _Dripping(b" " * 10**6, pause_s=0, head=_head(b" " * 10**6)) as url:
        with pytest.raises(BadAnswerError, match=r"an answer of more than \d+ bytes \(3 tries\)"):
            generate(OpenAIBackend(url, tiny_tokenizer, model="m", max_context=64), tiny_tokenizer)
        with pytest.raises(AnswerTooLargeError):
            ask("GET", url, timeout_s=20, most_bytes=10**5)
        monkeypatch.setattr("gtpo.similarity.endpoint.ANSWER_BYTES", 1000)
        with pytest.raises(SimilarityError, match="an answer of more than 1000 bytes"):
            EndpointSimilarity(url, "m").matrix(["a"])


class _Engine:
    """vLLM's engine with one request that is answered at once."""

    model_config = SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 50)

    def __init__(self, outputs):
        self.outputs, self.names = outputs, []

    def add_request(self, name, prompt, params):
        self.names.append(name)

    def step(self):
        return [SimpleNamespace(finished=True, request_id=self.names.pop(), outputs=self.outputs)]

    def abort_request(self, names):
        pass


def _completion(ids, values):
    return SimpleNamespace(token_ids=ids, logprobs=values and [{i: SimpleNamespace(logprob=v)} for i, v in values])


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([_completion([5, 6], [(5, -1.0), (6, NAN)])], "nan is not a valid log-probability"),
        ([_completion([5, 6], [(5, -1.0)])], "without one log-probability for each"),
        ([_completion([5, 6], [(5, -1.0), (7, -1.0)])], "without one log-probability for each"),
        ([_completion([5, 6], None)], "without one log-probability for each"),
        ([_completion([5, 50], [(5, -1.0), (50, -1.0)])], "not in the vocabulary of 50"),
        ([_completion([5] * 9, [(5, -1.0)] * 9)], "9 tokens, but at most 6"),
        ([], "0 completions"),
        ([_completion([5], [(5, -1.0)])], None),
    ],
)
def test_vllm_in_this_process_is_looked_at_alike(outputs, says, tiny_tokenizer, monkeypatch):
    names = {"SamplingParams": lambda **options: options}
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(**names))
    monkeypatch.setitem(
        sys.modules, "vllm.sampling_params", SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY=0))
    )
    backend = VLLMBackend(SimpleNamespace(llm_engine=_Engine(outputs)))
    if says is None:
        assert generate(backend, tiny_tokenizer).logprobs == (-1.0,)
        return
    with pytest.raises(BadAnswerError, match=f"^vLLM: .*{says}"):
        generate(backend, tiny_tokenizer)
