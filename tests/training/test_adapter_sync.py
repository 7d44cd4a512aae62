"""LoRA adapters through a folder, on a scripted server that forgets them when it is started anew."""

from __future__ import annotations

import json
import threading
import time

import pytest
from accelerate import Accelerator
from openai_server import CompletionServer
from peft import LoraConfig, get_peft_model

from gtpo._http import Answer
from gtpo.errors import BackendError
from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.rollout import ChatEncoder, RolloutEngine, get_format
from gtpo.sandbox import ExecResult, Status
from gtpo.training.vllm import AdapterSync


class Calculator:
    async def run(self, code, *, limits=None, seed=None, key=None):
        return ExecResult(Status.OK, stdout="42")


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tokenizer = make_tokenizer()
    loads = []

    def script(body):
        time.sleep(0.01)
        if "lora_path" in body:
            loads.append(body["lora_name"])
            if body["lora_name"] in server.adapters:
                return 400, {"error": f"The lora adapter '{body['lora_name']}' has already been loaded."}
            server.adapters.add(body["lora_name"])
            return 200, {}
        if "lora_name" in body:
            known = body["lora_name"] in server.adapters
            server.adapters.discard(body["lora_name"])
            return (200, {}) if known else (404, {"error": "not found"})
        if body["model"] not in server.adapters:
            return 404, {"error": f"The model `{body['model']}` does not exist."}
        turn = "42" in tokenizer.decode(body["prompt"])
        text = "\\boxed{42}" if turn else "```python\n6*7\n```"
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        return 200, {
            "choices": [{"finish_reason": "stop", "token_ids": ids, "logprobs": {"token_logprobs": [-0.5] * len(ids)}}]
        }

    server = CompletionServer(script)
    model = get_peft_model(
        make_model(tokenizer, seed=0, hidden_size=32, layers=1), LoraConfig(r=2, target_modules=["q_proj"])
    )
    sync = AdapterSync(model, Accelerator(cpu=True), server.url, tmp_path, server_timeout_s=20)
    engine = RolloutEngine(ChatEncoder(tokenizer, get_format("fenced")), Calculator())
    yield server, sync, engine, tokenizer, loads
    server.stop()


def roll_out(engine, sync, tokenizer, count=40):
    with sync.backend(tokenizer) as backend:
        return engine.run([[{"role": "user", "content": f"q{i}"}] for i in range(count)], backend).trajectories


def test_a_server_that_was_started_anew_in_the_middle_of_a_batch_is_given_the_adapter_again(world):
    server, sync, engine, tokenizer, loads = world
    sync.sync_weights()
    assert server.adapters == {"adapter", sync.name}

    def restart():
        while len(server.bodies) < 30:
            time.sleep(0.001)
        server.stop()
        server.adapters = set()
        time.sleep(0.5)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    rollouts = roll_out(engine, sync, tokenizer)
    thread.join()
    assert [r.answer_text for r in rollouts] == ["\\boxed{42}"] * 40
    assert all(r.token_exact for r in rollouts)
    assert loads == [sync.name] * 2, "once at the sync, and once for all requests that found it gone"


def test_a_server_that_was_started_anew_before_the_rollouts_is_given_the_adapter_again(world):
    server, sync, engine, tokenizer, loads = world
    sync.sync_weights()
    server.adapters = set()
    assert len(roll_out(engine, sync, tokenizer, 4)) == 4
    assert loads == [sync.name] * 2


def test_a_server_that_never_knows_the_model_is_an_error(world):
    server, sync, engine, tokenizer, _ = world
    sync.sync_weights()
    usual = server.script
    server.script = lambda body: (404, {"error": "no such model"}) if "model" in body else usual(body)
    with pytest.raises(BackendError, match="404"):
        roll_out(engine, sync, tokenizer, 2)


def test_a_sync_waits_for_a_server_that_is_away(world):
    server, sync, engine, tokenizer, _ = world
    sync.sync_weights()
    first = sync.name
    server.stop()
    server.adapters = set()
    threading.Timer(0.8, server.start).start()
    sync.sync_weights()
    assert server.adapters == {sync.name}
    assert sync.name != first
    assert len(roll_out(engine, sync, tokenizer, 4)) == 4


def test_a_server_that_stays_away_or_takes_no_adapters_is_an_error(world):
    server, sync, *_ = world
    server.script = lambda body: (405, {"error": "not allowed"})
    with pytest.raises(BackendError, match=r"--enable-lora.*--max-lora-rank RANK.*--logprobs-mode processed_logprobs"):
        sync.sync_weights()
    server.stop()
    sync.server_timeout_s = 0.6
    with pytest.raises(BackendError, match=r"no answer for 0\.6 s"):
        sync.sync_weights()


@pytest.mark.parametrize(
    ("status", "mode", "said"),
    [
        (200, "processed_logprobs", None),
        (200, "raw_logprobs", "runs with --logprobs-mode raw_logprobs"),
        (404, None, "does not say its --logprobs-mode"),
    ],
)
def test_a_server_whose_log_probabilities_bias_the_correction_is_told_of(world, monkeypatch, status, mode, said):
    server, sync, *_ = world
    asked = []

    def ask(method, url, **options):
        asked.append(url)
        return Answer(status, {}, json.dumps({"vllm_config": {"model_config": {"logprobs_mode": mode}}}).encode())

    monkeypatch.setattr("gtpo.training.vllm.ask", ask)
    found = sync.wrong_logprobs()
    assert asked == [f"{server.url.removesuffix('/v1')}/server_info"]
    assert (found is None) == (said is None)
    assert said is None or (said in found and "--logprobs-mode processed_logprobs" in found)
