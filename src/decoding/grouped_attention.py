"""Attention of many targets to one input, whose keys and values are stored once.

Shapes: B inputs, R rows of the decoder, each of one input, H heads, S source tokens, d head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def attends_fully(model: PreTrainedModel) -> bool:
    """Whether every layer of the decoder caches the keys and values of all tokens (no sliding window)."""
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return all(type(layer) is DynamicLayer for layer in layers)


@contextmanager
def attention_by_input() -> Iterator["AttentionByInput"]:
    """Within: models whose attention is `sdpa` attend through an `AttentionByInput`, which this yields."""
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
    by_input = AttentionByInput(stock)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = by_input
    try:
        yield by_input
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = stock


class AttentionByInput:
    """An attention function for queries (R, H, 1, d) of R rows on keys and values (B, H, S, d) of their B inputs.

    Queries of one input attend together, as (B, H, k, d) with k the largest number of rows of an input; the mask is
    (B, 1, 1, S). Single queries per row use `attend` where it is faster; all else goes to the stock function.
    tree: a `BeamTree`, which attends where the keys are its own.
    """

    def __init__(self, stock: Callable) -> None:
        self._stock = stock
        self.tree: Any = None
        self._seen_keys: dict[int, bool] = {}  # address of keys: whether a position bias was added, while watching
        self._is_watching = False
        self._places: Tensor | None = None  # (R,) each row's place among B * k; None if every input has k rows
        self._shape = (0, 0)  # B, k

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within: record which keys are attended to, for `covers`."""
        self._is_watching = True
        try:
            yield
        finally:
            self._is_watching = False

    def covers(self, cache: Cache, *, with_bias: bool = False) -> bool:
        """Whether this function has attended to the keys of every layer of `cache`.

        False if the model's attention does not run through `sdpa`, or adds a position bias; with_bias: it may.
        """
        layers: list[Any] = list(cache.layers)
        seen = [self._seen_keys.get(layer.keys.data_ptr()) for layer in layers]
        return bool(layers) and all(biased is not None and (with_bias or not biased) for biased in seen)

    def group(self, inputs: Tensor) -> None:
        """Set the input that each row attends to: numbers (R,), ascending, every input at least once."""
        counts = inputs.bincount()
        n_inputs, widest = len(counts), int(counts.max())
        self._shape = (n_inputs, widest)
        first = counts.cumsum(0) - counts
        places = inputs * widest + torch.arange(len(inputs), device=inputs.device) - first[inputs]
        self._places = None if len(inputs) == n_inputs * widest else places

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        bias = kwargs.get("position_bias")
        if self.tree is not None and self.tree.owns(key):
            return self.tree.attend(query, key, value, scaling, bias, dropout), None
        uses_attend = not dropout and kwargs.get("softcap") is None and is_attend_faster(query, key)
        if len(query) == len(key):
            if self._is_watching:
                self._seen_keys[key.data_ptr()] = bias is not None and bool(bias.any())
            if query.shape[2] > 1 or not uses_attend:
                return self._stock(
                    module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
                )
            return attend(query, key, value, attention_mask, scaling, bias).transpose(1, 2), None
        grouped = self._grouped(query[:, :, 0])
        if uses_attend:
            mixed = attend(grouped, key, value, attention_mask, scaling)
        else:
            mixed = F.scaled_dot_product_attention(
                grouped, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
            )
        return self._by_row(mixed)[:, None], None

    def _grouped(self, rows: Tensor) -> Tensor:
        """(R, H, d) as (B, H, k, d)."""
        n_inputs, widest = self._shape
        if self._places is not None:
            rows = rows.new_zeros(n_inputs * widest, *rows.shape[1:]).index_copy_(0, self._places, rows)
        return rows.unflatten(0, (n_inputs, widest)).transpose(1, 2)

    def _by_row(self, grouped: Tensor) -> Tensor:
        """(B, H, k, d) as (R, H, d)."""
        rows = grouped.transpose(1, 2).flatten(0, 1)
        return rows if self._places is None else rows.index_select(0, self._places)


def is_attend_faster(query: Tensor, key: Tensor) -> bool:
    """Whether `attend` is faster for few queries and supports these: the stock kernel on a CPU is made for many."""
    return query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[1] == key.shape[1]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, bias: Tensor | None = None
) -> Tensor:
    """(B, H, q, d) softmax(Q Kᵀ · scale + bias + mask) V of queries (B, H, q, d), keys and values (B, H, S, d).

    mask: False for hidden keys, or a summand, as bias is; both broadcast to (B, H, q, S). scale: None for 1 / √d.
    A query with all keys hidden gets the mean of all values.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = (query if scale == 1 else query * scale) @ key.transpose(2, 3)
    if bias is not None:
        weights += bias
    if mask is not None:
        if mask.dtype == torch.bool:  # a summand is faster
            mask = torch.where(mask, 0.0, torch.finfo(weights.dtype).min / 2)
        weights += mask
    return weights.softmax(dim=-1) @ value
