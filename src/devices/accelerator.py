"""The device and number format of a run, and how accelerate prepares a model for them."""

import os

import torch
from accelerate import Accelerator as Accelerator  # exported: other files take the type from here
from accelerate import PartialState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, parse_flag_from_env

from src.config.console import say
from src.config.errors import UserError
from src.config.flags.shared import SharedArguments

# A loss need not use every weight: layers above a compared one, experts that were not chosen.
DATA_PARALLEL = DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
SHARDING = "ACCELERATE_USE_FSDP"  # what `accelerate launch` sets for a configuration with `distributed_type: FSDP`
UNSUPPORTED = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params"}
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16")  # of x86 processors; the last of ARM

_shards_models = False


def join() -> None:
    """Join the processes of a launcher, on GPUs or, where there are none, on CPUs.

    Raises UserError for what its configuration asks for and the suite does not have.
    """
    for variable, name in UNSUPPORTED.items():
        if parse_flag_from_env(variable):
            raise UserError(f"{name} is not supported; arg_configs/accelerate/fsdp.yaml shards models")
    global _shards_models
    # accelerate and transformers must not shard too: `data_parallel` does it, on CPUs as well.
    _shards_models = parse_flag_from_env(SHARDING)
    os.environ[SHARDING] = "false"
    PartialState(cpu=_on_cpu())


def shards_models() -> bool:
    """Whether the launcher asks several processes to share the weights of models (FSDP2)."""
    return _shards_models


def _on_cpu() -> bool:
    return not torch.accelerator.is_available()


def make_accelerator(config: SharedArguments) -> Accelerator:
    """Choose the device and number format. Raises UserError for a format that the device cannot compute."""
    try:
        # One step, whatever the launcher's environment says: accelerate would divide every gradient by it.
        one_step = GradientAccumulationPlugin(num_steps=1)
        accelerator = Accelerator(
            cpu=_on_cpu(),
            mixed_precision=config.mixed_precision,
            gradient_accumulation_plugin=one_step,
            kwargs_handlers=[DATA_PARALLEL],
        )
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
