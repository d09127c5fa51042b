"""LoRA adapters: folders as model names, merged when they are loaded; and training one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import slow
from safetensors.torch import load_file
from tiny_runs import ft_flags, gen_flags, kd_flags, names, read, rows, weights

import create_student_main
import ft_main
import gen_main
import kd_main
from src.config.errors import UserError
from src.models import adapters
from src.models.adapters import Lora, add_lora, merge_lora, save_lora
from src.models.checks_before_loading import check_model_files
from src.models.folders import save_model
from src.models.loading import load_config, load_model, load_tokenizer
from src.training.checkpoints import load_weights

peft = pytest.importorskip("peft", reason="requirements-extras.txt")


def logits_of(model) -> torch.Tensor:
    ids = torch.arange(5, 11)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).logits


def adapted(name: str, *, scale: float = 0.1, rank: int = 2):
    """A model with an adapter whose values are random."""
    model = load_model(name)
    add_lora(model, name, Lora(rank, 2.0 * rank), seed=1)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.normal_(std=scale, generator=torch.Generator().manual_seed(each.numel()))
    return model


@pytest.fixture
def make(tmp_path):
    """Write an adapter of a model; returns its folder and its logits as peft computes them, before merging."""

    def write(name: str, *, with_tokenizer: bool = False, **changes) -> tuple[Path, torch.Tensor]:
        model, folder = adapted(name), tmp_path / "adapter"
        folder.mkdir()
        save_lora(model, folder)
        if with_tokenizer:
            load_tokenizer(name).save_pretrained(folder)
        if changes:
            config = read(folder / "adapter_config.json") | changes
            (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder, logits_of(model)

    return write


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("family", [*slow("t5"), "gpt2"])
def test_an_adapter_is_merged_when_it_is_loaded(tiny_models, make, family):
    base = tiny_models[family]["teacher"]
    folder, expected = make(base)
    check_model_files(str(folder))
    merged = load_model(str(folder))
    torch.testing.assert_close(logits_of(merged), expected)
    assert not torch.allclose(logits_of(load_model(base)), expected, atol=1e-3)
    assert merged.state_dict().keys() == load_model(base).state_dict().keys()
    assert load_config(str(folder)).to_dict() == load_config(base).to_dict()
    assert load_tokenizer(str(folder)).get_vocab() == load_tokenizer(base).get_vocab()


def test_an_adapter_of_peft_itself(tiny_models, tmp_path):
    """Not written by this suite: with fully trained modules beside the matrices, dropout and rank-stabilized scale."""
    base = tiny_models["llama"]["teacher"]
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"], use_rslora=True)
    model = peft.get_peft_model(load_model(base), config)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.normal_(std=0.1, generator=torch.Generator().manual_seed(each.numel()))
    model.save_pretrained(tmp_path)
    expected = logits_of(model)
    assert read(tmp_path / "adapter_config.json")["base_model_name_or_path"] == base
    torch.testing.assert_close(logits_of(load_model(str(tmp_path))), expected)


def test_its_own_tokenizer_counts(tiny_models, make):
    folder, _ = make(tiny_models["gpt2"]["teacher"], with_tokenizer=True)
    settings = read(folder / "tokenizer_config.json") | {"model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(str(folder)).model_max_length == 77


@pytest.mark.slow
def test_layers_of_an_adapter_and_of_its_base(tiny_models, make):
    """ADAPTER_prune0_2 keeps layers of the merged model; the base may itself be a name with layers."""
    base = tiny_models["gpt2"]["teacher"]
    folder, _ = make(base)
    name, merged = f"{folder}_prune0_2", load_model(str(folder))
    assert load_config(name).num_hidden_layers == 2
    assert torch.equal(load_model(name).transformer.h[1].attn.c_attn.weight, merged.transformer.h[2].attn.c_attn.weight)
    shutil.rmtree(folder)
    folder, expected = make(f"{base}_prune0_1")
    assert load_config(str(folder)).num_hidden_layers == 2
    torch.testing.assert_close(logits_of(load_model(str(folder))), expected)


def test_a_relative_base_is_looked_for_beside_the_adapter_too(tiny_models, make, tmp_path, monkeypatch):
    folder, expected = make(tiny_models["gpt2"]["teacher"], base_model_name_or_path="../base")
    shutil.copytree(tiny_models["gpt2"]["teacher"], tmp_path / "base")
    torch.testing.assert_close(logits_of(load_model(str(folder))), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "peft_type is 'PREFIX_TUNING'; only LORA can be merged"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path must name the model of this adapter"),
        ({"base_model_name_or_path": "no/such/folder"}, "no/such/folder: no such model folder"),
        ({"base_model_name_or_path": "."}, "its base model .* is an adapter too"),
    ],
)
def test_broken_adapters(tiny_models, make, monkeypatch, changes, message):
    folder, _ = make(tiny_models["gpt2"]["teacher"], **changes)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        check_model_files(str(folder))


def test_an_adapter_without_weights_or_beside_a_model(tiny_models, make):
    folder, _ = make(tiny_models["gpt2"]["teacher"])
    (folder / "adapter_model.safetensors").rename(folder / "away")
    assert "holds no adapter_model.safetensors" in error_of(check_model_files, str(folder))
    (folder / "config.json").write_text("{}")
    assert "holds a model (config.json) and an adapter" in error_of(check_model_files, str(folder))


class Harmful:
    """An object whose loading would change the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_an_adapter_is_executed(tiny_models, make, tmp_path):
    folder, expected = make(tiny_models["gpt2"]["teacher"])
    values = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(values, folder / "adapter_model.bin")
    torch.testing.assert_close(logits_of(load_model(str(folder))), expected)
    torch.save(Harmful(tmp_path / "touched"), folder / "adapter_model.bin")
    assert "the adapter does not fit its base model" in error_of(load_model, str(folder))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("role", ["student", "another family's"])
