"""Products with a weight that was laid out for them once, on a CPU.

A product of few rows with a large weight spends more time on laying the weight out than on multiplying, and a step of
writing has few rows.
Shapes: R rows, D width, V vocabulary.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LARGEST = 2**29  # bytes of a weight that is worth a copy


def packed(weight: Tensor) -> Tensor | None:
    """A copy of a weight (V, D) in the layout of oneDNN, for `product`; None where that is not to be had or too large.

    Known to be faster in float32 on x86 processors; other processors have other libraries.
    """
    is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    is_ours = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.layout == torch.strided
    if not (is_there and is_ours) or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    if weight.numel() * weight.itemsize > LARGEST:
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())


def product(rows: Tensor, layout: Tensor, bias: Tensor | None = None) -> Tensor:
    """(…, V) what `linear` makes of rows (…, D), without a gradient; `layout` is of `packed`."""
    return torch.ops.mkldnn._linear_pointwise(rows, layout, bias, "none", [], "")


@contextmanager
def packed_head(model: PreTrainedModel) -> Iterator[None]:
    """Within: the model's output projection multiplies with its packed weight, where `packed` has one. Without
    gradients; the weight must stay as it is."""
    head = model.get_output_embeddings()
    layout = packed(head.weight) if type(head) is nn.Linear else None
    if layout is None:
        yield
        return

    def forward(rows: Tensor) -> Tensor:
        if rows.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return type(head).forward(head, rows)
        return product(rows, layout, head.bias)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
