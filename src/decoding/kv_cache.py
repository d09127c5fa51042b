"""A cache of keys and values that grows in place, without a copy per step.

Shapes: R rows of the decoder, N of them kept, H heads, T tokens in the cache, d head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

MIN_ROOM = 16  # free tokens in a new buffer, at least


class GrowingLayer(DynamicLayer):
    """Self-attention's keys and values (R, H, T, d), views of larger buffers with room for the next tokens."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers: tuple[Tensor, ...] = (key_states[:, :, :0], value_states[:, :, :0])
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            room = max(2 * start, end + MIN_ROOM)
            self._buffers = tuple(_with_room(buffer, start, room) for buffer in self._buffers)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx` (N,), in that order, repeated as they are."""
        if self.is_initialized:
            length = self.get_seq_length()
            self._buffers = tuple(_rows_of(buffer, beam_idx, length) for buffer in self._buffers)
            self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def _rows_of(buffer: Tensor, rows: Tensor, length: int) -> Tensor:
    """A new buffer (N, H, room, d) with the first `length` tokens of these rows (N,)."""
    chosen = buffer.new_empty(len(rows), *buffer.shape[1:])
    torch.index_select(buffer[:, :, :length], 0, rows, out=chosen[:, :, :length])
    return chosen


def _with_room(buffer: Tensor, length: int, room: int) -> Tensor:
    """A larger buffer (R, H, room, d) with the first `length` tokens of this one."""
    larger = buffer.new_empty(*buffer.shape[:2], room, buffer.shape[3])
    larger[:, :, :length] = buffer[:, :, :length]
    return larger


def growing_cache() -> Cache:
    """An empty cache for self-attention; layers are created when they are first used."""
    return Cache(layer_class_to_replicate=GrowingLayer)
