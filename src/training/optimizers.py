"""The optimizers that --optimizer names, and the memory that their states take."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from transformers import Adafactor

from src.config.errors import UserError
from src.config.flags.shared import TrainingArguments

SMALL = 4096  # elements; bitsandbytes keeps the states of smaller tensors in float32


def check_optimizer(config: TrainingArguments, device: torch.device) -> None:
    """Raise UserError for an optimizer that is not installed, or that the device cannot run."""
    if config.optimizer != "adamw_8bit":
        return
    if find_spec("bitsandbytes") is None:
        raise UserError("--optimizer adamw_8bit: needs bitsandbytes; pip install -r requirements-extras.txt")
    if device.type != "cuda":
        raise UserError(f"--optimizer adamw_8bit: needs a GPU, this is a {device.type}; adafactor saves memory here")


def make_optimizer(config: TrainingArguments, parameters: Iterable[Parameter], *, can_fuse: bool) -> Optimizer:
    """The optimizer of the flags. can_fuse: whether AdamW may take torch's fused kernel."""
    shared: Any = {"params": parameters, "lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adafactor":  # with the rate of the flags, not one that follows from the weights' sizes
        return Adafactor(**shared, scale_parameter=False, relative_step=False, warmup_init=False)
    if config.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        made: Optimizer = AdamW8bit(**shared, eps=config.optimizer_eps, min_8bit_size=SMALL)
        return made
    return torch.optim.AdamW(**shared, eps=config.optimizer_eps, fused=can_fuse)


def state_bytes(name: str, parameters: Iterable[Parameter]) -> int:
    """The memory of an optimizer's states of these parameters."""
    return sum(_bytes_of(name, each) for each in parameters)


def _bytes_of(name: str, parameter: Parameter) -> int:
    """AdamW keeps two moments in the format of the weights, 8-bit AdamW in a byte each. Adafactor keeps the second
    moment's row and column means of a matrix (Shazeer and Stern, 2018, arXiv 1804.04235)."""
    if name == "adafactor":
        *others, n_rows, n_columns = (1, *parameter.shape) if parameter.dim() > 1 else (1, 1, parameter.numel())
        is_matrix = parameter.dim() > 1
        return 4 * torch.Size(others).numel() * (n_rows + n_columns if is_matrix else n_columns)
    if name == "adamw_8bit":
        return parameter.numel() * (2 if parameter.numel() >= SMALL else 8)
    return 2 * parameter.numel() * parameter.element_size()
