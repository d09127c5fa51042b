"""What launchers and devices may ask for and the suite does not do: refused in one line, before weights are loaded."""

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_runs import ft_flags, kd_flags

import ft_main
import kd_main
from src.config.errors import UserError
from src.devices import accelerator, data_parallel, processes
from src.models.loading import load_model
from src.training import optimizers, setup


@pytest.fixture
def ft(tiny_models, rotation_path, tmp_path):
    """Fine-tune with these flags."""
    return lambda **flags: ft_main.main(ft_flags(tiny_models["gpt2"]["student"], rotation_path, tmp_path, **flags))


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "FSDP_OFFLOAD_PARAMS"])
def test_what_a_configuration_of_accelerate_may_ask_for(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=r" is not supported; arg_configs/accelerate/fsdp\.yaml shards models"):
        accelerator.join()


def test_a_number_format_that_the_device_lacks(ft, monkeypatch, fresh_accelerator):
    def refuses(**_):
        raise ValueError("bf16 mixed precision requires PyTorch >= 1.10 and a supported device.\nmore")

    monkeypatch.setattr(accelerator, "Accelerator", refuses)
    with pytest.raises(UserError, match="^--mixed_precision bf16: bf16 mixed precision requires .* device.$"):
        ft(mixed_precision="bf16")


def test_a_model_whose_layers_are_not_named_cannot_be_sharded(tiny_models):
    model = load_model(tiny_models["gpt2"]["student"])
    model._no_split_modules = None
    with pytest.raises(UserError, match="^FSDP: transformers does not say which layers of a gpt2 can be sharded"):
        data_parallel.shard(model, torch.device("cpu"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"optimizer": "adafactor"}, "--optimizer adafactor"),
        ({"max_gpu_batch_size": "auto"}, "--max_gpu_batch_size auto"),
        ({"mixed_precision": "fp16"}, "--mixed_precision fp16"),
        ({"compile": True}, "--compile True"),
    ],
)
def test_what_fsdp_cannot_do(ft, monkeypatch, fresh_accelerator, flags, said):
    monkeypatch.setattr(setup, "shards_models", lambda: True)
    with pytest.raises(UserError, match=f"^{said}: not with FSDP; leave it out, or take ddp.yaml"):
        ft(**flags)


@pytest.mark.parametrize(
    ("device", "n_processes", "said"),
    [("cuda:99", 1, "--teacher_device cuda:99: "), ("meta", 2, "--teacher_device meta: several processes would share")],
)
def test_a_device_that_the_teacher_cannot_have(
    tiny_models, rotation_path, tmp_path, monkeypatch, device, n_processes, said
):
    monkeypatch.setattr(processes, "count", lambda: n_processes)
    with pytest.raises(UserError, match=f"^{said}"):
        kd_main.main(kd_flags(tiny_models["gpt2"], rotation_path, tmp_path / "out", teacher_device=device))
    assert not (tmp_path / "out").exists()


def test_an_optimizer_that_is_not_installed_or_needs_a_gpu(ft, monkeypatch):
    monkeypatch.setattr(accelerator, "_on_cpu", lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="^--optimizer adamw_8bit: needs bitsandbytes; pip install -r requirements-ext"):
        ft(optimizer="adamw_8bit")
    monkeypatch.setattr(optimizers, "find_spec", lambda _: True)
    with pytest.raises(UserError, match="^--optimizer adamw_8bit: needs a GPU, this is a cpu; adafactor saves memory"):
        ft(optimizer="adamw_8bit")


def test_a_model_whose_layers_cannot_be_computed_again(ft, monkeypatch):
    from transformers import GPT2LMHeadModel

    monkeypatch.setattr(GPT2LMHeadModel, "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match=r"^--gradient_checkpointing True: transformers does not support it for .*gpt2"):
        ft(gradient_checkpointing=True)
