"""Train a model with several processes: each has a copy (DDP), or a share of every weight (FSDP2).

FSDP2 is torch's `fully_shard` itself: accelerate does not offer it on CPUs, where it is tested.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from src.config.errors import UserError
from src.devices import processes

T = TypeVar("T")


class Computation(nn.Module):
    """A model whose forward pass is a call that computes something with it.

    A wrapper, or the hooks of FSDP2, then enclose all that uses the weights, also what hooks take out of the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


class _Shards(NamedTuple):
    """The groups of weights that are gathered together: those outside of layers, and those of each layer.

    reshards: whether a layer's weights are freed after its forward pass. names: those of the model's state dict.
    """

    root: Any
    layers: list[Any]
    reshards: bool
    names: set[str]


_shards: WeakKeyDictionary[nn.Module, _Shards] = WeakKeyDictionary()


def shard(model: PreTrainedModel, device: torch.device, *, hooks_inside: bool = False) -> Computation:
    """Leave each process a share of the model's weights, on `device`; the result computes with the model.

    Zhao et al., 2023 (arXiv 2304.11277), in torch's second version. A layer's weights are gathered for its pass and
    freed after it; embeddings and output projection stay gathered until the gradients are computed. hooks_inside:
    whether hooks take states with gradients out of layers; the weights then stay gathered in layers too, since such a
    gradient may come before the layer's own. Raises UserError for a model type whose layers transformers does not name.
    """
    kinds = set(model._no_split_modules or ())
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(f"FSDP: transformers does not say which layers of a {model.config.model_type} can be sharded")
    names = set(model.state_dict())
    mesh = init_device_mesh(device.type, (processes.count(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=not hooks_inside)
    root: Any = fully_shard(Computation(model), mesh=mesh)
    # By default, what is gathered next depends on former forward passes: on evaluations, in which processes differ.
    for layer, before in zip([*layers, root], [root, *layers], strict=True):
        layer.set_modules_to_backward_prefetch([before])
    root(lambda: None)  # FSDP2 takes the module that is called first for the whole model
    root.reshard()  # so that an optimizer is given the shares
    _shards[model] = _Shards(root, layers, not hooks_inside, names)
    return root


def is_sharded(model: nn.Module) -> bool:
    """Whether processes have shares of the model: all must then make the same forward passes."""
    return model in _shards


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Within: each process has all weights, and may use them at its own pace. What it changes in them is lost.

    All processes enter together. Does nothing for a model that is not sharded.
    """
    if model not in _shards:
        yield
        return
    root, layers, reshards, _ = _shards[model]
    groups: list[FSDPModule] = [root, *layers]
    for layer in layers:
        layer.set_reshard_after_forward(reshard_after_forward=False, recurse=False)
    for group in groups:
        group.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(reshard_after_forward=reshards, recurse=False)
        for group in groups:
            group.reshard()


def whole_state(model: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of a sharded model that is `whole` now; its own would have shares. None for other models."""
    if model not in _shards:
        return None
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in tensors if name in _shards[model].names}


def full(tensor: Tensor) -> Tensor:
    """A tensor that processes have shares of, in each of them; other tensors as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor that all have, cut as `like` is; the tensor itself if `like` is not cut."""
    if not isinstance(like, DTensor):
        return tensor
    on_device = tensor.to(like.device, like.dtype)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def full_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state dict with full tensors, on the CPU if they were cut; other processes get an empty state."""
    saved = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for number, values in saved["state"].items():
        for name, value in values.items():
            gathered = full(value) if isinstance(value, DTensor) else None  # by all processes, one tensor at a time
            if processes.is_main():
                state.setdefault(number, {})[name] = value if gathered is None else gathered.cpu()
    return {**saved, "state": state}


def load_full_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load a state dict of `full_state`, whose tensors are cut as the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def cut(number: int, value: Any) -> Any:
        is_cut = isinstance(value, Tensor) and value.shape == parameters[number].shape
        return share_of(value, parameters[number]) if is_cut else value

    state = {
        number: {name: cut(number, value) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})
