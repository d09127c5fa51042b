"""Modules that do what stock ones do with less work, put in their place in a loaded model.

They have no weights: what is saved, and read again, is the stock model.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

BITS = 16  # of a draw; a rate of dropout is rounded to 2⁻¹⁶
LEAST_RATE = 2**-8  # below it the rounding would show


def made_lean(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its activations `gelu_new` and its dropout modules exchanged; those are in the mode of the former."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                lean: nn.Module = nn.GELU(approximate="tanh")  # the same function, in one kernel instead of eight
            elif type(child) is nn.Dropout:
                lean = FewDrawsDropout(child.p)
            else:
                continue
            setattr(module, name, lean.train(child.training))
    return model


class FewDrawsDropout(nn.Dropout):
    """Dropout that on a CPU takes four decisions from each 64 random bits; torch takes one from 32, one after another.

    Elsewhere, and when it is compiled, it is torch's own.
    """

    def forward(self, states: Tensor) -> Tensor:
        is_ours = self.training and LEAST_RATE <= self.p < 1 and states.device.type == "cpu"
        if not is_ours or torch.compiler.is_compiling():
            return super().forward(states)
        dropped = round(self.p * 2**BITS)  # of as many
        kept = _draws(states) >= dropped - 2 ** (BITS - 1)
        return states * kept.to(states.dtype).mul_(2**BITS / (2**BITS - dropped))


def _draws(like: Tensor) -> Tensor:
    """Uniform int16 in the shape of a tensor."""
    words = torch.empty(-(-like.numel() * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[: like.numel()].view(like.shape)
