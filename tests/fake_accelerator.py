"""A fake accelerator: its tensors lie on the CPU, but an operation on tensors of two devices fails as on a GPU.

It finds tensors that were left on another device, on machines without a GPU. torch must know such a backend before the
first gradient, so a script runs on it in a process of its own: this file, as a script.
"""

import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from several_processes import environment
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from src.config.cli import run_script
from src.devices.accelerator import Accelerator
from src.models import adapters, folders
from src.training import checkpoints

NAME = "fake"
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)  # indices may be on the CPU

used: set[torch.device] = set()  # the fake devices that have computed something


class OnDevice(torch.Tensor):
    """A tensor that says it is on a fake device."""

    content: torch.Tensor

    @staticmethod
    def __new__(cls, content: torch.Tensor, device: torch.device) -> "OnDevice":
        layout = {"strides": content.stride(), "storage_offset": content.storage_offset(), "dtype": content.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, content.size(), device=device, **layout)
        made.content = content
        return made

    def tolist(self) -> Any:
        return self.content.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, _types: Any, args: Sequence = (), options: Mapping | None = None
    ) -> Any:
        return _computed(operation, args, options or {})


class _Mode(TorchDispatchMode):
    """Sees operations that make a tensor on the device."""

    def __torch_dispatch__(
        self, operation: Any, _types: Any, args: Sequence = (), options: Mapping | None = None
    ) -> Any:
        return _computed(operation, args, options or {})


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, _device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, _device: Any = None) -> None:
        torch.set_rng_state(state)


class _Event:
    """Copies are there at once."""

    def __init__(self, device: torch.device) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def _computed(operation: Any, args: Sequence, options: Mapping[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, options)) if isinstance(each, torch.Tensor)]
    devices = {each.device for each in tensors if isinstance(each, OnDevice)}
    on_cpu = any(each.dim() and not isinstance(each, OnDevice) for each in tensors)
    if operation not in MOVES and len(devices) + (on_cpu and operation not in INDEXING) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device: {operation} on {devices}, CPU: {on_cpu}")
    wanted = options.get("device")
    device = torch.device(wanted) if wanted is not None else next(iter(devices), torch.device("cpu"))
    if operation is torch.ops.aten.copy_.default:
        device = args[0].device
    if wanted is not None:
        options = {**options, "device": "cpu"}
    result = operation(*_contents(args), **_contents(options))
    if device.type != NAME or operation is torch.ops.aten._local_scalar_dense.default:
        return result
    place = torch.device(NAME, device.index or 0)
    used.add(place)
    wrapped = tree_map(lambda each: OnDevice(each, place) if isinstance(each, torch.Tensor) else each, result)
    return return_and_correct_aliasing(operation, args, options, wrapped)


def _contents(values: Any) -> Any:
    return tree_map(lambda each: each.content if isinstance(each, OnDevice) else each, values)


def run_on_fake_accelerator(script: str, argv: Sequence[str]) -> None:
    """Run a script, such as "kd_main", in a process for which `fake:0` is the accelerator; it must succeed."""
    line = [sys.executable, str(Path(__file__).resolve()), script, *argv]
    done = subprocess.run(line, capture_output=True, text=True, timeout=280, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


def _run(script: str, argv: list[str]) -> int:
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes its tensor on the CPU first, and moves it
    device = torch.device(NAME, 0)
    save_file, save_tensors = adapters.save_file, checkpoints._save_tensors
    replaced = (  # files are written from tensors' memory
        mock.patch.object(Accelerator, "device", device),
        mock.patch.object(torch, "Event", _Event),
        mock.patch.object(folders, "whole_state", lambda model: _contents(_detached(model))),
        mock.patch.object(adapters, "save_file", lambda values, path: save_file(_contents(values), path)),
        mock.patch.object(checkpoints, "_save_tensors", lambda values, path: save_tensors(_contents(values), path)),
    )
    with ExitStack() as stack, _Mode():
        for each in replaced:
            stack.enter_context(each)
        status = run_script(importlib.import_module(script).main, argv)
    assert device in used
    return status


def _detached(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items()}


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1], sys.argv[2:]))
