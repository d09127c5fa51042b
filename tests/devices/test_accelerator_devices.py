"""Whole scripts on a fake accelerator: no tensor is left on another device."""

import pytest
from conftest import slow
from fake_accelerator import NAME, run_on_fake_accelerator
from tiny_runs import TINY, argv, ft_flags, gen_flags, kd_flags

import prepare_datasets_main
from src.config.experiments.load import load_experiments
from src.config.flags.base import REPOSITORY

EXPERIMENTS = tuple(load_experiments(REPOSITORY / "arg_configs" / "kd_experiment_configs.yaml"))


@pytest.mark.parametrize(
    ("family", "experiment", "teacher_device"),
    [
        ("t5", "logits_kd", "cpu"),
        *slow(
            ("t5", "attention_kd", None),
            ("t5", "attention_kd", f"{NAME}:1"),
            *((family, each, "cpu") for family in ("t5", "gpt2") for each in EXPERIMENTS),
        ),
    ],
)
def test_distillation(tiny_models, rotation_path, tmp_path, family, experiment, teacher_device):
    flags = {"experiment_config_key": experiment, "teacher_device": teacher_device, "epochs": 1}
    command = kd_flags(tiny_models[family], rotation_path, tmp_path / "out", **flags)
    run_on_fake_accelerator("kd_main", command)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"gradient_checkpointing": True},
        {"optimizer": "adafactor"},
        {"max_gpu_batch_size": "auto"},
        {"label_smoothing": 0.1, "clip_grad_norm": 1.0},
        {"lora_rank": 2},
        {"num_beams": 3},
        {"mixed_precision": "bf16"},
        {"dry_run": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_fine_tuning(tiny_models, tiny_dataset_path, tmp_path, family, flags):
    command = ft_flags(tiny_models[family]["student"], tiny_dataset_path, tmp_path / "out", **flags)
    run_on_fake_accelerator("ft_main", command)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sampling", "sampling_high", "beam_search", "diverse_beam_search"])
@pytest.mark.parametrize("family", ["t5", "bart", "gpt2", "opt", "llama"])
def test_generation(tiny_models, tiny_dataset_path, tmp_path, family, kind):
    flags = {"generation_type": kind, "num_return_sequences": 2, "num_beams": 4}
    command = gen_flags(tiny_models[family]["teacher"], tiny_dataset_path, tmp_path / "out", **flags)
    run_on_fake_accelerator("gen_main", command)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_stored_log_probabilities(tiny_models, tiny_dataset_path, tmp_path, family):
    models = tiny_models[family]
    command = gen_flags(models["teacher"], tiny_dataset_path, tmp_path / "api", top_logprobs=3, max_labels_length=6)
    run_on_fake_accelerator("simulate_api_main", command)
    answers = {"logits_dataset_path": tmp_path / "api" / "api_completions.json", "student_name": models["student"]}
    prepare_datasets_main.main(argv({**answers, "output_dir": tmp_path, "file_name": "stored.arrow"}))
    data = {"dataset_path": tmp_path / "stored.arrow", "output_dir": tmp_path / "kd"}
    given = {"student_name": models["student"], "experiment_config_key": "logits_kd"}
    run_on_fake_accelerator("kd_dataset_with_logits_main", argv({**TINY, **data, **given}))
