"""Load models and tokenizers by name: the `_prune` syntax, weights in every format, one-line errors."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import DECODER_ONLY_NAMES, ENCODER_DECODER_NAMES, FAMILY_NAMES, slow
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from src.config.errors import UserError
from src.config.flags.train import FineTuneArguments
from src.models.checks_before_loading import check_lengths, check_model_files, check_same_tokenizer
from src.models.folders import write_model_folder
from src.models.forward import teacher_forcing_inputs
from src.models.loading import is_encoder_decoder, load_config, load_model, load_tokenizer
from src.models.names import parse_model_name
from src.models.new_tokenizers import train_tokenizer
from src.models.weights import read_state_dict
from src.tokens.batch import Batch

TIED = {  # every name under which a family's one embedding matrix may be kept
    "t5": ("shared.weight", "lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    "bart": ("model.shared.weight", "lm_head.weight", "model.encoder.embed_tokens.weight"),
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "opt": ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
}


def same_weights(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def copy_of(folder: str, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def error_of(call, *args, **kwargs) -> str:
    """The message of the UserError that the call must raise: one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("t5-small", ("t5-small", None, None)),
        ("t5-small_prune", ("t5-small", None, (0, -1))),
        ("t5-small_prune0_2_5", ("t5-small", None, (0, 2, 5))),
        ("org/bart_prune0_1:0_5", ("org/bart", (0, 1), (0, 5))),
        ("t5_prune0_1:", ("t5", (0, 1), None)),
        ("t5_prune:3", ("t5", None, (3,))),
        ("t5_prune0_-1", ("t5", None, (0, -1))),
        ("t5_prune10_11/", ("t5", None, (10, 11))),
        ("my_pruned_model", ("my_pruned_model", None, None)),
        ("outputs/x_prune/model", ("outputs/x_prune/model", None, None)),
    ],
)
def test_model_names(name, parsed):
    assert parse_model_name(name) == parsed


@pytest.mark.parametrize(
    "name", ["t5_prune0,2", "t5_prune0__2", "t5_prune_0", "t5_prune:", "t5_prune0:1:2", "t5_prune-"]
)
def test_broken_prune_suffixes_say_what_to_write(name):
    assert "_prune0_1:0_5" in error_of(parse_model_name, name)


def test_a_folder_with_the_full_name_wins(tmp_path):
    name = str(tmp_path / "model_prune0_1")
    assert parse_model_name(name)[1:] == (None, (0, 1))
    Path(name).mkdir()
    assert parse_model_name(name) == (name, None, None)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_kind_class_and_dtype(tiny_models, family):
    model = load_model(tiny_models[family]["teacher"])
    assert is_encoder_decoder(model.config) == (family in ENCODER_DECODER_NAMES)
    assert model.can_generate() and not model.training and model.dtype == torch.float32
    assert load_model(tiny_models[family]["teacher"], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_weights_saved_in_half_precision_are_trained_in_float32(tiny_models, tiny_tokenizers, tmp_path):
    half = load_model(tiny_models["opt"]["student"], dtype=torch.float16)
    folder = write_model_folder(tmp_path / "half", half, tiny_tokenizers["opt"], "")
    assert load_model(str(folder)).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_pruned_name(tiny_models, family):
    side = "0:2_0" if family in ENCODER_DECODER_NAMES else "2_0"
    name = f"{tiny_models[family]['teacher']}_prune{side}"
    model = load_model(name)
    assert model.config.to_dict() == load_config(name).to_dict() | {"dtype": "float32"}
    assert model.num_parameters() < load_model(tiny_models[family]["teacher"]).num_parameters()
    check_model_files(name)
    missing = error_of(load_config, f"{tiny_models[family]['teacher']}_prune3")
    assert "decoder layer 3" in missing and "0 to 2" in missing


@pytest.mark.parametrize("family", DECODER_ONLY_NAMES)
def test_no_encoder_to_prune(tiny_models, family):
    assert "no encoder" in error_of(load_model, f"{tiny_models[family]['teacher']}_prune0:0")


@pytest.mark.parametrize("family", ["t5", "gpt2", *slow("bart", "opt", "llama")])
@pytest.mark.parametrize("form", ["pt", "safetensors", "folder", "accelerate"])
def test_weights_in_every_form(tiny_models, tmp_path, family, form):
    trained = load_model(tiny_models[family]["teacher"])
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter))
    if form == "pt":
        path = tmp_path / "epoch1__model.pt"
        torch.save(trained.state_dict(), path)
    elif form == "safetensors":
        path = tmp_path / "some.safetensors"
        save_file({key: tensor.clone() for key, tensor in trained.state_dict().items()}, path)
    elif form == "folder":
        path = tmp_path / "model"
        trained.save_pretrained(path)
    else:
        from accelerate import Accelerator

        path = tmp_path / "state"
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(trained)
        accelerator.save_state(str(path))
    loaded = load_model(tiny_models[family]["teacher"], state_dict_path=path)
    assert same_weights(loaded, trained) and not same_weights(loaded, load_model(tiny_models[family]["teacher"]))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_tied_weights_need_one_name_only(tiny_models, tmp_path, family):
    model = load_model(tiny_models[family]["student"])
    state = {key: tensor.clone() for key, tensor in model.state_dict().items() if key != "final_logits_bias"}
    for kept in TIED[family]:
        save_file({k: v for k, v in state.items() if k == kept or k not in TIED[family]}, tmp_path / "w.safetensors")
        if family == "bart" and kept != "model.encoder.embed_tokens.weight":
            del (lean := load_file(tmp_path / "w.safetensors"))["model.decoder.embed_tokens.weight"]
            save_file(lean, tmp_path / "w.safetensors")
        assert same_weights(
            load_model(tiny_models[family]["student"], state_dict_path=tmp_path / "w.safetensors"), model
        )


