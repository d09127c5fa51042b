"""Pruned models, new models and tokenizers, and the folders that create_student_main.py writes."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import ENCODER_DECODER_NAMES, FAMILY_NAMES, slow, tiny_sizes
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import create_student_main
from src.config.cli import run_script
from src.config.errors import UserError
from src.config.flags.create_student import FAMILIES as FAMILY_CHOICES
from src.config.flags.create_student import CreateStudentArguments
from src.create_student import format_flags, training_texts
from src.models.families import FAMILIES, family_of
from src.models.folders import write_model_folder
from src.models.loading import fuse_gelu, load_config, load_model, load_tokenizer
from src.models.names import resolve_layers
from src.models.new_models import ModelSizes, build_from_scratch
from src.models.new_tokenizers import train_tokenizer
from src.models.pruning import prune, pruned_config, spaced_layers

FIRST = [family.model_types[0] for family in FAMILIES]
MODEL_TYPES = [*FIRST, *slow(*(name for family in FAMILIES for name in family.model_types[1:]))]
TINY = {  # sizes under every name that some family gives them; each config takes its own
    "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 2,
    "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 32, "n_positions": 64, "rotary_dim": 4,
    "hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "ffn_dim": 32,
    "max_position_embeddings": 64, "original_max_position_embeddings": 64, "sliding_window": 4,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip


def tiny_random(model_type: str):
    """A random model of three layers a side, without dropout, whose tensors all differ from their initial values."""
    stock = AutoConfig.for_model(model_type)
    known = stock.to_dict().keys() | stock.attribute_map.keys()
    aliases = set(stock.attribute_map)
    config = AutoConfig.for_model(model_type, **{k: v for k, v in TINY.items() if k in known - aliases})
    if config.is_encoder_decoder:
        config.decoder_start_token_id = 0
    torch.manual_seed(0)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto_class.from_config(config).eval()
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, model.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits_of(model, *, use_cache: bool = False) -> torch.Tensor:
    source = torch.tensor([[5, 6, 7, 8, 9, 10, 1], [11, 12, 13, 14, 15, 16, 1]])
    inputs = {"decoder_input_ids": source[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=source, use_cache=use_cache, **inputs).logits


def greedy(model, *, use_cache: bool) -> torch.Tensor:
    source = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
    mask = torch.ones_like(source)
    return model.generate(source, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=use_cache)


def layers_of(model, path: str) -> torch.nn.ModuleList:
    return model.get_submodule(path)


# ------------------------------------------------------------------------------------------------------ fewer layers


@pytest.mark.parametrize(
    ("n_total", "n_keep", "layers"),
    [
        (1, 1, (0,)), (12, 1, (0,)), (12, 2, (0, 11)), (12, 3, (0, 6, 11)), (12, 6, (0, 2, 4, 7, 9, 11)),
        (24, 4, (0, 8, 15, 23)), (3, 3, (0, 1, 2)), (5, 4, (0, 1, 3, 4)),
    ],
)  # fmt: skip
def test_spaced_layers(n_total, n_keep, layers):
    assert spaced_layers(n_total, n_keep) == layers


def test_spaced_layers_are_distinct_and_evenly_spaced():
    for n_total in range(2, 30):
        for n_keep in range(2, n_total + 1):
            layers = spaced_layers(n_total, n_keep)
            gaps = [after - before for before, after in zip(layers, layers[1:], strict=False)]
            assert (layers[0], layers[-1], len(layers)) == (0, n_total - 1, n_keep)
            assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    for n_keep in (0, 4):
        with pytest.raises(UserError, match="of 3"):
            spaced_layers(3, n_keep)


def test_resolve_layers():
    assert resolve_layers(None, 3, "decoder") == (0, 1, 2)
    assert resolve_layers((0, -1), 6, "decoder") == (0, 5)
    assert resolve_layers((0, -1), 1, "decoder") == (0,)
    assert resolve_layers((2, 0), 3, "decoder") == (2, 0)
    for wrong in ((3,), (-4,), (0, 0), (1, -2), ()):
        with pytest.raises(UserError, match="decoder layer"):
            resolve_layers(wrong, 3, "decoder")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_pruning_keeps_the_named_layers_and_reloads(model_type, tmp_path):
    """Layers 1 and 2 of the decoder, 2 of the encoder; equal to running the whole model without the others."""
    model = tiny_random(model_type)
    family, before = family_of(model.config), copy.deepcopy(model.state_dict())
    pruned = prune(model, (2,) if family.is_encoder_decoder else None, (1, 2))
    kept = {family.decoder_layers: (1, 2)} | ({family.encoder_layers: (2,)} if family.is_encoder_decoder else {})
    for path, numbers in kept.items():
        old, new = layers_of(model, path), layers_of(pruned, path)
        assert len(new) == len(numbers)
        for layer, number in zip(new, numbers, strict=True):
            for name, tensor in old[number].state_dict().items():
                assert torch.equal(layer.state_dict()[name], tensor), (path, number, name)
    rest = [name for name in before if not name.startswith(tuple(f"{path}." for path in kept))]
    assert rest and all(torch.equal(pruned.state_dict()[name], before[name]) for name in rest)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert logits_of(model).shape == logits_of(pruned).shape and len(layers_of(model, family.decoder_layers)) == 3

    pruned.save_pretrained(tmp_path)
    reloaded = load_model(str(tmp_path))
    assert torch.equal(logits_of(reloaded), logits_of(fuse_gelu(pruned)))
    torch.testing.assert_close(logits_of(pruned, use_cache=True), logits_of(pruned))
    assert torch.equal(greedy(pruned, use_cache=True), greedy(pruned, use_cache=False))
    assert torch.equal(greedy(pruned, use_cache=True), greedy(reloaded, use_cache=True))


@pytest.mark.parametrize("model_type", ["t5", "bart", "gpt2", "opt", "llama", "gemma2"])
def test_pruning_equals_skipping_the_other_layers(model_type):
    """A layer whose output projections are zero is the identity: dropping it changes nothing."""
    model = tiny_random(model_type)
    family = family_of(model.config)
    silent = ("o.weight", "wo.weight", "o_proj.weight", "down_proj.weight", "c_proj.weight", "c_proj.bias")
    silent += ("out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias")
    paths = [path for path in (family.encoder_layers, family.decoder_layers) if path]
    for path in paths:
        for name, parameter in layers_of(model, path)[1].named_parameters():
            if name.endswith(silent):
                parameter.data.zero_()
    if model_type == "bart":  # post-norm: layer 1 normalizes once more, which changes nothing that is normal already
        for path in paths:
            for name, parameter in layers_of(model, path)[:2].named_parameters():
                if "layer_norm" in name:
                    parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
    pruned = prune(model, (0, 2) if family.is_encoder_decoder else None, (0, 2))
    torch.testing.assert_close(logits_of(pruned), logits_of(model), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(prune(model, None, None)), logits_of(model), rtol=0, atol=0)


@pytest.mark.parametrize("family", ENCODER_DECODER_NAMES)
def test_a_decoder_deeper_than_the_encoder_generates(family, tiny_tokenizers, tmp_path):
    """The library sizes a T5 decoder's cache by the encoder unless the config says otherwise."""
    sizes = dataclasses.replace(tiny_sizes(tiny_tokenizers[family], d_model=16, n_layers=3), n_encoder_layers=1)
    model = build_from_scratch(family, sizes, seed=0)
    model.save_pretrained(tmp_path)
    for each in (model, load_model(str(tmp_path)), load_model(f"{tmp_path}_prune0:0_1")):
        assert torch.equal(greedy(each, use_cache=True), greedy(each, use_cache=False))


