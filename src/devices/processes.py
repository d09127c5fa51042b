"""The processes of a run and the number format they compute in."""

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from src.config.console import say
from src.config.errors import UserError
from src.config.flags.shared import SharedArguments
from src.devices import memory

SLOW = 1.5  # times as long as in float32, before it is worth a word


def make_accelerator(config: SharedArguments) -> Accelerator:
    """Device and number format. Raises UserError for a format that the device cannot compute."""
    try:
        # One step, whatever the launcher's environment says: it would divide every gradient by it.
        one_step = GradientAccumulationPlugin(num_steps=1)
        accelerator = Accelerator(mixed_precision=config.mixed_precision, gradient_accumulation_plugin=one_step)
    except ValueError as error:
        raise UserError(f"--mixed_precision {config.mixed_precision}: {str(error).splitlines()[0]}") from None
    if config.mixed_precision != "no" and not accelerator.native_amp:  # accelerate says nothing of it
        say(f"--mixed_precision {config.mixed_precision}: not on a {accelerator.device.type}; float32 is used")
    flags = [f"--{name} bf16" for name in ("mixed_precision", "teacher_dtype") if getattr(config, name, "") == "bf16"]
    slowness = memory.bfloat16_slowness(accelerator.device) if flags else 0.0
    if slowness > SLOW:
        device = accelerator.device.type
        say(f"warning: {' '.join(flags)}: on this {device} a product takes {slowness:.0f} times as long as in float32")
    return accelerator
