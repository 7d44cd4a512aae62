"""Training on one host, a real vLLM server on a second, sandbox servers on a third and fourth: LoRA on SmolLM2.

The hosts are addresses of this machine (127.0.0.2 and so on; Linux). Run by hand, like `test_real_vllm`; ten minutes on
two cores. In the second step vLLM is killed and stays away for 30 s, and one sandbox server is lost for good.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")
from peft import LoraConfig
from quiet import QUIET
from test_real_vllm import MODEL, VLLMServer, free_port
from transformers import AutoModelForCausalLM, AutoTokenizer

from gtpo.rollout import build_prompts
from gtpo.run_directory import RunFiles
from gtpo.sandbox import SandboxFusionSandbox
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict
from gtpo.training.config import GTPOConfig
from gtpo.training.data import problem_dataset
from gtpo.training.recorder import RunRecorder
from gtpo.training.trainer import GTPOTrainer

pytestmark = [
    pytest.mark.skipif(not MODEL, reason="GTPO_SMOLLM2 names no model folder"),
    pytest.mark.timeout(1500),
]
VLLM_HOST, SANDBOX_HOSTS = "127.0.0.2", ("127.0.0.3", "127.0.0.4")
ROLLOUTS, STEPS = 8, 3


class Anything:
    """Passes every second answer, so that there is something to learn."""

    def __init__(self):
        self.asked = 0

    def verify_many(self, texts, problems):
        self.asked += len(texts)
        return [Verdict(i % 2 == 0, float(i % 2 == 0), "every second") for i in range(len(texts))]

    def has_answer(self, text):
        return True


class AlwaysCalls:
    """Every turn that ends is taken for a call that computes its own length, so that sandboxes have work."""

    def __init__(self, plain):
        self.plain = plain

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def parse(self, text):
        return self.plain.parse(f"```python\n{len(text)} * 2\n```")


@pytest.fixture
def hosts(tmp_path):
    environment = {**os.environ, "GTPO_SANDBOX_KEY": "secret"}
    log = (tmp_path / "log").open("wb")
    vllm = VLLMServer(log, free_port(), VLLM_HOST)
    vllm.start()
    sandboxes, urls = [], []
    for host in SANDBOX_HOSTS:
        port = free_port()
        command = [sys.executable, "-m", "gtpo.cli", "sandbox", "serve", "--host", host, "--port", str(port)]
        sandboxes.append(subprocess.Popen([*command, "--max_workers", "1"], env=environment, stdout=log, stderr=log))
        urls.append(f"http://{host}:{port}")
    yield vllm, sandboxes, urls
    vllm.kill()
    for process in sandboxes:
        process.kill()
        process.wait()


def served_logprobs(url, name, ids):
    """Log-probabilities of ids 1... under the model of this name on the server."""
    body = {"model": name, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 1.0}
    answer = httpx.post(f"{url}/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    found = answer.json()["choices"][0]["prompt_logprobs"]
    return torch.tensor([entry[str(token)]["logprob"] for token, entry in zip(ids[1:], found[1:], strict=True)])


def own_logprobs(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_a_lora_run_over_hosts_that_fail(hosts, tmp_path, monkeypatch):
    vllm, sandboxes, urls = hosts
    monkeypatch.setenv("GTPO_SANDBOX_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8,127.0.0.2,127.0.0.3,127.0.0.4")
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    args = GTPOConfig(
        run_dir=str(tmp_path / "run"),
        tool_format="fenced",
        sandbox=",".join(urls),
        use_vllm=True,
        vllm_mode="server",
        vllm_sync="adapter",
        vllm_server_base_url=vllm.url,
        max_turns=3,
        max_turn_tokens=96,
        max_completion_length=384,
        num_generations=4,
        per_device_train_batch_size=ROLLOUTS,
        max_steps=STEPS,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        **QUIET,
    )
    for url in urls:
        deadline = time.monotonic() + 60
        while True:
            try:
                SandboxFusionSandbox(url, headers={"Authorization": "Bearer secret"}).ping()
                break
            except Exception:
                assert time.monotonic() < deadline
                time.sleep(0.5)
    probe = tokenizer.encode("What is 12 * 7? Let me compute it with Python:\n```python\nprint(12 * 7)\n```")
    seen = []

    class Watched(GTPOTrainer):
        def _roll_out(self, prompts, trainer):
            name = self.vllm_generation.name
            self.model.eval()
            served, own = served_logprobs(f"{vllm.url}", name, probe), own_logprobs(self.model, probe)
            self.model.train()
            if len(seen) == 1:
                threading.Thread(target=trouble, daemon=True).start()
            start = time.monotonic()
            output = super()._roll_out(prompts, trainer)
            seen.append((served, own, len(output["completion_ids"]), time.monotonic() - start))
            return output

    def trouble():
        time.sleep(2)
        sandboxes[1].kill()
        vllm.kill()
        time.sleep(30)
        vllm.start()

    problems = [Problem(id=str(i), question=f"{i}+1?", answer=str(i + 1)) for i in range(8)]
    from gtpo.rollout.backends import OpenAIBackend

    OpenAIBackend(vllm.url, tokenizer, server_timeout_s=300)  # waits until it is up
    trainer = Watched(
        AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"),
        args=args,
        train_dataset=problem_dataset(problems, build_prompts(args)),
        processing_class=tokenizer,
        verifier=Anything(),
        recorder=RunRecorder(args.run_dir),
        peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.engine.encoder.format = AlwaysCalls(trainer.engine.encoder.format)
    trainer.vllm_generation.server_timeout_s = 300
    trainer.train()

    assert [count for *_, count, _ in seen] == [ROLLOUTS] * STEPS
    assert seen[1][3] > 30, "the second step lived through the server's absence"
    for served, own, *_ in seen:
        torch.testing.assert_close(served, own, atol=0.02, rtol=0)
    for (before, *_), (after, *_) in itertools.pairwise(seen):
        assert (after - before).abs().max() > 0.05, "the update has reached the server"
    for step in range(1, STEPS + 1):
        rows = RunFiles(tmp_path / "run").rollouts(step)
        assert len(rows) == ROLLOUTS
        assert not any(row["masked"] for row in rows), "no rollout was lost to a failed sandbox"
        assert sum(turn["observation"] is not None for row in rows for turn in row["turns"]) > 1, "sandboxes had work"
    print("seconds of rollouts by step:", [round(seconds, 1) for *_, seconds in seen])
