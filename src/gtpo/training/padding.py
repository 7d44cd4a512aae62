"""Micro-batches without the columns that they do not need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def trimmed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A micro-batch, cut to its own longest prompt and completion.

    The host pads all rollouts of a generation batch to the longest of them and cuts rows out of that; a micro-batch
    computes with every column all the same. What is cut has no token of any row, so the loss stays what it was, to
    rounding.

    Args:
        inputs: what the host's loss takes: prompts (B, P) padded on the left, completions and what belongs to their
            tokens (B, T) padded on the right, and anything else.

    Returns:
        The same with fewer columns; unchanged if it holds something along the whole sequence (B, P + T).
    """
    prompt_B_P, completion_B_T = inputs["prompt_mask"], inputs["completion_mask"]
    whole = (*prompt_B_P.shape[:1], prompt_B_P.shape[1] + completion_B_T.shape[1])
    if any(isinstance(value, Tensor) and value.shape[:2] == whole for value in inputs.values()):
        return dict(inputs)
    prompt_width = int(prompt_B_P.sum(dim=1).max())
    width = max(int(completion_B_T.sum(dim=1).max()), 1)
    found = dict(inputs)
    for name, value in inputs.items():
        if name in ("prompt_ids", "prompt_mask"):
            found[name] = value[:, -prompt_width:]
        elif isinstance(value, Tensor) and value.shape == completion_B_T.shape:
            found[name] = value[:, :width]
    return found