def test_untied_t5_keeps_both_matrices_and_its_unscaled_output(tmp_path, tiny_tokenizers):
    """T5 1.1 and mT5: the config is forced to 'tied' by the library, the weights decide."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    config = T5Config(vocab_size=len(tiny_tokenizers["t5"]), tie_word_embeddings=False, dropout_rate=0.0, **sizes)
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for loaded in (load_model(str(tmp_path)), load_model(str(tmp_path), state_dict_path=tmp_path)):
        assert loaded.config.scale_decoder_outputs is False
        assert torch.equal(loaded.lm_head.weight, weights["lm_head.weight"])
        assert torch.equal(loaded.shared.weight, weights["shared.weight"])
    assert torch.equal(load_model(f"{tmp_path}_prune1").lm_head.weight, weights["lm_head.weight"])


def test_a_state_dict_for_a_pruned_name_is_of_the_pruned_model(tiny_models, tmp_path):
    name = f"{tiny_models['bart']['teacher']}_prune"
    pruned = load_model(name)
    torch.save(pruned.state_dict(), tmp_path / "student.pt")
    torch.save(load_model(tiny_models["bart"]["teacher"]).state_dict(), tmp_path / "teacher.pt")
    assert same_weights(load_model(name, state_dict_path=tmp_path / "student.pt"), pruned)
    message = error_of(load_model, name, state_dict_path=tmp_path / "teacher.pt")
    assert "teacher.pt" in message and "model.decoder.layers.2" in message


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_weights_of_another_architecture(tiny_models, tmp_path, family):
    teacher, student = tiny_models[family]["teacher"], tiny_models[family]["student"]
    assert Path(teacher).name in (message := error_of(load_model, student, state_dict_path=teacher))
    assert "weight" in message and "is not in the model" in message
    other = tiny_models["bart" if family != "bart" else "t5"]["student"]
    assert "is missing" in error_of(load_model, student, state_dict_path=other)
    state = read_state_dict(student)
    wide = next(key for key, tensor in sorted(state.items()) if tensor.dim() == 2)
    state[wide] = torch.zeros(3, 5)
    torch.save(state, tmp_path / "wide.pt")
    message = error_of(load_model, student, state_dict_path=tmp_path / "wide.pt")
    assert wide in message and "(3, 5)" in message


def test_a_model_folder_that_lacks_a_tensor_is_refused(tiny_models, tmp_path):
    folder = copy_of(tiny_models["t5"]["student"], tmp_path / "hole")
    state = load_file(folder / "model.safetensors")
    gone = "decoder.final_layer_norm.weight"
    save_file({k: v for k, v in state.items() if k != gone}, folder / "model.safetensors", metadata={"format": "pt"})
    message = error_of(load_model, str(folder))
    assert gone in message and "is missing" in message


@pytest.mark.parametrize("damage", [b"", b"not weights", None])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_weights(tiny_models, tmp_path, damage, suffix):
    good = tmp_path / f"good{suffix}"
    state = load_file(Path(tiny_models["t5"]["student"]) / "model.safetensors")
    (torch.save if suffix == ".pt" else save_file)(state, good)
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(good.read_bytes()[:2000] if damage is None else damage)
    assert str(bad) in error_of(load_model, tiny_models["t5"]["student"], state_dict_path=bad)


def test_damaged_model_folder(tiny_models, tmp_path):
    folder = copy_of(tiny_models["gpt2"]["student"], tmp_path / "bad")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:3000])
    assert str(folder) in error_of(load_model, str(folder))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in error_of(check_model_files, str(folder))
    check_model_files(str(folder), state_dict_path=tiny_models["gpt2"]["student"])


class Harmful:
    """Unpickling an instance would call a function."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize(("content", "said"), [(Harmful(), "cannot be read"), ({"model": {}}, "'model'"), ([], "list")])