def test_an_adapter_of_another_model(tiny_models, make, role):
    other = tiny_models["gpt2"]["student"] if role == "student" else tiny_models["opt"]["teacher"]
    folder, _ = make(tiny_models["gpt2"]["teacher"], base_model_name_or_path=other)
    assert "the adapter does not fit its base model" in error_of(load_model, str(folder))


def test_an_adapter_of_more_layers_than_its_base(tiny_models, make):
    base = tiny_models["gpt2"]["teacher"]
    folder, _ = make(base, base_model_name_or_path=f"{base}_prune0_1")
    assert "the adapter does not fit its base model: transformer.h.2" in error_of(load_model, str(folder))


def test_one_of_two_tied_embeddings_is_refused(tiny_models, tmp_path):
    base = tiny_models["gpt2"]["teacher"]
    peft.get_peft_model(load_model(base), peft.LoraConfig(target_modules=["lm_head"])).save_pretrained(tmp_path)
    assert "only one of the tied input and output embeddings" in error_of(load_model, str(tmp_path))


def test_without_the_package(tiny_models, make, monkeypatch, tmp_path, tiny_dataset_path):
    folder, _ = make(tiny_models["gpt2"]["teacher"])
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    said = error_of(gen_main.main, gen_flags(str(folder), tiny_dataset_path, tmp_path / "out"))
    assert said == f"{folder}: is an adapter, which needs the package peft; run pip install -r requirements-extras.txt"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_adapter_generates_teaches_and_is_copied(tiny_models, make, tmp_path, tiny_dataset_path):
    models = tiny_models["gpt2"]
    folder, _ = make(models["teacher"])
    merged = tmp_path / "merged"
    create_student_main.main(["--from_model", str(folder), "--output_dir", str(merged)])
    for name, teacher in (("a", folder), ("b", merged)):
        gen_main.main(gen_flags(str(teacher), tiny_dataset_path, tmp_path / f"gen_{name}", split_for_generation="dev"))
        pair = {"teacher": str(teacher), "student": models["student"]}
        kd_main.main(kd_flags(pair, tiny_dataset_path, tmp_path / f"kd_{name}", epochs=1))
    generated = [read(tmp_path / f"gen_{name}" / "generated_datasets.json") for name in "ab"]
    assert generated[0] == generated[1]
    assert weights(tmp_path / "kd_a" / "model").keys() == weights(tmp_path / "kd_b" / "model").keys()
    for key, value in weights(tmp_path / "kd_a" / "model").items():
        assert torch.equal(value, weights(tmp_path / "kd_b" / "model")[key])


