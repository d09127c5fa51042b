"""Lazy logits: hidden rows and an output projection, from which logits are computed in chunks of rows.

Shapes: N rows, C rows of a chunk, D width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.models.packed_linear import packed, product

TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}  # relative to the largest logit; 1e-4 in float32
CPU_CHUNK, ACCELERATOR_CHUNK = 2**23, 2**27  # logits of a chunk: 33 MB, near the caches of a CPU; 537 MB
PACKED_CHUNK = 8_000_000  # with a layout, which allocates each product: below 32 MiB, which glibc reuses
LEAST_ROWS = 256  # of a chunk: with 55 rows (33 MB of a vocabulary of 150,000) a product is half as fast


@dataclass(frozen=True)
class OutputProjection:
    """The output projection of hidden rows (·, D) to logits (·, V).

    weight: (V, D). bias: (V,). soft_cap: c of c · tanh(logits / c). layout: the weight packed for products without
    gradients (`packed_linear`).
    """

    weight: Tensor
    bias: Tensor | None = None
    soft_cap: float | None = None
    layout: Tensor | None = None

    def packed(self) -> "OutputProjection":
        """A copy with a layout, if possible: for many products with a weight that does not change."""
        return replace(self, layout=packed(self.weight))

    def before_cap(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """(·, V) logits before the soft cap: the product in the rows' dtype, the bias added in float32 or float64.

        They are written to `out` if it is given and there is no layout.
        """
        if self.layout is not None:
            logits = product(rows, self.layout)
        elif out is None:
            logits = at_least_float32(rows @ self.weight.T)
        elif out.dtype == rows.dtype:
            logits = torch.mm(rows, self.weight.T, out=out)
        else:
            logits = out.copy_(rows @ self.weight.T)
        return logits if self.bias is None else logits.add_(self.bias)

    def capped(self, logits: Tensor) -> Tensor:
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


@dataclass(frozen=True)
class LazyLogits:
    """Logits (N, V), as hidden rows (N, D) and their projection, or as the logits themselves without a projection.

    dtype: of the product in the model. device: where the logits are wanted; None: where they are computed.
    """

    rows: Tensor
    projection: OutputProjection | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def vocab_size(self) -> int:
        return self.rows.shape[1] if self.projection is None else len(self.projection.weight)

    @property
    def logits(self) -> Tensor:
        """All logits (N, V); gradients flow through them."""
        ready = self.cast()
        if ready.projection is None:
            return ready.rows
        return ready.projection.capped(ready.projection.before_cap(ready.rows))

    def cast(self) -> "LazyLogits":
        """A copy with rows and weight in the dtype of the product, converted once for all chunks."""
        if self.projection is None:
            return self
        dtype = self.dtype or self.projection.weight.dtype
        projection = replace(self.projection, weight=self.projection.weight.to(dtype))
        return replace(self, rows=self.rows.to(dtype), projection=projection, dtype=dtype)

    def detached(self) -> "LazyLogits":
        if self.projection is None:
            return replace(self, rows=self.rows.detach())
        bias = None if self.projection.bias is None else self.projection.bias.detach()
        projection = replace(self.projection, weight=self.projection.weight.detach(), bias=bias)
        return replace(self, rows=self.rows.detach(), projection=projection)

    def rows_of(self, chosen: Tensor) -> "LazyLogits":
        """The logits of the rows with these indices (·,), in this order; an index may repeat."""
        return replace(self, rows=self.rows[chosen])

    def first_tokens(self, n: int) -> "LazyLogits":
        """The logits of the first `n` tokens of the vocabulary only."""
        if self.projection is None:
            return replace(self, rows=self.rows[:, :n])
        bias = None if self.projection.bias is None else self.projection.bias[:n]
        projection = replace(self.projection, weight=self.projection.weight[:n], bias=bias, layout=None)
        return replace(self, projection=projection)

    def some(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """(C, V) new logits of a chunk in float32 or float64, in `out` if given. Call `cast` first."""
        if self.device not in (None, self.rows.device):
            there = replace(self, device=None).some(rows)
            return there.to(self.device) if out is None else out.copy_(there)
        logits = self.some_before_cap(rows, out)
        return logits if self.projection is None else self.projection.capped(logits)

    def some_before_cap(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """As `some`, without the projection's soft cap."""
        if self.projection is not None:
            return self.projection.before_cap(self.rows[rows], out)
        return at_least_float32(self.rows[rows]).clone() if out is None else out.copy_(self.rows[rows])

    @property
    def rows_at_once(self) -> int:
        """C: as many rows as keep a chunk both fast and small."""
        if self.projection is not None and self.projection.layout is not None:
            return max(1, PACKED_CHUNK // self.vocab_size)
        logits = CPU_CHUNK if self.rows.device.type == "cpu" else ACCELERATOR_CHUNK
        return max(LEAST_ROWS, logits // max(1, self.vocab_size))

    def chunks(self) -> Iterator[slice]:
        """Slices of C rows that cover all rows."""
        size = self.rows_at_once
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))


def as_seen(rows: Tensor) -> LazyLogits:
    """The input rows (N, D) of a model's output projection, with autocast's dtype if autocast is on; no projection yet.

    To be called in a hook of the projection, where autocast's state is the model's.
    """
    device = rows.device.type
    return LazyLogits(rows, dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)


def agree(seen: LazyLogits, projection: OutputProjection, logits: Tensor) -> bool:
    """Whether a projection computes the model's logits (N, V) from the rows that the model's own projection reads."""
    largest = max(1.0, float(logits.abs().max()))
    ours = replace(seen, projection=projection).cast().some(slice(None))
    return bool((ours - logits).abs().max() <= TOLERANCE.get(seen.dtype or logits.dtype, 1e-4) * largest)


def output_projection(model: PreTrainedModel) -> OutputProjection | None:
    """The output projection described by a model's parts, or None; `teacher_forced` tests that it is complete."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    bias, extra = head.bias, getattr(model, "final_logits_bias", None)
    if extra is not None:
        bias = extra[0] if bias is None else bias + extra[0]
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return OutputProjection(head.weight, bias, cap)


def at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
