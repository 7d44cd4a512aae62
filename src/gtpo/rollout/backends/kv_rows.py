"""A key-value cache with one row per rollout; each row has its own length and is kept from turn to turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_GROW = 256
"""Number of tokens by which all rows grow."""
_ALIGN = 128
"""Attention reads a multiple of this many tokens. On a CPU, what a row attends to is then summed in the same order
whatever the length of the other rows: vectors are whole, and products large enough that one kernel does them all."""


@dataclass
class _Place:
    """Where the next forward pass writes, and what it reads."""

    rows: slice | Tensor = field(default_factory=lambda: slice(0))
    """The rows that it computes, for reading: neighbours as a slice, which needs no copy, others as a tensor."""
    rows_R_1: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.long))
    """The numbers of these rows, for writing."""
    targets_R_T: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    """Where in its row each new token goes."""
    start: int = 0
    """Tokens held before, of the longest row."""
    width: int = 0
    """Tokens that attention reads."""
    room: int = 0
    """Tokens for which there must be room."""


class _KVRowLayer(CacheLayerMixin):
    """Keys and values of one layer, shape (rows, heads, room, size of a head)."""

    keys: Tensor
    values: Tensor

    def __init__(self, place: _Place, rows: int) -> None:
        super().__init__()
        self._place, self._rows = place, rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self._rows, key_states.shape[1], 0, key_states.shape[3])
        self.keys = key_states.new_zeros(shape)
        self.values = value_states.new_zeros((*shape[:3], value_states.shape[3]))
        self.is_initialized = True

    def grow(self, room: int) -> None:
        more = -(-room // _GROW) * _GROW - self.keys.shape[2]
        if more > 0:
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, more))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, more))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self._place
        self.grow(max(place.width, place.room))
        self.keys[place.rows_R_1, :, place.targets_R_T] = key_states.transpose(1, 2)
        self.values[place.rows_R_1, :, place.targets_R_T] = value_states.transpose(1, 2)
        return self.keys[place.rows, :, : place.width], self.values[place.rows, :, : place.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._place.width, 0

    def get_seq_length(self) -> int:
        return self._place.start

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.12


class KVRowCache(Cache):
    """Rows of keys and values that fill up independently of each other.

    Before each forward pass, `append` or `step` sets the rows that it computes; both return what the model needs
    besides the ids. Row r holds `lengths[r]` tokens.

    Args:
        rows: number of rows.
        layers: number of layers of the model.
        device: where the model computes.
    """

    def __init__(self, rows: int, layers: int, device: torch.device) -> None:
        self._place = _Place()
        self._device = device
        self.lengths = [0] * rows
        super().__init__(layers=[_KVRowLayer(self._place, rows) for _ in range(layers)])

    def append(self, rows: Sequence[int], tokens: Sequence[int], padded: int) -> dict[str, Tensor]:
        """The next pass computes more tokens of some rows: ids of shape (R, padded), each row's own ones first.

        Args:
            rows: the numbers of the rows.
            tokens: number of ids that each row keeps; what is computed for the others is overwritten later.
            padded: length to which the ids of all rows are padded.

        Returns:
            `position_ids` of shape (R, padded) and a boolean `attention_mask` of shape (R, 1, padded, width).
        """
        starts = [self.lengths[row] for row in rows]
        place = self._place
        place.rows_R_1 = torch.tensor(list(rows), device=self._device)[:, None]
        place.rows = slice(rows[0], rows[0] + 1) if len(rows) == 1 else place.rows_R_1[:, 0]
        place.start = max(starts)
        place.width = place.room = _aligned(place.start + padded)
        starts_R = torch.tensor(starts, device=self._device)
        ends_R = starts_R + torch.tensor(list(tokens), device=self._device)
        place.targets_R_T = starts_R[:, None] + torch.arange(padded, device=self._device)
        mask_R_T_W = torch.arange(place.width, device=self._device) <= place.targets_R_T[:, :, None]
        for row, start, count in zip(rows, starts, tokens, strict=True):
            self.lengths[row] = start + count
        positions_R_T = torch.minimum(place.targets_R_T, ends_R[:, None] - 1)  # no position past the model's last one
        return {"position_ids": positions_R_T, "attention_mask": mask_R_T_W[:, None]}

    def step(self, rows: int, active: Sequence[int]) -> dict[str, Tensor]:
        """The next pass computes one token of each of the first `rows` rows: ids of shape (rows, 1).

        Only those in `active` keep theirs; what the others compute is overwritten by their own next token.

        Returns:
            `position_ids` of shape (rows, 1) and a boolean `attention_mask` of shape (rows, 1, 1, width).
        """
        place = self._place
        place.rows, place.rows_R_1 = slice(0, rows), torch.arange(rows, device=self._device)[:, None]
        place.start = max(self.lengths[row] for row in active)
        place.width, place.room = _aligned(place.start + 1), max(self.lengths[:rows]) + 1
        place.targets_R_T = torch.tensor(self.lengths[:rows], device=self._device)[:, None]
        mask_R_W = torch.arange(place.width, device=self._device) <= place.targets_R_T
        for row in active:
            self.lengths[row] += 1
        return {"position_ids": place.targets_R_T, "attention_mask": mask_R_W[:, None, None]}

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let row `target` hold the first `tokens` tokens of row `source`."""
        for layer in self._filled():
            for held in (layer.keys, layer.values):
                held[target, :, :tokens] = held[source, :, :tokens]
        self.lengths[target] = tokens

    def swap(self, one: int, other: int) -> None:
        """Exchange two rows."""
        tokens = max(self.lengths[one], self.lengths[other])
        for layer in self._filled():
            for held in (layer.keys, layer.values):
                held[[one, other], :, :tokens] = held[[other, one], :, :tokens]
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]

    def _filled(self) -> Iterator[_KVRowLayer]:
        return (layer for layer in self.layers if isinstance(layer, _KVRowLayer) and layer.is_initialized)


def _aligned(tokens: int) -> int:
    return -(-tokens // _ALIGN) * _ALIGN