def test_t5_keeps_its_relative_positions_without_layer_0():
    model = tiny_random("t5")
    pruned = prune(model, (2, 1), (1,))
    for side in ("encoder", "decoder"):
        old = model.get_submodule(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias").weight
        new = pruned.get_submodule(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias").weight
        assert torch.equal(new, old)
    assert not hasattr(pruned.encoder.block[1].layer[0].SelfAttention, "relative_attention_bias")


def test_lists_with_an_entry_per_layer_follow():
    config = AutoConfig.for_model("gemma2", num_hidden_layers=4)
    types = list(config.layer_types)
    assert len(set(types)) == 2
    assert pruned_config(config, None, (1, 3)).layer_types == [types[1], types[3]]
    assert config.layer_types == types and config.num_hidden_layers == 4


def test_unknown_layouts_are_refused_by_name():
    with pytest.raises(UserError, match="'ctrl'"):
        prune(AutoModelForCausalLM.from_config(AutoConfig.for_model("ctrl", n_layer=1, n_embd=16, dff=8)), None, (0,))


def test_mode_and_dtype_stay():
    model = tiny_random("gpt2").to(torch.bfloat16).train()
    pruned = prune(model, None, (2,))
    assert pruned.training and pruned.dtype == torch.bfloat16
    pruned.transformer.wte.weight.data.zero_()
    assert model.transformer.wte.weight.abs().sum() > 0


# ------------------------------------------------------------------------------------------------------- from scratch


def test_every_choice_of_the_flag_can_be_built():
    assert set(FAMILY_CHOICES) == set(FAMILY_NAMES)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_weights_follow_from_the_seed(family, tiny_tokenizers):
    sizes = tiny_sizes(tiny_tokenizers[family], d_model=16, n_layers=1)
    torch.manual_seed(1)
    first = build_from_scratch(family, sizes, seed=5)
    after_first = torch.rand(1)
    torch.manual_seed(2)
    again, other = build_from_scratch(family, sizes, seed=5), build_from_scratch(family, sizes, seed=6)
    assert torch.equal(logits_of(first), logits_of(again)) and not torch.equal(logits_of(first), logits_of(other))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after_first)
    assert first.get_input_embeddings().weight is first.get_output_embeddings().weight


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_new_model_learns(family, tiny_tokenizers, tiny_dataset):
    """Its NLL starts near that of a uniform guess and halves on a batch that it sees again and again."""
    tokenizer = tiny_tokenizers[family]
    model = build_from_scratch(family, tiny_sizes(tokenizer, d_model=32, n_layers=1), seed=0).train()
    batch = tokenizer(tiny_dataset["train"]["text"][:8], return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(40):
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] < 1.5 * torch.log(torch.tensor(float(len(tokenizer)))) and losses[-1] < 0.5 * losses[0]


def test_sizes_that_do_not_fit_the_heads():
    sizes = ModelSizes(vocab_size=20, pad_token_id=0, eos_token_id=1, d_model=10, n_heads=3)
    with pytest.raises(UserError, match="--n_heads 3"):
        build_from_scratch("t5", sizes, seed=0)
    with pytest.raises(UserError, match="even"):  # rotary positions turn pairs
        build_from_scratch(
            "llama", ModelSizes(vocab_size=20, pad_token_id=0, eos_token_id=1, d_model=6, n_heads=2), seed=0
        )


# --------------------------------------------------------------------------------------------------------- tokenizers


TEXTS = [
    "Thou art a villain, sir! Say'st thou so?", "“It’s naïve,” she said — 3.5 km away…", "a . b , c n't do n't",
    "O Romeo, Romeo! wherefore art thou Romeo?", "x", "name[The Eagle], food[French] | price <= 20 & rating 5/5",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("vocab_size", [200, 1300])
def test_text_comes_back_as_it_was(family, vocab_size, tmp_path):
    trained = train_tokenizer(TEXTS * 20, vocab_size, family=family)
    trained.save_pretrained(tmp_path)
    for tokenizer in (trained, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) <= vocab_size and (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids and tokenizer.pad_token_id not in ids
            assert (ids[-1] == tokenizer.eos_token_id) == (family in ENCODER_DECODER_NAMES)
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
        unseen = "Ωmega 漢字 Zürich"
        ids = tokenizer(unseen).input_ids
        if vocab_size >= 1024:
            assert tokenizer.decode(ids, skip_special_tokens=True) == unseen
        else:
            assert tokenizer.unk_token_id in ids


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_equal_texts_give_equal_tokenizers(family, tiny_corpus):
    texts = [*tiny_corpus, *TEXTS]
    first, second = (train_tokenizer(texts, 150, family=family).backend_tokenizer.to_str() for _ in range(2))
    assert first == second
    assert train_tokenizer(texts[1:], 120, family=family).backend_tokenizer.to_str() != first


def test_texts_that_make_no_tokenizer():
    for texts in ([], ["", "  "]):
        with pytest.raises(UserError, match="no text"):
            train_tokenizer(texts, 100, family="t5")
    for family in ("t5", "gpt2"):
        with pytest.raises(UserError, match="--vocab_size 12"):
            train_tokenizer(TEXTS, 12, family=family)


# ------------------------------------------------------------------------------------------------------ model folders


def make(**flags) -> Path:
    """Call the script in process, as from the command line."""
    words = [[f"--{key}", *([*map(str, v)] if isinstance(v, tuple) else [str(v)])] for key, v in flags.items()]
    return create_student_main.main([word for pair in words for word in pair])


def small(tmp_path, dataset_path, **more) -> dict:
    sizes = {"d_model": 16, "n_heads": 2, "vocab_size": 120, "n_decoder_layers": 1, "dataset_path": dataset_path}
    return {"output_dir": tmp_path / "student", **sizes, **more}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_new_student_opens_as_a_model(family, tmp_path, tiny_dataset, tiny_dataset_path):
    folder = make(**small(tmp_path, tiny_dataset_path, family=family))
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    assert model.config.vocab_size == len(tokenizer) <= 120 and model.config.hidden_size == 16
    text = tiny_dataset["unlabeled"]["text"][0]
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f" {model.num_parameters():,} parameters." in card and f"A new {family} model" in card
    ids = torch.tensor([tokenizer(text).input_ids])
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2).shape[0] == 1


def test_equal_flags_give_equal_bytes(tmp_path, tiny_dataset_path):
    flags = small(tmp_path, tiny_dataset_path, seed=7)
    first = {path.name: path.read_bytes() for path in make(**flags).iterdir()}
    second = {path.name: path.read_bytes() for path in make(**flags, overwrite=True).iterdir()}
    assert first.keys() == second.keys() and [k for k in first if first[k] != second[k]] == ["README.md"]


@pytest.mark.parametrize("family", ["t5", "gpt2", *slow("bart", "opt", "llama")])
def test_students_of_a_teacher(family, tmp_path, tiny_models):
    teacher, two_sided = tiny_models[family]["teacher"], family in ENCODER_DECODER_NAMES
    spaced = make(output_dir=tmp_path / "a", from_model=teacher, n_decoder_layers=2)
    named = make(output_dir=tmp_path / "b", from_model=teacher, keep_decoder_layers=(0, 2))
    suffix = make(output_dir=tmp_path / "c", from_model=f"{teacher}_prune")
    for folder in (named, suffix):
        assert (folder / "model.safetensors").read_bytes() == (spaced / "model.safetensors").read_bytes()
    model, card = load_model(str(spaced)), (suffix / "README.md").read_text(encoding="utf-8")
    assert "decoder 0 2 of 3" in card and ("encoder 0 1 2 of 3" in card) == two_sided
    assert torch.equal(logits_of(model), logits_of(load_model(f"{teacher}_prune0_2")))
    assert load_tokenizer(str(spaced)).get_vocab() == load_tokenizer(teacher).get_vocab()
    if two_sided:
        both = make(output_dir=tmp_path / "d", from_model=f"{teacher}_prune:1", n_encoder_layers=1)
        assert torch.equal(logits_of(load_model(str(both))), logits_of(load_model(f"{teacher}_prune0:1")))


def test_a_student_with_its_teachers_tokenizer(tmp_path, tiny_models):
    folder = make(output_dir=tmp_path / "s", tokenizer=tiny_models["gpt2"]["teacher"], family="llama", d_model=16)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.get_vocab() == load_tokenizer(tiny_models["gpt2"]["teacher"]).get_vocab()
    assert load_config(str(folder)).eos_token_id == tokenizer.eos_token_id


def test_dev_and_test_stay_unseen(tiny_dataset, tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(tiny_dataset | {"dev": {"text": ["Q"], "target": ["Z"]}}), encoding="utf-8")
    train, unlabeled = tiny_dataset["train"], tiny_dataset["unlabeled"]
    config = CreateStudentArguments(output_dir="x", dataset_path=str(path))
    assert list(training_texts(config, str(path))) == [*train["text"], *train["target"], *unlabeled["text"]]


def test_rows_drawn_for_dev_and_test_stay_unseen(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(f'{{"in": "t{i}", "out": "y{i}"}}\n' for i in range(20)), encoding="utf-8")
    columns = {"text_column": "in", "target_column": "out", "val_size": 5, "test_size": 0.2}
    config = CreateStudentArguments(output_dir="x", dataset_path=str(path), **columns)
    assert len(set(training_texts(config, str(path)))) == 2 * (20 - 5 - 4)


def test_format_flags():
    config = CreateStudentArguments(output_dir="x", from_model="t5", keep_decoder_layers=(0, 2))
    assert format_flags(config) == "--output_dir x --from_model t5 --keep_decoder_layers 0 2"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"from_model": "nowhere/none"}, "nowhere/none"),
        ({"from_model": "TEACHER", "n_decoder_layers": 9}, "has 3 decoder layers"),
        ({"from_model": "TEACHER", "keep_decoder_layers": (0, 7)}, "decoder layer 7"),
        ({"from_model": "TEACHER_prune0", "keep_decoder_layers": (0,)}, "leave out the decoder flags"),
        ({"from_model": "GPT2", "n_encoder_layers": 1}, "0 encoder layers"),
        ({"from_model": "GPT2", "keep_encoder_layers": (0,)}, "no encoder"),
        ({}, "--tokenizer"),
        ({"tokenizer": "nowhere/none"}, "nowhere/none"),
        ({"dataset_path": "none.json"}, "none.json"),
        ({"dataset_path": "DATA", "vocab_size": 11}, "--vocab_size 11"),
        ({"dataset_path": "DATA", "family": "gpt2", "n_encoder_layers": 1}, "no encoder"),
        ({"dataset_path": "DATA", "family": "llama", "d_model": 12, "n_heads": 4}, "even"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(flags, said, tmp_path, tiny_models, tiny_dataset_path, capsys):
    names = {"TEACHER": tiny_models["t5"]["teacher"], "GPT2": tiny_models["gpt2"]["teacher"], "DATA": tiny_dataset_path}
    words = ["--output_dir", str(tmp_path / "s")]
    for key, value in flags.items():
        values = value if isinstance(value, tuple) else (value,)
        text = " ".join(map(str, values))
        for name, path in names.items():
            text = text.replace(name, path)
        words += [f"--{key}", *text.split()]
    assert run_script(create_student_main.main, words) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path, tiny_models):
    folder, teacher = tmp_path / "s", tiny_models["t5"]["student"]
    folder.mkdir()
    make(output_dir=folder, from_model=teacher)  # an empty folder is free
    weights = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="--overwrite True"):
        make(output_dir=folder, from_model=f"{teacher}_prune0")
    assert (folder / "model.safetensors").read_bytes() == weights
    make(output_dir=folder, from_model=f"{teacher}_prune0", overwrite=True)
    assert load_config(str(folder)).num_decoder_layers == 1
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("precious")
    with pytest.raises(UserError, match="contains no model"):
        make(output_dir=tmp_path / "notes", from_model=teacher, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        make(output_dir=tmp_path / "notes" / "a.txt", from_model=teacher, overwrite=True)


def test_a_model_folder_is_whole_or_not_there(tmp_path, tiny_models, tiny_tokenizers, monkeypatch):
    model, folder = load_model(tiny_models["t5"]["student"]), tmp_path / "model"
    write_model_folder(folder, model, tiny_tokenizers["t5"], "first")
    monkeypatch.setattr(type(tiny_tokenizers["t5"]), "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_model_folder(folder, model, tiny_tokenizers["t5"], "second")
    assert (folder / "README.md").read_text(encoding="utf-8") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
