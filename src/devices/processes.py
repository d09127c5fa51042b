"""The processes of a run: their device and number format."""

import torch
from accelerate import Accelerator as Accelerator  # exported: other files take the type from here
from accelerate.utils import GradientAccumulationPlugin

from src.config.console import say
from src.config.errors import UserError
from src.config.flags.shared import SharedArguments

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16")  # of x86 processors; the last of ARM


def make_accelerator(config: SharedArguments) -> Accelerator:
    """Choose the device and number format. Raises UserError for a format that the device cannot compute."""
    try:
        # One step, whatever the launcher's environment says: accelerate would divide every gradient by it.
        one_step = GradientAccumulationPlugin(num_steps=1)
        accelerator = Accelerator(mixed_precision=config.mixed_precision, gradient_accumulation_plugin=one_step)
    except ValueError as error:
        raise UserError(f"--mixed_precision {config.mixed_precision}: {str(error).splitlines()[0]}") from None
    if config.mixed_precision != "no" and not accelerator.native_amp:  # accelerate ignores the flag silently
        say(f"--mixed_precision {config.mixed_precision}: not on a {accelerator.device.type}; float32 is used")
    flags = [f"--{name} bf16" for name in ("mixed_precision", "teacher_dtype") if getattr(config, name, "") == "bf16"]
    if flags and not has_bfloat16(accelerator.device):
        device = accelerator.device.type
        say(f"warning: {' '.join(flags)}: this {device} has no bfloat16 instructions; float32 is several times as fast")
    return accelerator


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 itself; others emulate it. True where this is not known."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BFLOAT16_INSTRUCTIONS)
