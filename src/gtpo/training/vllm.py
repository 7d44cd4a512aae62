"""vLLM for the trainer: TRL's engine in this process, and servers, with and without NCCL.

TRL starts a colocated engine, wakes it, and pushes weights into it; it also pushes weights to a server, over
NCCL, which needs CUDA on both sides. `AdapterSync` does not need NCCL: it writes the LoRA adapter into a folder that
the server can read too, and tells the server to load it.
"""

from __future__ import annotations

import functools
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from accelerate.utils import gather_object

from gtpo._http import ask
from gtpo.errors import BackendError, ConfigError
from gtpo.rollout.backends import OpenAIBackend, VLLMBackend
from gtpo.rollout.backends.openai import until_answered

_LOAD_S, _INFO_S = 300.0, 30.0


def colocated(generation: Any) -> VLLMBackend:
    """TRL's engine in this process, which sleeps between batches if sleep mode is enabled."""

    def wake() -> None:
        if generation.enable_sleep_mode:
            if generation._llm_weights_sleeping:
                generation.sync_weights()
            generation.llm.wake_up(tags=["kv_cache"])

    def sleep() -> None:
        if generation.enable_sleep_mode:
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True

    return VLLMBackend(generation.llm, before=wake, after=sleep)


def check_takes_weights(generation: Any) -> None:
    """Refuse an engine that TRL can't push weights into.

    Raises:
        ConfigError: the engine is vLLM's CPU build, which packs its linear layers and drops the original weights.
    """
    model = generation.llm.llm_engine.model_executor.driver_worker.model_runner.model
    if any(hasattr(module, "cpu_linear") and not module.weight.numel() for module in model.modules()):
        raise ConfigError(
            "vLLM's CPU build packs its weights and can't load new ones: without an accelerator, omit --use_vllm, or "
            "use --vllm_mode server --vllm_sync adapter"
        )


def server_url(args: Any) -> str:
    """Base URL of the server's API, from TRL's options."""
    base = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
    return f"{base.rstrip('/').removesuffix('/v1')}/v1"


class AdapterSync:
    """Replaces TRL's weight sync: one folder per step, loaded by the server as a model with its own name.

    The server must have been started with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora
    --max-lora-rank RANK --logprobs-mode processed_logprobs`, where BASE is the base model of the adapter.

    Args:
        model: the PEFT model that is trained.
        accelerator: the trainer's accelerator.
        url: base URL of the server's API.
        folder: the folder for adapters; the server must see it under the same path.
        server_timeout_s: seconds for which the server may be unavailable before that is an error. A restarted server
            is given the adapter again.

    Raises:
        ConfigError: the model has no LoRA adapter.
    """

    def __init__(
        self, model: Any, accelerator: Any, url: str, folder: str | Path, server_timeout_s: float = 120.0
    ) -> None:
        if not hasattr(model, "peft_config"):
            raise ConfigError(
                "vllm_sync 'adapter' needs a LoRA adapter: train with --use_peft, or send all weights with --vllm_sync "
                "nccl, which needs CUDA"
            )
        self.model, self.accelerator, self.url = model, accelerator, url
        self.folder = Path(folder).resolve()
        self.name, self.server_timeout_s = "", server_timeout_s
        self._run, self._count = uuid.uuid4().hex[:8], 0
        self._users: Counter[str] = Counter()
        self._lock = threading.Lock()

    def wrong_logprobs(self) -> str | None:
        """Why the server's log-probabilities are wrong for TRL's correction; None if no problem is known.

        The correction needs them after temperature and truncation. A server reports its mode only in development mode.
        """
        try:
            url = f"{self.url.removesuffix('/v1')}/server_info"
            found = ask("GET", url, params={"config_format": "json"}, timeout_s=_INFO_S)
            mode = found.json()["vllm_config"]["model_config"]["logprobs_mode"] if found.status_code == 200 else None
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            mode = None
        if mode == "processed_logprobs":
            return None
        seen = f"runs with --logprobs-mode {mode}" if mode else "does not say its --logprobs-mode"
        return (
            f"the vLLM server {seen}; any mode but processed_logprobs biases the importance sampling correction. "
            "Start it with --logprobs-mode processed_logprobs, or set --vllm_importance_sampling_correction false"
        )

    def sync_weights(self) -> None:
        """Make the server sample from the current adapter; older ones are kept as long as rollouts use them.

        Raises:
            BackendError: the server does not load it; the message has its answer and how it must be started.
        """
        self._count += 1
        self.name = f"gtpo-{self._run}-{self._count}"
        model = self.accelerator.unwrap_model(self.model)
        state = self.accelerator.get_state_dict(self.model)  # gathers over processes: all must take part
        if self.accelerator.is_main_process:
            model.save_pretrained(self.folder / self.name, state_dict=state)
            self._load(self.name)
        self._users[self.name] = 0
        with self._lock:
            unused = [name for name, users in self._users.items() if name != self.name and not users]
        for name in self._unused_everywhere(unused):
            del self._users[name]
            if self.accelerator.is_main_process:
                self._tell("unload_lora_adapter", {"lora_name": name}, gone=404)
                shutil.rmtree(self.folder / name, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _unused_everywhere(self, unused: list[str]) -> list[str]:
        """Those of these adapters that no process uses."""
        everywhere = [set(names) for names in gather_object([unused])]
        return [name for name in unused if all(name in names for names in everywhere)]

    def _load(self, name: str) -> None:
        """Load an adapter, also a second time: a restarted server has only the base model."""
        body = {"lora_name": name, "lora_path": str(self.folder / name)}
        self._tell("load_lora_adapter", body, gone=400, said="already")

    def _tell(self, what: str, body: dict[str, str], *, gone: int, said: str = "") -> None:
        """Send the request; the status `gone`, with `said` in the answer, means that it is already done."""
        url = f"{self.url}/{what}"
        answer = until_answered(
            lambda: ask("POST", url, document=body, timeout_s=_LOAD_S),
            self.server_timeout_s,
            f"{url}: no answer for {self.server_timeout_s:g} s",
        )
        if answer.status_code != 200 and not (answer.status_code == gone and said in answer.text):
            raise BackendError(
                f"{url}: HTTP status {answer.status_code}: {answer.text[:500]}. Start the server with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora --max-lora-rank RANK and --logprobs-mode "
                f"processed_logprobs, and let it see {self.folder} under the same path"
            )

    @contextmanager
    def backend(self, tokenizer: Any) -> Iterator[OpenAIBackend]:
        """The server, sampling from the last synced adapter, which it keeps until the context ends."""
        name = self.name
        with self._lock:
            self._users[name] += 1
        try:
            yield OpenAIBackend(
                self.url,
                tokenizer,
                model=name,
                server_timeout_s=self.server_timeout_s,
                reload=functools.partial(self._load, name),
            )
        finally:
            with self._lock:
                self._users[name] -= 1
