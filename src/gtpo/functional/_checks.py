"""Checks shared by the public functions, and the dtype that they compute in. Messages name the argument."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `tensor` has `shape`; None stands for any size."""
    fits = tensor.dim() == len(shape) and all(
        want is None or got == want for got, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` is of a real float dtype."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be of a float dtype, got {tensor.dtype}")


def check_integer(name: str, tensor: Tensor) -> None:
    """Raise ValueError unless `tensor` is of an integer dtype."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be of an integer dtype, got {tensor.dtype}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError if `tensor` holds a NaN or an infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def as_flags(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """The tensor as bool, checked to have `shape` and to hold 0 and 1 only."""
    check_shape(name, tensor, shape)
    if tensor.dtype == torch.bool:
        return tensor
    if not bool(((tensor == 0) | (tensor == 1)).all()):
        raise ValueError(f"{name} must hold only 0 and 1")
    return tensor.bool()


def active_turns(num_turns_B: Tensor, num_rollouts: int, max_turns: int) -> Tensor:
    """Mask_B_K, True where a rollout has a turn; raise ValueError unless every count is in 1..max_turns."""
    check_shape("num_turns_B", num_turns_B, (num_rollouts,))
    check_integer("num_turns_B", num_turns_B)
    if bool(((num_turns_B < 1) | (num_turns_B > max_turns)).any()):
        raise ValueError(f"num_turns_B must lie in 1..K = {max_turns}, got {num_turns_B.tolist()}")
    return torch.arange(max_turns, device=num_turns_B.device) < num_turns_B[:, None]


def turn_values(name: str, values_B_K: Tensor, num_turns_B: Tensor) -> tuple[Tensor, Tensor]:
    """Values of turns in the dtype for computing, with 0 past each rollout's last turn; and the mask of its turns."""
    check_shape(name, values_B_K, (None, None))
    check_floating(name, values_B_K)
    active = active_turns(num_turns_B, *values_B_K.shape)
    values = widen(values_B_K).masked_fill(~active, 0)
    check_finite(name, values)
    return values, active


def widen(values: Tensor) -> Tensor:
    """The values in the dtype for computing: float64 unchanged, every other float dtype as float32."""
    return values if values.dtype == torch.float64 else values.float()
