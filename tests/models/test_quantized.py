"""Quantized models: GGUF files, and folders that a package quantized."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import ft_flags, gen_flags, kd_flags, read, rows, weights

import create_student_main
import ft_main
import gen_main
import kd_main
from src.config.errors import UserError
from src.models import quantized
from src.models.checks_before_loading import check_model_files
from src.models.folders import write_model_folder
from src.models.loading import load_config, load_model, load_tokenizer
from src.models.quantized import dequantized

HEADS = 2


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- GGUF


def interleaved(weight: torch.Tensor) -> torch.Tensor:
    """Rows of queries and keys in the order of GGUF files, which rotate neighbors and not halves."""
    width = weight.shape[1]
    return weight.reshape(HEADS, 2, -1, width).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(folder: str, path: Path) -> Path:
    """A tiny Llama with its byte-level tokenizer as a GGUF file of float32 weights."""
    gguf = pytest.importorskip("gguf", reason="requirements-extras.txt")
    config, state = load_config(folder), load_model(folder).state_dict()
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(HEADS)
    file.add_head_count_kv(HEADS)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_vocab_size(config.vocab_size)
    model = read(Path(folder) / "tokenizer.json")["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = set(load_tokenizer(folder).all_special_tokens)
    written = ["<|endoftext|>" if token == "<unk>" else token for token in tokens]  # transformers would add it
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("default")
    file.add_token_list(written)
    file.add_token_types([3 if token in special else 1 for token in tokens])
    file.add_token_merges([" ".join(pair) for pair in model["merges"]])
    file.add_bos_token_id(config.eos_token_id)
    file.add_unk_token_id(tokens.index("<unk>"))
    file.add_eos_token_id(config.eos_token_id)
    file.add_pad_token_id(config.pad_token_id)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, value in state.items():
        if name.startswith("model.layers."):
            _, _, number, part = name.removesuffix(".weight").split(".", 3)
            value = interleaved(value) if part.endswith(("q_proj", "k_proj")) else value
            file.add_tensor(f"blk.{number}.{names[part]}.weight", value.numpy().astype(np.float32))
    file.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    file.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(tiny_models, tmp_path_factory) -> str:
    return str(write_gguf(tiny_models["llama"]["teacher"], tmp_path_factory.mktemp("gguf") / "teacher.gguf"))


def test_a_gguf_file_is_the_model_it_was_made_of(tiny_models, gguf_file):
    source = tiny_models["llama"]["teacher"]
    check_model_files(gguf_file)
    ours, theirs = load_model(gguf_file), load_model(source)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert load_model(gguf_file, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert ours.dtype == torch.float32 and not hasattr(ours.config, "quantization_config")
    tokens, expected = load_tokenizer(gguf_file), load_tokenizer(source)
    assert len(tokens) == len(expected) and tokens.eos_token_id == expected.eos_token_id
    assert tokens("The old red cat sees.")["input_ids"] == expected("The old red cat sees.")["input_ids"]
    assert load_config(f"{gguf_file}_prune0_2").num_hidden_layers == 2
    assert load_model(f"{gguf_file}_prune0_2").config.num_hidden_layers == 2


@pytest.mark.slow
def test_a_gguf_file_generates_teaches_and_is_copied(gguf_file, tmp_path, tiny_dataset_path):
    copy, student = tmp_path / "copy", tmp_path / "student"
    create_student_main.main(["--from_model", gguf_file, "--output_dir", str(copy)])
    create_student_main.main(["--from_model", gguf_file, "--n_decoder_layers", "1", "--output_dir", str(student)])
    for name, teacher in (("a", gguf_file), ("b", str(copy))):
        gen_main.main(gen_flags(teacher, tiny_dataset_path, tmp_path / f"gen_{name}", split_for_generation="dev"))
        pair = {"teacher": teacher, "student": str(student)}
        kd_main.main(kd_flags(pair, tiny_dataset_path, tmp_path / f"kd_{name}", epochs=1))
    generated = [read(tmp_path / f"gen_{name}" / "generated_datasets.json") for name in "ab"]
    assert generated[0] == generated[1]
    for key, value in weights(tmp_path / "kd_a" / "model").items():
        assert torch.equal(value, weights(tmp_path / "kd_b" / "model")[key])


def test_a_gguf_file_is_scored_but_not_trained(gguf_file, tmp_path, tiny_dataset_path):
    said = error_of(ft_main.main, ft_flags(gguf_file, tiny_dataset_path, tmp_path / "out"))
    assert said.startswith(f"{gguf_file}: is quantized (gguf), so it can teach and generate but not be trained")
    assert not (tmp_path / "out").exists()
    ft_main.main(ft_flags(gguf_file, tiny_dataset_path, tmp_path / "out", do_train=False))
    assert [row["split"] for row in rows(tmp_path / "out")] == ["test"]


def test_gguf_without_the_package_and_a_torn_file(gguf_file, tmp_path, monkeypatch, tiny_dataset_path):
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(Path(gguf_file).read_bytes()[:2000])
    assert error_of(check_model_files, str(torn)).startswith(f"{torn}: ")
    other = shutil.copy(gguf_file, tmp_path / "other.gguf")
    monkeypatch.setattr(quantized, "find_spec", lambda _: None)
    said = error_of(gen_main.main, gen_flags(str(other), tiny_dataset_path, tmp_path / "out"))
    assert said == f"{other}: is quantized (gguf) and needs the package gguf; run pip install gguf"


# ------------------------------------------------------------------------------------------------------------- folders


def folder_of(source: str, folder: Path, **settings) -> Path:
    """A copy of a model whose config names a quantization."""
    shutil.copytree(source, folder)
    config = read(folder / "config.json") | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
        ({"quant_method": "compressed-tensors"}, "compressed_tensors"),
    ],
)
def test_the_missing_package_is_named(tiny_models, tmp_path, tiny_dataset_path, monkeypatch, settings, package):
    folder = folder_of(tiny_models["llama"]["teacher"], tmp_path / "q", **settings)
    monkeypatch.setattr(quantized, "find_spec", lambda _: None)
    said = error_of(gen_main.main, gen_flags(str(folder), tiny_dataset_path, tmp_path / "out"))
    assert f"and needs the package {package}; run pip install {package}" in said
    pair = {"teacher": str(folder), "student": tiny_models["llama"]["student"]}
    assert error_of(kd_main.main, kd_flags(pair, tiny_dataset_path, tmp_path / "out")) == said
    assert (
        error_of(create_student_main.main, ["--from_model", str(folder), "--output_dir", str(tmp_path / "o")]) == said
    )
    assert not (tmp_path / "out").exists()


def test_a_quantized_folder_is_not_trained(tiny_models, tmp_path, tiny_dataset_path, monkeypatch):
    folder = folder_of(tiny_models["llama"]["student"], tmp_path / "q", quant_method="awq")
    monkeypatch.setattr(quantized, "find_spec", lambda _: "installed")
    expected = f"{folder}: is quantized (awq), so it can teach and generate but not be trained"
    for main, flags in (
        (ft_main.main, ft_flags(str(folder), tiny_dataset_path, tmp_path / "out")),
        (ft_main.main, ft_flags(str(folder), tiny_dataset_path, tmp_path / "out", do_train=False)),
        (kd_main.main, kd_flags(tiny_models["llama"] | {"student": str(folder)}, tiny_dataset_path, tmp_path / "out")),
    ):
        assert error_of(main, flags).startswith(expected)


def test_an_adapter_of_a_quantized_base_is_refused(tiny_models, tmp_path, monkeypatch):
    base = folder_of(tiny_models["llama"]["student"], tmp_path / "q", quant_method="awq")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").touch()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.setattr(quantized, "find_spec", lambda _: "installed")
    monkeypatch.setattr("src.models.adapters.find_spec", lambda _: "installed")
    assert "is quantized (awq); the adapter needs float weights" in error_of(check_model_files, str(adapter))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(tiny_models, tiny_tokenizers, tmp_path, tiny_dataset_path, bits):
    pytest.importorskip("bitsandbytes", reason="not in requirements-extras.txt")
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(tiny_models["llama"]["teacher"])
    # On some CPUs, bitsandbytes needs rows of whole blocks, which have 128 weights.
    config.update({"hidden_size": 128, "intermediate_size": 256, "head_dim": 128 // config.num_attention_heads})
    source, folder = str(tmp_path / "wide"), str(tmp_path / "q")
    write_model_folder(source, AutoModelForCausalLM.from_config(config), tiny_tokenizers["llama"], "")
    how = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    small = AutoModelForCausalLM.from_pretrained(source, quantization_config=how, dtype=torch.float32)
    write_model_folder(folder, small, tiny_tokenizers["llama"], "")
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(folder)(ids).logits, small(ids).logits)
    floats = dequantized(load_model(folder), folder)
    assert floats.dtype == torch.float32 and not hasattr(floats.config, "quantization_config")
    pair = {"teacher": folder, "student": tiny_models["llama"]["student"]}
    kd_main.main(kd_flags(pair, tiny_dataset_path, tmp_path / "kd", epochs=1))
    create_student_main.main(["--from_model", folder, "--n_decoder_layers", "1", "--output_dir", str(tmp_path / "s")])
    kept = load_model(str(tmp_path / "s")).state_dict()
    assert all(torch.equal(value, floats.state_dict()[name]) for name, value in kept.items())