def test_a_pt_file_that_is_no_state_dict(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "x.pt")
    assert said in error_of(read_state_dict, tmp_path / "x.pt")
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("name", ["t5-large", "some-org/no-model", "./outputs/none", "outputs/a/b/c", "a b", ""])
def test_names_that_are_nowhere_fail_fast_and_say_what_to_do(name):
    start = time.perf_counter()
    for call in (load_config, load_tokenizer, load_model, check_model_files):
        assert "create_student_main.py" in error_of(call, name)
    assert time.perf_counter() - start < 2


def test_folders_that_are_no_models(tmp_path, tiny_models):
    assert "config.json" in error_of(load_config, str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in error_of(load_config, str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    assert "nonsense" in error_of(load_config, str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert "generates text" in error_of(load_model, str(tmp_path))
    (tmp_path / "config.json").write_bytes((Path(tiny_models["t5"]["student"]) / "config.json").read_bytes())
    assert "tokenizer" in error_of(check_model_files, str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    assert "tokenizer" in error_of(check_model_files, str(tmp_path))


def test_fewer_embeddings_than_tokens(tiny_models, tmp_path):
    folder = copy_of(tiny_models["llama"]["student"], tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 10}))
    assert "vocab_size" in error_of(check_model_files, str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 1000}))  # padded: fine
    check_model_files(str(folder))


def test_damaged_generation_config(tiny_models, tmp_path):
    folder = copy_of(tiny_models["t5"]["student"], tmp_path / "bad")
    (folder / "generation_config.json").write_text("{")
    assert "generation_config.json" in error_of(load_model, str(folder))


def test_a_missing_pad_token_becomes_eos(tiny_models, tmp_path):
    folder = copy_of(tiny_models["gpt2"]["student"], tmp_path / "no_pad")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "EOS" in error_of(load_tokenizer, str(folder))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_what_the_flags_decide_is_left_out_of_a_generation_config(tiny_models, tiny_tokenizers, tmp_path, family):
    folder, tokenizer = copy_of(tiny_models[family]["student"], tmp_path / "steered"), tiny_tokenizers[family]
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": {"t5": 0, "bart": 1}.get(family)}
    GenerationConfig(
        max_length=20, min_length=5, do_sample=True, temperature=0.3, top_k=7, num_beams=3, no_repeat_ngram_size=3,
        length_penalty=2.0, forced_bos_token_id=4, **ids,
    ).save_pretrained(folder)  # fmt: skip
    own = {
        "min_length": 5,
        "no_repeat_ngram_size": 3,
        "length_penalty": 2.0,
        "num_beams": 3,
    }  # beams: to be saved again
    stock = GenerationConfig(**ids, forced_bos_token_id=4).to_dict() | own
    for model in (load_model(str(folder)), load_model(str(folder), state_dict_path=folder)):
        assert model.generation_config.to_dict() == stock
    (folder / "generation_config.json").unlink()
    plain = dict.fromkeys(["forced_bos_token_id", *own])
    assert load_model(str(folder)).generation_config.to_dict() == stock | plain
    inputs = tokenizer(["The red dog."], return_tensors="pt")
    assert load_model(str(folder)).generate(inputs.input_ids, max_new_tokens=3).shape[0] == 1


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_same_tokenizer_is_accepted(tiny_models, family):
    folders = tiny_models[family]
    check_same_tokenizer(load_tokenizer(folders["teacher"]), load_tokenizer(folders["student"]))


