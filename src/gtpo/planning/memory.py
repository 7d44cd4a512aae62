"""Bytes that training and generation take on one device."""

from __future__ import annotations

from dataclasses import dataclass

from gtpo.planning.shape import ModelShape

LOGIT_TILE = 4096 * 32768
"""Logits that TRL holds at a time (`trl.kernels.chunked_logprob`, TRL 1.16): never tokens x vocabulary."""

TILES = 2
"""Tiles at a time where TRL's kernel runs: one in place, and one of slack."""
TILES_ON_CPU = 9
"""The same with torch's operators, which make temporary ones; measured (`benchmarks/plan.py`)."""


@dataclass(frozen=True)
class Sharding:
    """What is spread over how many devices."""

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
    """Weights, gradients and optimizer.

    Gradients and Adam's two moments have the dtype of what is trained (torch's AdamW); an 8-bit optimizer has 2 bytes a
    weight in all.

    Args:
        shape: of the model.
        trainable: weights that are trained: all, or the adapter's.
        weight_bytes: of one weight as it is loaded.
        trainable_bytes: of one that is trained.
        state_bytes: of the optimizer, a trained weight.
        sharding: over devices.
    """
    adapter = trainable if trainable != shape.parameters else 0
    return {
        "weights": (shape.parameters * weight_bytes + adapter * trainable_bytes) / sharding.weights,
        "gradients": trainable * trainable_bytes / sharding.gradients,
        "optimizer": trainable * state_bytes / sharding.optimizer,
    }


def layer_token_bytes(shape: ModelShape, bits16: bool) -> float:
    """What the backward pass of one layer keeps of a token, without attention scores (flash attention or SDPA).

    Inputs of the linear maps, queries, keys and values before and after rotation, the attention's output and products
    of the gated MLP in compute dtype; the norms' inputs and normalised values in float32. The count is ours, in the
    way of Korthikanti et al. (arXiv 2205.05198).
    """
    size = 2 if bits16 else 4
    attention = shape.hidden + 2 * shape.queries + 3 * shape.keys + shape.queries
    mlp = shape.hidden + 4 * shape.mlp
    norms = 2 * 2 * shape.hidden * 4
    return size * (attention + mlp) + norms


def activation_bytes(
    shape: ModelShape, tokens: int, bits16: bool, checkpointing: bool, head_trained: bool = True, tiles: int = TILES
) -> float:
    """Of a forward and backward pass over so many tokens (a micro-batch of sequences, padded).

    With gradient checkpointing each layer's input stays and one layer is computed anew; without it every layer keeps
    its own. The head's logits are made in tiles; the gradients of the head and of its input are summed up in float32,
    and the input embedding's is as large as the embedding.
    """
    size = 2 if bits16 else 4
    layer = layer_token_bytes(shape, bits16) * tokens
    kept = shape.layers * shape.hidden * size * tokens + layer if checkpointing else shape.layers * layer
    tile = min(LOGIT_TILE, tokens * min(shape.vocab, 32768)) * size
    head = shape.hidden * (4 * tokens + (4 + size) * shape.vocab * head_trained)
    return kept + tiles * tile + head


def kv_bytes_per_token(shape: ModelShape, element_bytes: int = 2) -> int:
    """Keys and values of one token, over all layers."""
    return 2 * shape.layers * shape.keys * element_bytes
