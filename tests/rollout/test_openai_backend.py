"""Generation over HTTP: what is asked, what is made of the answer, and what happens when the server is in trouble."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from openai_server import CompletionServer

from gtpo.audit import AuditBatch, audit
from gtpo.errors import BackendError, ConfigError
from gtpo.rollout import ChatEncoder, RolloutEngine, RolloutLimits, Sampling, get_format
from gtpo.rollout.backends import OpenAIBackend, Request
from gtpo.sandbox import ExecResult, Status
from gtpo.types import StopReason

CALL = "```python\n6*7\n```"


class Calculator:
    async def run(self, code, *, limits=None, seed=None, key=None):
        await asyncio.sleep(0.001)
        return ExecResult(Status.OK, stdout=str(eval(code)))


def said(tokenizer, text, *, ids=True, ended=True, strip_end=False):
    token_ids = tokenizer.encode(text) + ([tokenizer.eos_token_id] if ended and not strip_end else [])
    choice = {"text": text, "finish_reason": "stop" if ended else "length"}
    if ids:
        choice |= {"token_ids": token_ids, "logprobs": {"token_logprobs": [-0.5] * len(token_ids)}}
    return 200, {"choices": [choice]}


@pytest.fixture
def serve():
    servers = []

    def make(script, **options):
        servers.append(CompletionServer(script, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def two_turns(tokenizer):
    """A call, then its result as the answer; which of them is told by the context."""

    def script(body):
        return said(tokenizer, "\\boxed{42}" if "```output" in tokenizer.decode(body["prompt"]) else CALL)

    return script


def roll_out(server, tokenizer, rollouts=1, *, sampling=None, engine_options=None, partial_path=None, **options):
    encoder = ChatEncoder(tokenizer, get_format("fenced"))
    backend = OpenAIBackend(server.url, tokenizer, **options)
    engine = RolloutEngine(encoder, Calculator(), RolloutLimits(**(engine_options or {})))
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(rollouts)]
    return engine.run(prompts, backend, sampling=sampling, seed=3, partial_path=partial_path).trajectories


def test_contexts_go_as_ids_and_the_sampled_ids_come_back(serve, tiny_tokenizer):
    server = serve(two_turns(tiny_tokenizer))
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1)
    (rollout,) = roll_out(server, tiny_tokenizer, sampling=sampling)
    assert (rollout.stop_reason, rollout.answer_text, rollout.token_exact) == (StopReason.ANSWER, "\\boxed{42}", True)
    assert rollout.logprobs == [-0.5 if m else 0.0 for m in rollout.mask]
    first, second = (body for _, body, _ in server.bodies)
    assert first["prompt"] == list(rollout.prompt_ids)
    ids = [*rollout.prompt_ids, *rollout.completion_ids]
    assert second["prompt"] == ids[: len(second["prompt"])]
    assert len(second["prompt"]) == len(ids) - len(rollout.turns[1].token_ids)
    expected = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "model": "base"}
    assert expected.items() <= first.items()
    assert first["stop_token_ids"] == [tiny_tokenizer.eos_token_id]
    assert "seed" not in first, "the server samples from its own stream"


def test_the_audit_finds_nothing_wrong_with_rollouts_of_a_server(serve, tiny_tokenizer, qwen_tokenizer):
    def script(body):
        context = tokenizer.decode(body["prompt"])
        return said(tokenizer, "\\boxed{42}" if "42" in context else fmt.render_call("6*7"))

    for tokenizer, name in ((tiny_tokenizer, "fenced"), (qwen_tokenizer, "tool_call")):
        fmt = get_format(name)
        server = serve(script, max_model_len=4096)
        encoder = ChatEncoder(tokenizer, fmt)
        engine = RolloutEngine(encoder, Calculator())
        prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(3)]
        rollouts = engine.run(prompts, OpenAIBackend(server.url, tokenizer)).trajectories
        assert [len(rollout.turns) for rollout in rollouts] == [2, 2, 2]
        report = audit(AuditBatch.from_trajectories(rollouts), tokenizer=tokenizer, encoder=encoder)
        assert report.ok, report.render()


def test_the_same_seed_asks_for_the_same_and_another_for_another(serve, tiny_tokenizer):
    server = serve(two_turns(tiny_tokenizer))
    for _ in range(2):
        roll_out(server, tiny_tokenizer, 4, sampling=Sampling(deterministic=True))
    seeds = [body["seed"] for _, body, _ in server.bodies]
    assert len(set(seeds)) == 8
    assert sorted(seeds[:8]) == sorted(seeds[8:])


def test_text_only_servers_give_rollouts_that_say_they_are_not_exact(serve, tiny_tokenizer):
    server = serve(lambda body: said(tiny_tokenizer, "\\boxed{1}", ids=False))
    (rollout,) = roll_out(server, tiny_tokenizer, dialect="openai")
    assert (rollout.answer_text, rollout.token_exact, rollout.logprobs) == ("\\boxed{1}", False, None)
    assert set(server.bodies[0][1]) == {"model", "temperature", "top_p", "max_tokens", "prompt"}


def test_chat_servers_get_the_conversation_as_messages(serve, tiny_tokenizer):
    def script(body):
        text = "\\boxed{42}" if len(body["messages"]) > 1 else CALL
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    server = serve(script)
    (rollout,) = roll_out(server, tiny_tokenizer, api="chat", dialect="openai", api_key="secret")
    assert (rollout.answer_text, rollout.token_exact) == ("\\boxed{42}", False)
    (path, first, headers), (_, second, _) = server.bodies
    assert path.endswith("/chat/completions")
    assert headers["Authorization"] == "Bearer secret"
    assert first["messages"] == [{"role": "user", "content": "q0"}]
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == CALL
    assert "42" in second["messages"][2]["content"]


def test_an_end_token_that_the_server_keeps_is_put_back_and_the_ids_are_not_exact(serve, tiny_tokenizer):
    server = serve(lambda body: said(tiny_tokenizer, "\\boxed{1}", strip_end=True))
    (rollout,) = roll_out(server, tiny_tokenizer)
    assert rollout.turns[0].token_ids[-1] == tiny_tokenizer.eos_token_id
    assert (rollout.stop_reason, rollout.token_exact) == (StopReason.ANSWER, False)


def test_a_turn_at_its_limit_has_no_end(serve, tiny_tokenizer):
    server = serve(lambda body: said(tiny_tokenizer, "a" * body["max_tokens"], ended=False))
    (rollout,) = roll_out(server, tiny_tokenizer, engine_options={"max_turn_tokens": 9})
    assert (rollout.stop_reason, len(rollout.completion_ids)) == (StopReason.TURN_TOKENS, 9)


def test_a_stop_token_inside_a_call_makes_the_call_invalid(serve, tiny_tokenizer):
    server = serve(lambda body: said(tiny_tokenizer, "```python\n6*"))
    (rollout,) = roll_out(server, tiny_tokenizer, engine_options={"max_turns": 2})
    assert rollout.num_invalid_calls == 2
    assert "was not closed" in rollout.turns[0].observation.text


def test_an_empty_generation_is_an_end_token_or_an_error(serve, tiny_tokenizer):
    server = serve(lambda body: said(tiny_tokenizer, ""))
    (rollout,) = roll_out(server, tiny_tokenizer)
    assert (rollout.turns[0].token_ids, rollout.answer_text) == ((tiny_tokenizer.eos_token_id,), "")
    nothing = serve(lambda body: said(tiny_tokenizer, "", ended=False))
    with pytest.raises(BackendError, match="without a token"):
        roll_out(nothing, tiny_tokenizer)


def test_a_context_overflow_names_what_the_server_said(serve, tiny_tokenizer):
    server = serve(lambda body: (400, {"error": {"message": "maximum context length is 9 tokens"}}))
    with pytest.raises(BackendError, match=r"HTTP status 400.*maximum context length is 9"):
        roll_out(server, tiny_tokenizer)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("trouble", [(503, {}), (429, {}), (500, b"oops"), (200, b"not json")])
def test_passing_trouble_is_tried_again(serve, tiny_tokenizer, trouble):
    troubles = [trouble, trouble]
    server = serve(lambda body: troubles.pop() if troubles else said(tiny_tokenizer, "\\boxed{1}"))
    (rollout,) = roll_out(server, tiny_tokenizer)
    assert rollout.answer_text == "\\boxed{1}"
    assert len(server.bodies) == 3


def test_a_server_killed_in_the_middle_of_a_batch_comes_back_and_nothing_is_lost_or_counted_twice(
    serve, tiny_tokenizer
):
    usual = two_turns(tiny_tokenizer)

    def script(body):
        if len(server.bodies) == 30:
            threading.Thread(target=restart).start()
        time.sleep(0.02)
        return usual(body)

    def restart():
        server.stop()
        time.sleep(0.7)
        server.start()

    server = serve(script)
    rollouts = roll_out(server, tiny_tokenizer, 40)
    assert [r.answer_text for r in rollouts] == ["\\boxed{42}"] * 40
    assert [len(r.turns) for r in rollouts] == [2] * 40
    assert len(server.bodies) > 80, "some requests must have been asked again: the test would show nothing"


def test_a_server_that_stays_away_is_an_error_and_the_finished_rollouts_are_kept(serve, tiny_tokenizer, tmp_path):
    usual = two_turns(tiny_tokenizer)

    def script(body):
        if "q7" in tiny_tokenizer.decode(body["prompt"]) and len(server.bodies) > 1:
            time.sleep(0.3)
            server.stop_soon.set()
            time.sleep(0.3)
        return usual(body)

    server = serve(script)
    server.stop_soon = threading.Event()
    threading.Thread(target=lambda: (server.stop_soon.wait(10), server.stop()), daemon=True).start()
    start = time.monotonic()
    with pytest.raises(BackendError, match=r"no answer for 1 s .* 7 of 8 rollouts had finished and are in "):
        roll_out(server, tiny_tokenizer, 8, server_timeout_s=1.0, partial_path=tmp_path / "a" / "kept.jsonl")
    assert time.monotonic() - start < 8
    assert len((tmp_path / "a" / "kept.jsonl").read_text().splitlines()) == 7


def test_more_rollouts_than_requests_at_once(serve, tiny_tokenizer):
    server = serve(two_turns(tiny_tokenizer))
    rollouts = roll_out(server, tiny_tokenizer, 100, concurrency=8)
    assert [r.answer_text for r in rollouts] == ["\\boxed{42}"] * 100


def test_a_cancelled_request_is_not_asked_again(serve, tiny_tokenizer):
    server = serve(lambda body: (503, {}))

    async def main():
        backend = OpenAIBackend(server.url, tiny_tokenizer)
        async with backend.serve(1, sampling=Sampling(), end_ids=frozenset({1}), seed=0) as serving:
            task = asyncio.ensure_future(serving.generate(Request(0, 0, [1, 2], 3)))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            asked = len(server.bodies)
            await asyncio.sleep(0.6)
            assert 1 <= len(server.bodies) == asked

    asyncio.run(main())


def test_what_the_server_says_of_its_model_is_the_context_and_the_name(serve, tiny_tokenizer):
    server = serve(two_turns(tiny_tokenizer), max_model_len=77)
    backend = OpenAIBackend(server.url, tiny_tokenizer)
    assert (backend.model, backend.max_context) == ("base", 77)
    assert OpenAIBackend(server.url, tiny_tokenizer, max_context=50).max_context == 50
    assert OpenAIBackend(server.url, tiny_tokenizer, model="adapter").max_context == 77
    with pytest.raises(ConfigError, match="the context length of 'other'; give max_context"):
        OpenAIBackend(server.url, tiny_tokenizer, model="other")
    with pytest.raises(ConfigError, match="it lists base, other, adapter"):
        OpenAIBackend(server.url, tiny_tokenizer, model="unknown")


def test_no_server_at_the_start_is_an_error_that_names_the_url(tiny_tokenizer):
    with pytest.raises(BackendError, match=r"http://127.0.0.1:9/v1: no server answers \(ConnectError"):
        OpenAIBackend("http://127.0.0.1:9/v1", tiny_tokenizer, server_timeout_s=0.5)
    with pytest.raises(ConfigError, match="give a URL"):
        OpenAIBackend("localhost:8000", tiny_tokenizer)


def test_filters_that_the_api_does_not_have_are_refused(serve, tiny_tokenizer):
    server = serve(two_turns(tiny_tokenizer))
    with pytest.raises(ConfigError, match="top_k"):
        roll_out(server, tiny_tokenizer, dialect="openai", sampling=Sampling(top_k=5))


def test_a_key_goes_to_the_hosts_that_it_was_named_for_and_never_over_plain_http(tiny_tokenizer, monkeypatch, capsys):
    """Asked by the command as people start it: with OPENAI_API_KEY in the environment for something else."""
    from gtpo.commands.backends import BackendArguments, make_backend
    from gtpo.rollout import RolloutConfig

    def headers(url, **options):
        seen = []
        server = lambda self, *args, **kwargs: seen.append(kwargs["api_key"])  # noqa: E731
        monkeypatch.setattr("gtpo.commands.backends.OpenAIBackend.__init__", server)
        args = BackendArguments(backend="server", base_url=url, served_model="m", **options)
        make_backend(args, RolloutConfig(max_context=64), None, tiny_tokenizer)
        return seen[0]

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("MY_KEY", "mine")
    assert headers("https://api.openai.com/v1") == "secret"
    assert headers("https://elsewhere.example/v1") is None
    assert headers("http://localhost:8000/v1") is None
    assert headers("https://elsewhere.example/v1", api_key_variable="MY_KEY") == "mine"
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="plain http"):
        OpenAIBackend("http://elsewhere.example/v1", tiny_tokenizer, model="m", max_context=64, api_key="secret")
    OpenAIBackend("http://127.0.0.1:1/v1", tiny_tokenizer, model="m", max_context=64, api_key="secret")
