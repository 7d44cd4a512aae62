"""The shape of a model, from which its size follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtpo.errors import ConfigError


@dataclass(frozen=True)
class ModelShape:
    """A Llama-style decoder: grouped-query attention and a gated MLP.

    Attributes:
        layers, hidden, mlp: number of layers, width of the residual stream, width of the MLP.
        heads, kv_heads, head_dim: number of query heads and of key-value heads, and their width.
        vocab: size of the vocabulary.
        tied: whether input and output embeddings are one matrix.
        qkv_bias: whether queries, keys and values have biases.
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False

    @property
    def queries(self) -> int:
        """Total width of the queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Total width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The linear maps of a layer: inputs and outputs."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }

    @property
    def parameters(self) -> int:
        """Number of weights of the model."""
        layer = sum(n * m for n, m in self.matrices.values()) + 2 * self.hidden
        layer += (self.queries + 2 * self.keys) * self.qkv_bias
        return self.layers * layer + self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Number of weights that a token only looks up."""
        return 0 if self.tied else self.vocab * self.hidden

    def lora_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Number of weights of a LoRA adapter.

        Args:
            rank: rank of the adapter.
            targets: names of linear maps; "all-linear" for all of a layer.

        Raises:
            ConfigError: a target is not a linear map of a layer.
        """
        names = list(self.matrices) if "all-linear" in targets else list(targets)
        if unknown := sorted(set(names) - set(self.matrices)):
            raise ConfigError(f"lora_target_modules: {', '.join(unknown)}: known are {', '.join(self.matrices)}")
        return self.layers * sum(rank * sum(self.matrices[name]) for name in names)


KNOWN: dict[str, ModelShape] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ModelShape(30, 576, 1536, 9, 3, 64, 49152, True),
    "Qwen/Qwen2.5-0.5B-Instruct": ModelShape(24, 896, 4864, 14, 2, 64, 151936, True, True),
    "Qwen/Qwen2.5-1.5B-Instruct": ModelShape(28, 1536, 8960, 12, 2, 128, 151936, True, True),
    "Qwen/Qwen2.5-3B-Instruct": ModelShape(36, 2048, 11008, 16, 2, 128, 151936, True, True),
    "Qwen/Qwen2.5-7B-Instruct": ModelShape(28, 3584, 18944, 28, 4, 128, 152064, False, True),
    "Qwen/Qwen2.5-14B-Instruct": ModelShape(48, 5120, 13824, 40, 8, 128, 152064, False, True),
    "Qwen/Qwen2.5-32B-Instruct": ModelShape(64, 5120, 27648, 40, 8, 128, 152064, False, True),
    "Qwen/Qwen2.5-72B-Instruct": ModelShape(80, 8192, 29568, 64, 8, 128, 152064, False, True),
    "meta-llama/Llama-3.1-8B-Instruct": ModelShape(32, 4096, 14336, 32, 8, 128, 128256),
    "meta-llama/Llama-3.2-1B-Instruct": ModelShape(16, 2048, 8192, 32, 8, 64, 128256, True),
}
"""Shapes from the models' `config.json`, so that a plan needs no network. The base models have the same shapes."""


def shape_of(name: str) -> ModelShape:
    """The shape of a model.

    Args:
        name: one of `KNOWN`, a folder, or another Hub id.

    Raises:
        ConfigError: its configuration is unavailable, or it is not a Llama-style decoder.
    """
    if name in KNOWN:
        return KNOWN[name]
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        where = "no config.json there" if Path(name).is_dir() else "neither a folder nor a model that can be reached"
        raise ConfigError(f"model {name!r}: {where}; without a network these are known: {', '.join(KNOWN)}") from error
    return shape_of_config(config)


def shape_of_config(config: Any) -> ModelShape:
    """The shape that a `transformers` configuration describes.

    Raises:
        ConfigError: the model is not a Llama-style decoder.
    """
    config = config.get_text_config()
    if any(hasattr(config, name) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise ConfigError("gtpo plan does not support mixture-of-experts models yet")
    try:
        heads = config.num_attention_heads
        return ModelShape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            mlp=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            qkv_bias=config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False)),
        )
    except AttributeError as error:
        raise ConfigError(
            f"a model of type {config.model_type!r} has no {error.name}: gtpo plan supports decoder-only models"
        ) from error