def test_the_first_token_that_differs_is_named(tiny_tokenizers, tiny_corpus):
    teacher = tiny_tokenizers["t5"]
    other = train_tokenizer([*tiny_corpus, "zebras zebras zebras"], 90, family="t5")
    message = error_of(check_same_tokenizer, teacher, other)
    token, index = min(set(other.get_vocab().items()) ^ set(teacher.get_vocab().items()), key=lambda e: (e[1], e[0]))
    assert f"token {index} '{token}'" in message
    moved = train_tokenizer(tiny_corpus, 96, family="t5")
    moved.pad_token = moved.eos_token
    assert "pad_token_id is 0 for the teacher, 1 for the student" in error_of(check_same_tokenizer, teacher, moved)


def test_loading_is_quiet(tiny_models, capfd):
    load_model(tiny_models["t5"]["teacher"])
    load_model(f"{tiny_models['gpt2']['teacher']}_prune")
    load_model(tiny_models["bart"]["student"], state_dict_path=tiny_models["bart"]["student"])
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_random_state(tiny_models):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_model(f"{tiny_models['t5']['teacher']}_prune")
    load_model(tiny_models["opt"]["student"], state_dict_path=tiny_models["opt"]["student"])
    assert torch.equal(torch.rand(2), expected)


def lengths(max_input_length: int, max_labels_length: int) -> FineTuneArguments:
    return FineTuneArguments(
        output_dir="o", dataset_path="d", max_input_length=max_input_length, max_labels_length=max_labels_length
    )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_lengths_beyond_the_position_table_are_refused(tiny_models, family):
    name = str(tiny_models[family]["teacher"])
    check_lengths(name, lengths(16, 16))
    if family in ("t5", "llama"):
        check_lengths(name, lengths(5000, 5000))
        return
    with pytest.raises(UserError, match="has positions for"):
        check_lengths(name, lengths(5000, 16))


def test_a_decoder_only_model_needs_positions_for_text_and_target_together(tiny_models):
    limit = load_config(str(tiny_models["gpt2"]["teacher"])).max_position_embeddings
    check_lengths(str(tiny_models["gpt2"]["teacher"]), lengths(limit - 10, 10))
    with pytest.raises(UserError, match=f"{limit + 1} tokens, but .* has positions for {limit}"):
        check_lengths(str(tiny_models["gpt2"]["teacher"]), lengths(limit - 10, 11))
    check_lengths(str(tiny_models["bart"]["teacher"]), lengths(limit, limit))


def test_teacher_forcing_starts_with_the_token_that_generation_starts_with(tiny_models, tmp_path):
    """Where the two configs differ, too."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["t5"]["student"], folder)
    for file, start in (("config.json", 5), ("generation_config.json", 7)):
        content = json.loads((folder / file).read_text()) | {"decoder_start_token_id": start}
        (folder / file).write_text(json.dumps(content))
    model = load_model(str(folder))
    batch = Batch(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.long), torch.tensor([[8, 9]]), (0,))
    inputs, _ = teacher_forcing_inputs(model, batch)
    assert inputs["decoder_input_ids"].tolist() == [[7, 8]]
    assert model.generation_config.decoder_start_token_id == model.config.decoder_start_token_id == 7