# ------------------------------------------------------------------------------------------------------------ training


def test_a_new_adapter_changes_nothing_and_depends_on_the_seed_alone(tiny_models):
    base = tiny_models["gpt2"]["teacher"]
    plain, state = load_model(base), torch.get_rng_state()
    made = []
    for seed in (1, 1, 2):
        model = load_model(base)
        add_lora(model, base, Lora(2, 4.0), seed=seed)
        assert torch.equal(logits_of(model), logits_of(plain))
        made.append(torch.cat([each.flatten() for each in model.parameters() if each.requires_grad]))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", [*slow("t5"), "gpt2"])
def test_saved_and_restored(tiny_models, tmp_path, family):
    name = tiny_models[family]["student"]
    model = adapted(name)
    save_model(tmp_path, model, load_tokenizer(name))
    other = adapted(name, scale=0.3)
    load_weights(other, tmp_path)
    assert torch.equal(logits_of(other), logits_of(model))
    torch.testing.assert_close(logits_of(load_model(str(tmp_path))), logits_of(model))
    merged = merge_lora(other)
    torch.testing.assert_close(logits_of(merged), logits_of(model))
    assert merged.state_dict().keys() == load_model(name).state_dict().keys()


def test_a_checkpoint_of_another_rank(tiny_models, tmp_path):
    name = tiny_models["gpt2"]["student"]
    save_lora(adapted(name, rank=3), tmp_path)
    assert "is of another model or --lora_rank" in error_of(load_weights, adapted(name), tmp_path)


@pytest.fixture
def command(dropout_models, rotation_path, tmp_path):
    """The command line of a fine-tuning with an adapter, for an output folder and further flags."""
    flags = {"lora_rank": 2, "lora_alpha": 8, "metric_for_best_model": "nll", "save_checkpoint_every_n_steps": 1.0}
    model = dropout_models["gpt2"]["teacher"]
    return lambda out, **more: ft_flags(model, rotation_path, tmp_path / out, **{**flags, **more})


def test_fine_tuning_by_an_adapter(dropout_models, command, tmp_path, capsys):
    """Only the adapter is trained and saved; the model folder is a plain one, of the best adapter."""
    base = weights(Path(dropout_models["gpt2"]["teacher"]))
    ft_main.main(command("out", keep_checkpoint_after_test=True))
    assert "LoRA of rank 2: " in capsys.readouterr().out
    (best,) = [folder for folder in tmp_path.glob("out/epoch*") if not folder.name.endswith("__last")]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "optimizer.pt"} <= names(best)
    assert not {"config.json", "model.safetensors"} & names(best)
    model = weights(tmp_path / "out" / "model")
    assert model.keys() == base.keys() and not names(tmp_path / "out" / "model") & {"adapter_config.json"}
    changed = {key for key, value in model.items() if not torch.equal(value, base[key])}
    assert changed == {key for key in base if key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))}
    torch.testing.assert_close(logits_of(load_model(str(best))), logits_of(load_model(str(tmp_path / "out" / "model"))))
    first, *_, test = rows(tmp_path / "out")
    assert float(test["nll"]) != float(first["nll"])


@pytest.mark.slow
def test_its_checkpoints_become_state_dicts_of_the_merged_model(command, tmp_path):
    ft_main.main(command("out", epochs=1))
    model = weights(tmp_path / "out" / "model")
    files = list(tmp_path.glob("out/epoch*__model.pt"))
    assert len(files) == 2
    for file in files:
        saved = torch.load(file, weights_only=True)
        assert all(torch.equal(saved[key], value) for key, value in model.items())


def test_weights_beside_an_adapter_are_refused(dropout_models, command, tmp_path):
    flags = command("out", checkpoint_path=dropout_models["gpt2"]["teacher"])
    assert "not with --lora_rank; give a model folder as --model_name" in error_of(ft_main.main, flags)
    assert not (tmp_path / "out").exists()


def test_training_without_the_package(command, tmp_path, monkeypatch):
    monkeypatch.setattr("src.config.flags.train.find_spec", lambda _: None)
    assert error_of(ft_main.main, command("out")).startswith("--lora_rank: needs the package peft; run pip install")
    assert not (tmp_path / "out").exists()
