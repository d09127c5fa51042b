"""Keys and values of beams: those of all beams of an input in one place, so that beams are reordered without a copy.

The beams of an input form a tree: most share all but their last few tokens. A token's keys and values are stored once,
however many beams continue it, and a table says which of them each beam has written. Tokens that no beam continues are
dropped when the place is full.
Shapes: B inputs, k beams per input, R = B * k rows of the decoder, H heads (G of the keys), E entries of an input (its
prompt and its beams' tokens), d head size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from src.decoding.grouped_attention import attend, is_attend_faster

STEPS_AT_FIRST = 6  # for which there is room before the first clearing


class BeamTree:
    """The entries of all layers of a cache: which beam has written which, and at which position of its text.

    Takes over a cache that has read one row (prompt or start token) per input. At each step: `follow`, then the model.
    """

    def __init__(self, cache: Cache, k: int, prompt: Tensor) -> None:
        """prompt: (B, T) 1 for tokens that the cache holds, 0 for padding."""
        self.k = k
        self._written = prompt.bool()[:, None].expand(-1, k, -1)  # (B, k, E)
        self._positions = torch.arange(prompt.shape[1], device=prompt.device).expand(len(prompt), -1)  # (B, E)
        self._length = prompt.shape[1]
        self._room = self._length + STEPS_AT_FIRST * k
        self._layers = [_BeamLayer(layer, self) for layer in cache.layers]
        cache.layers[:] = self._layers
        self._select(None, self._room)

    @property
    def n_entries(self) -> int:
        return self._positions.shape[1]

    def follow(self, parents: Tensor) -> None:
        """Row r goes on from what row parents[r] (R,), of the same input, has written, with one more token."""
        n_inputs, device = len(self._positions), parents.device
        self._written = self._written.flatten(0, 1).index_select(0, parents).unflatten(0, (n_inputs, self.k))
        if self.n_entries + self.k > self._room:
            self._clear(torch.arange(n_inputs, device=device))
        own = torch.eye(self.k, dtype=torch.bool, device=device).expand(n_inputs, -1, -1)
        self._written = torch.cat([self._written, own], dim=2)
        here = self._positions.new_full((n_inputs, self.k), self._length)
        self._positions = torch.cat([self._positions, here], dim=1)
        self._length += 1
        self._mask = torch.where(self._written[:, None], 0.0, torch.finfo(self._layers[0].dtype).min / 2)

    def keep(self, inputs: Tensor) -> None:
        """Drop all inputs but these (ascending)."""
        self._written = self._written[inputs]
        self._clear(inputs)

    def _clear(self, inputs: Tensor) -> None:
        """Drop the entries that no beam of these inputs has written; `_written` is that of these inputs already."""
        used = self._written.any(dim=1)
        n_used = int(used.sum(dim=1).max())
        chosen = used.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :n_used]
        self._written = self._written.gather(2, chosen[:, None].expand(-1, self.k, -1))
        self._positions = self._positions[inputs].gather(1, chosen)
        self._room = max(2 * n_used, n_used + STEPS_AT_FIRST * self.k)
        self._select((inputs, chosen), self._room)

    def _select(self, places: tuple[Tensor, Tensor] | None, room: int) -> None:
        for layer in self._layers:
            layer.select(places, room)

    def owns(self, key: Tensor) -> bool:
        """Whether these are the keys of a layer of this tree."""
        return any(layer.keys is key for layer in self._layers)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """(R, 1, H, d) attention of queries (R, H, 1, d) to the entries of their own beams, keys (B, G, E, d).

        bias: None, or the summands (1, H, 1, ·) for each position.
        """
        n_inputs, n_key_heads = key.shape[:2]
        shared = query.shape[1] // n_key_heads  # heads of the queries that share one of the keys
        by_input = query.unflatten(0, (n_inputs, self.k)).unflatten(2, (n_key_heads, shared))[:, :, :, :, 0]
        grouped = by_input.permute(0, 2, 1, 3, 4).flatten(2, 3)  # (B, G, k * shared, d)
        mask = self._mask if shared == 1 else self._mask.repeat_interleave(shared, dim=2)
        if bias is not None:
            bias = bias[0, :, 0][:, self._positions].transpose(0, 1)[:, :, None]  # (B, H, 1, E)
        if not dropout and is_attend_faster(grouped, key):
            mixed = attend(grouped, key, value, mask, scale, bias)
        else:
            mask = (mask if bias is None else mask + bias).to(grouped.dtype)
            mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
        return mixed.unflatten(2, (self.k, shared)).permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)[:, None]


class _BeamLayer(DynamicLayer):
    """Keys and values (B, G, E, d) of a tree's entries, views of larger buffers."""

    def __init__(self, layer: Any, tree: BeamTree) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._tree, self._length = tree, layer.get_seq_length()
        self._buffers: tuple[Tensor, ...] = (layer.keys, layer.values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end, k = self._tree.n_entries, self._tree.k
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, end - k : end] = states[:, :, 0].unflatten(0, (-1, k)).transpose(1, 2)
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        self._length += 1
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """The number of tokens of each row, as the model counts them."""
        return self._length

    def select(self, places: tuple[Tensor, Tensor] | None, room: int) -> None:
        """Move to buffers for `room` entries.

        places: the inputs (B,) and their entries (B, E) that stay; None for all.
        """
        self._buffers = tuple(_selected(buffer, places, room) for buffer in self._buffers)


def _selected(buffer: Tensor, places: tuple[Tensor, Tensor] | None, room: int) -> Tensor:
    """A new buffer (B, G, room, d) that starts with the chosen entries of this one."""
    if places is None:
        larger = buffer.new_empty(*buffer.shape[:2], room, buffer.shape[3])
        larger[:, :, : buffer.shape[2]] = buffer
        return larger
    inputs, chosen = places
    n_heads, old_room, size = buffer.shape[1:]
    chosen = F.pad(chosen, (0, room - chosen.shape[1]))
    heads = inputs[:, None] * n_heads + torch.arange(n_heads, device=buffer.device)
    flat = heads[:, :, None] * old_room + chosen[:, None]  # (B, G, room) places among all entries of all heads
    return buffer.view(-1, size).index_select(0, flat.flatten()).view(*flat.shape, size)
