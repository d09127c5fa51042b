"""Attention of many targets to one input, which is stored once."""

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
    """Whether every layer of the decoder keeps keys and values of all tokens: no sliding windows, no other states."""
    layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return all(type(layer) is DynamicLayer for layer in layers)


@contextmanager
def attention_by_input() -> Iterator["AttentionByInput"]:
    """Within: stock models whose attention is `sdpa` attend by `AttentionByInput`, which this yields."""
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
    by_input = AttentionByInput(stock)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = by_input
    try:
        yield by_input
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = stock


class AttentionByInput:
    """An attention function whose queries (R, H, 1, d) may outnumber the keys and values (B, H, S, d) of their inputs.

    Queries of one input then attend together, as (B, H, k, d) with k the most rows that an input has; the mask is
    (B, 1, 1, S). These, and others with one query per row, go to `attend` where that is faster; the rest goes to the
    stock function.
    """

    def __init__(self, stock: Callable) -> None:
        self._stock = stock
        self._met: set[int] | None = None  # where the keys of the calls lie that were watched; None: not watching
        self._places: Tensor | None = None  # (R,) of each row among B * k; None if every input has k rows
        self._shape = (0, 0)  # B, k

    def watch(self) -> None:
        """Note from now on which keys are attended to, until `covers` is asked."""
        self._met = set()

    def covers(self, cache: Cache) -> bool:
        """Whether this function has attended to the keys of every layer of `cache`, and without a bias on positions.

        False if cross-attention does not run through `sdpa`, or adds a position bias.
        """
        met, self._met = self._met, None
        assert met is not None
        layers: list[Any] = list(cache.layers)
        return bool(layers) and all(layer.keys.data_ptr() in met for layer in layers)

    def group(self, inputs: Tensor) -> None:
        """Say whose the rows are from now on: inputs (R,) are their numbers, ascending, none left out."""
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
        by_products = not dropout and kwargs.get("softcap") is None and goes_by_products(query, key)
        if len(query) == len(key):
            if self._met is not None and not _any_bias(kwargs):
                self._met.add(key.data_ptr())
            if query.shape[2] > 1 or not by_products:
                return self._stock(
                    module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
                )
            return attend(query, key, value, attention_mask, scaling, kwargs.get("position_bias")).transpose(1, 2), None
        grouped = self._grouped(query[:, :, 0])
        if by_products:
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


def goes_by_products(query: Tensor, key: Tensor) -> bool:
    """Whether `attend` is what few queries want: a CPU's stock kernel is made for many."""
    return query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[1] == key.shape[1]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, bias: Tensor | None = None
) -> Tensor:
    """(B, H, q, d) what queries (B, H, q, d) make of keys and values (B, H, S, d): attention by two products.

    mask: False for keys that are not seen, or a summand as bias is; both broadcast to (B, H, q, S). scale: None for
    1 / √d. A query that sees no key gets the mean of all values.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = (query if scale == 1 else query * scale) @ key.transpose(2, 3)
    if bias is not None:
        weights += bias
    if mask is not None:
        if mask.dtype == torch.bool:  # as a summand it is small and fast
            mask = torch.where(mask, 0.0, torch.finfo(weights.dtype).min / 2)
        weights += mask
    return weights.softmax(dim=-1) @ value


def _any_bias(kwargs: dict[str, Any]) -> bool:
    bias = kwargs.get("position_bias")
    return bias is not None and bool(bias.any())
