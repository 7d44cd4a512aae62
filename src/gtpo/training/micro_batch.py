"""Micro-batches without the rows and columns that they do not need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_SUMS = ("dapo", "cispo")
"""TRL's losses that sum over tokens and divide by a number that does not depend on the micro-batch."""


def rows_count_alone(args: Any, model: Any) -> bool:
    """Whether a row without an advantage contributes neither to TRL's loss nor to its gradient.

    False if the loss is a mean over rows, or contains more than advantages: a reference model (`beta`), an entropy
    bonus, a quantile of entropies, or the load balance of a mixture of experts.

    Args:
        args: a `GRPOConfig`.
        model: the model; its `config` says whether it is a mixture of experts.
    """
    more = [
        args.beta,
        getattr(args, "entropy_coef", 0.0),
        getattr(args, "use_adaptive_entropy", False),
        args.top_entropy_quantile < 1,
        getattr(args, "use_liger_kernel", False),
        getattr(model.config.get_text_config(), "output_router_logits", None) is not None,
    ]
    return args.loss_type in _SUMS and not any(more)


def with_signal(inputs: Mapping[str, Any], agreed: Callable[[int], int]) -> tuple[dict[str, Any], bool]:
    """The rows of a micro-batch that have a nonzero advantage at a token of the loss.

    If in most groups all rollouts fail or all pass, most rows have none, and computing them is wasted.

    Args:
        inputs: what TRL's loss takes, with `advantages` (B,) or (B, T).
        agreed: returns, from the number of rows that this process needs, the number that all processes use, the
            largest: TRL gathers its metrics over rows, and every process has to run the model. Called exactly once.

    Returns:
        The same with fewer rows, at least one: those with a signal and, up to the agreed number, the shortest of the
        others, those with a token of the loss first. Unchanged if it holds a tensor without a row axis. Also whether
        any process has a row with a signal.
    """
    mask_B_T = inputs["completion_mask"]
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.dim() > 0}
    separable = all(len(value) == len(mask_B_T) for value in tensors.values())
    advantages = inputs["advantages"].reshape(len(mask_B_T), -1)
    trained_B_T = mask_B_T * inputs.get("tool_mask", 1)
    has_signal_B = ((advantages != 0) & (trained_B_T != 0)).any(dim=1)
    number = agreed(int(has_signal_B.sum()) if separable else len(mask_B_T))
    if not separable:
        return dict(inputs), True
    lengths_B = mask_B_T.sum(dim=1) + mask_B_T.shape[1] * (trained_B_T == 0).all(dim=1)
    by_need_B = torch.where(has_signal_B, -1, lengths_B).argsort(stable=True)
    rows = by_need_B[: max(number, 1)].sort().values
    return {**inputs, **{name: value[rows] for name, value in tensors.items()}}, number > 0


def trimmed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A micro-batch, cut to its own longest prompt and completion.

    TRL pads all rollouts of a generation batch to the longest of them and takes rows from that, so a micro-batch
    would compute every column. The removed columns hold no token of any row, so the loss is the same up to rounding.

    Args:
        inputs: what TRL's loss takes: prompts (B, P) padded on the left, completions and their per-token tensors
            (B, T) padded on the right, and anything else.

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
