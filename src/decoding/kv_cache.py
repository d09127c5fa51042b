"""Caches for writing many targets of one input: no copy per step, cross-attention's keys and values once per input.

Shapes: B inputs, R rows of the decoder, each of one input, H heads, S source tokens, T tokens in a cache, d head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

FIRST_ROOM = 16  # tokens


class GrowingLayer(DynamicLayer):
    """Self-attention's keys and values (R, H, T, d) as views of larger buffers, in which new ones are written."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers: tuple[Tensor, ...] = (key_states[:, :, :0], value_states[:, :, :0])
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            room = max(2 * start, end + FIRST_ROOM)
            self._buffers = tuple(_with_room(buffer, start, room) for buffer in self._buffers)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx`, in that order, and as often as they are there."""
        if self.is_initialized:
            length = self.get_seq_length()
            self._buffers = tuple(_rows_of(buffer, beam_idx, length) for buffer in self._buffers)
            self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def _rows_of(buffer: Tensor, rows: Tensor, length: int) -> Tensor:
    """A buffer (N, H, room, d) with the first `length` tokens of rows (N,) of this one."""
    chosen = buffer.new_empty(len(rows), *buffer.shape[1:])
    torch.index_select(buffer[:, :, :length], 0, rows, out=chosen[:, :, :length])
    return chosen


def _with_room(buffer: Tensor, length: int, room: int) -> Tensor:
    """A buffer (R, H, room, d) with the first `length` tokens of this one."""
    larger = buffer.new_empty(*buffer.shape[:2], room, buffer.shape[3])
    larger[:, :, :length] = buffer[:, :, :length]
    return larger


def growing_cache() -> Cache:
    """A cache for self-attention; layers appear as they are used."""
    return Cache(layer_class_to_replicate=GrowingLayer)
