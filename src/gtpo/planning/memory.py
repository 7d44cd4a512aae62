"""Bytes that training and generation need on one device."""

from __future__ import annotations

from dataclasses import dataclass

from gtpo.planning.shape import ModelShape

LOGIT_TILE = 4096 * 32768
"""Number of logits that TRL holds at a time (`trl.kernels.chunked_logprob`, TRL 1.16): never tokens x vocabulary."""

TILES = 2
"""Number of tiles at a time with TRL's kernel: one in place, and one as a margin."""
TILES_ON_CPU = 9
"""The same with torch's operators, which create temporary tiles; measured (`benchmarks/plan.py`)."""


@dataclass(frozen=True)
class Sharding:
    """Which states are sharded, and over how many devices."""

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1

    @classmethod
    def of(cls, name: str, devices: int) -> Sharding:
        """By name: none (DDP), zero2, zero3 or fsdp2."""
        if name == "none":
            return cls()
        return cls(1 if name == "zero2" else devices, devices, devices)


def static_bytes(
    shape: ModelShape, trainable: int, weight_bytes: int, trainable_bytes: int, state_bytes: int, sharding: Sharding
) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer.

    Gradients and Adam's two moments have the dtype of the trained weights (torch's AdamW); an 8-bit optimizer needs
    2 bytes per weight in all.

    Args:
        shape: shape of the model.
        trainable: number of trained weights: all, or the adapter's.
        weight_bytes: bytes per weight as loaded.
        trainable_bytes: bytes per trained weight.
        state_bytes: bytes of the optimizer per trained weight.
        sharding: sharding over devices.
    """
    adapter = trainable if trainable != shape.parameters else 0
    return {
        "weights": (shape.parameters * weight_bytes + adapter * trainable_bytes) / sharding.weights,
        "gradients": trainable * trainable_bytes / sharding.gradients,
        "optimizer": trainable * state_bytes / sharding.optimizer,
    }


def layer_token_bytes(shape: ModelShape, bits16: bool) -> float:
    """Bytes per token that one layer keeps for the backward pass, without attention scores (flash attention or SDPA).

    In the compute dtype: inputs of the linear maps, queries, keys and values before and after rotation, the attention's
    output and products of the gated MLP. In float32: the norms' inputs and normalised values. The count is ours, in the
    manner of Korthikanti et al. (arXiv 2205.05198).
    """
    size = 2 if bits16 else 4
    attention = shape.hidden + 2 * shape.queries + 3 * shape.keys + shape.queries
    mlp = shape.hidden + 4 * shape.mlp
    norms = 2 * 2 * shape.hidden * 4
    return size * (attention + mlp) + norms


def activation_bytes(
    shape: ModelShape, tokens: int, bits16: bool, checkpointing: bool, head_trained: bool = True, tiles: int = TILES
) -> float:
    """Bytes of activations in a forward and backward pass over a number of tokens (a padded micro-batch of sequences).

    With gradient checkpointing, each layer's input is kept and one layer is recomputed at a time; without it, every
    layer keeps its activations. The head's logits are computed in tiles; the gradients of the head and of its input are
    accumulated in float32, and the gradient of the input embedding is as large as the embedding.
    """
    size = 2 if bits16 else 4
    layer = layer_token_bytes(shape, bits16) * tokens
    kept = shape.layers * shape.hidden * size * tokens + layer if checkpointing else shape.layers * layer
    tile = min(LOGIT_TILE, tokens * min(shape.vocab, 32768)) * size
    head = shape.hidden * (4 * tokens + (4 + size) * shape.vocab * head_trained)
    return kept + tiles * tile + head


def kv_bytes_per_token(shape: ModelShape, element_bytes: int = 2) -> int:
    """Bytes of the keys and values of one token, over all layers."""
    return 2 * shape.layers * shape.keys * element_bytes
