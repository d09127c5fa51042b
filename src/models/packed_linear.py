"""Linear layers on a CPU with a weight that is packed once, in the layout of oneDNN.

A product of few rows with a large weight spends more time on packing the weight than on multiplying, and a step of
generation has few rows.
Shapes: R rows, D width, V vocabulary.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LARGEST = 2**29  # bytes of a weight that is packed


def packed(weight: Tensor) -> Tensor | None:
    """A packed copy of a weight (V, D), for `product`; None if it cannot be packed or is too large.

    Only for float32 on x86 processors, where it was measured to be faster.
    """
    is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    is_ours = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.layout == torch.strided
    if not (is_there and is_ours) or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    if weight.numel() * weight.itemsize > LARGEST:
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())


def product(rows: Tensor, layout: Tensor, bias: Tensor | None = None) -> Tensor:
    """(…, V) the linear layer's output for rows (…, D), without gradients. `layout`: a weight of `packed`."""
    return torch.ops.mkldnn._linear_pointwise(rows, layout, bias, "none", [], "")


@contextmanager
def packed_head(model: PreTrainedModel) -> Iterator[None]:
    """Within: the model's output projection uses a packed weight, if possible. Without gradients; the weight must not
    change."""
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
