"""The options that choose the generation backend: transformers or vLLM in this process, or a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from gtpo._http import key_for
from gtpo._text import say
from gtpo.commands.model_options import GenerationModelConfig, load_model
from gtpo.errors import BackendError, ConfigError, ServerGoneError
from gtpo.rollout import RolloutConfig
from gtpo.rollout.backends import Backend, BackendPool, OpenAIBackend, TransformersBackend, VLLMBackend


@dataclass
class BackendArguments:
    """Generation backend."""

    backend: Literal["transformers", "vllm", "server"] = field(
        default="transformers",
        metadata={
            "help": "Generation backend: transformers or vllm in this process, or a server with an OpenAI-compatible "
            "API."
        },
    )
    vllm_options: str = field(
        default="{}", metadata={"help": 'With vllm: options of the engine, as JSON, such as {"enforce_eager": true}.'}
    )
    base_url: str | None = field(
        default=None,
        metadata={
            "help": "With server: URL, such as http://localhost:8000/v1, or several separated by commas. --model names "
            "the tokenizer."
        },
    )
    served_model: str | None = field(
        default=None, metadata={"help": "With server: name of the model on it; by default the first one it lists."}
    )
    dialect: Literal["vllm", "openai"] = field(
        default="vllm", metadata={"help": "With server: vllm exchanges token ids, openai exchanges text only."}
    )
    api: Literal["completions", "chat"] = field(
        default="completions",
        metadata={
            "help": "With server: completions, or chat if the server offers nothing else. Token ids of chat rollouts "
            "are not exact."
        },
    )
    api_key_variable: str | None = field(
        default=None,
        metadata={
            "help": "With server: environment variable that holds the API key. By default OPENAI_API_KEY for OpenAI's "
            "own server, and no key otherwise."
        },
    )

    @property
    def max_concurrency(self) -> int:
        """Number of concurrent rollouts if the options do not set it."""
        return 64 if self.backend == "transformers" else 256


def make_backend(
    args: BackendArguments, rollout: RolloutConfig, model_args: GenerationModelConfig, tokenizer: Any
) -> Backend:
    """The backend that the options ask for.

    Raises:
        ConfigError: options contradict each other, vLLM is missing, or a model can't be loaded.
        BackendError: no server answers.
    """
    if args.backend == "transformers":
        return TransformersBackend(
            load_model(model_args, trust_remote_code=model_args.trust_remote_code),
            batch_size=rollout.max_concurrency or args.max_concurrency,
        )
    if args.backend == "vllm":
        return VLLMBackend(_engine(args, rollout, model_args))
    if not args.base_url:
        raise ConfigError("--backend server needs --base_url, such as http://localhost:8000/v1")
    return _servers(args, rollout, tokenizer, args.base_url.split(","))


def _servers(args: BackendArguments, rollout: RolloutConfig, tokenizer: Any, urls: Sequence[str]) -> Backend:
    """The server, or those of several servers that answer."""
    found: list[Backend] = []
    for url in urls:
        try:
            found.append(_server(args, rollout, tokenizer, url.strip()))
        except ServerGoneError as error:
            if len(urls) == 1:
                raise
            say(f"server left out: {error}")
    if not found:
        raise BackendError("--base_url: no server answers")
    return found[0] if len(urls) == 1 else BackendPool(found)


def _server(args: BackendArguments, rollout: RolloutConfig, tokenizer: Any, url: str) -> Backend:
    return OpenAIBackend(
        url,
        tokenizer,
        model=args.served_model,
        dialect=args.dialect,
        api=args.api,
        api_key=key_for(url, args.api_key_variable, option="--api_key_variable"),
        max_context=rollout.max_context,
    )


def _engine(args: BackendArguments, rollout: RolloutConfig, model_args: GenerationModelConfig) -> Any:
    try:
        options = json.loads(args.vllm_options)
    except ValueError as error:
        raise ConfigError(f"--vllm_options is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError("--vllm_options must be a JSON object")
    try:
        from vllm import LLM
    except ImportError as error:
        raise ConfigError(f"--backend vllm: vLLM can't be imported ({error}): pip install 'gtpo[vllm]'") from error
    settings: dict[str, Any] = {"model": model_args.model_name_or_path, "revision": model_args.model_revision}
    settings |= {"dtype": model_args.dtype or "auto", "max_model_len": rollout.max_context}
    settings["trust_remote_code"] = model_args.trust_remote_code
    if rollout.deterministic and not torch.accelerator.is_available():
        # a seeded request that is prefilled in parts ends vLLM 0.32's CPU engine
        settings["enable_chunked_prefill"] = False
    return LLM(**{**settings, "logprobs_mode": "processed_logprobs", **options})
