"""The whole pipeline with the real scripts: prepare, create, fine-tune, generate, merge, distill a copy task."""

import itertools
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import slow
from tiny_runs import argv, ft_flags, gen_flags, kd_flags, names, places, read, rows
from tiny_runs import weights as weights_of
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import create_student_main
import ft_main
import gen_main
import kd_main
import prepare_datasets_main
from src.config.cli import parse
from src.config.errors import UserError
from src.config.flags.train import DistillArguments
from src.devices import accelerator as devices
from src.evaluation import evaluate
from src.models import generation_config, loading, weights
from src.training import setup

K = 3
WORDS = (("red", "blue", "old", "new", "the", "a"), ("cat", "dog", "bird", "house"), ("sees", "likes", "finds", "near"))
SHARED = {
    "batch_size": 8, "max_gpu_batch_size": 8, "max_labels_length": 16, "task_prompt": "modern:",
    "metric_for_best_model": "chrf", "save_checkpoint_every_n_steps": 100,
}  # fmt: skip
SIZES = {  # what each family needs to learn it in seconds
    "t5": {"d_model": 32, "n_encoder_layers": 2, "n_decoder_layers": 2, "learning_rate": 0.01},
    "gpt2": {"d_model": 64, "n_decoder_layers": 1, "learning_rate": 0.005},
}


@dataclass
class Road:
    """The folders and files of one family's road."""

    family: str
    original: Path
    base: str
    teacher: Path
    generated: Path
    merged: Path
    student: Path

    @property
    def teacher_weights(self) -> Path:
        (path,) = (path for path in self.teacher.glob("epoch*__model.pt") if "__last" not in path.name)
        return path


def make_model(family: str, data: Path, folder: Path, **flags) -> str:
    sizes = {name: value for name, value in SIZES[family].items() if name != "learning_rate"}
    shared = {"family": family, "n_heads": 2, "dropout": 0, "max_position_embeddings": 64, "output_dir": folder}
    create_student_main.main(argv({**shared, **sizes, **flags}))
    return str(folder)


@pytest.fixture(scope="module", params=[*slow("t5"), "gpt2"])
def road(request, tmp_path_factory) -> Road:
    """Every stage once, with the flags of the published commands."""
    family, root = request.param, tmp_path_factory.mktemp(f"road_{request.param}")
    texts = [" ".join(words) for words in itertools.product(*WORDS)]
    random.Random(0).shuffle(texts)
    parts = {"train": texts[:64], "dev": texts[64:68], "test": texts[68:80], "unlabeled": texts[80:96]}
    corpus = {split: {"text": part, "target": part} for split, part in parts.items()}
    del corpus["unlabeled"]["target"]
    (root / "corpus.json").write_text(json.dumps(corpus))

    original = prepare_datasets_main.main(
        argv({"dataset_name": "", "dataset_path": root / "corpus.json", "output_dir": root / "original"})
    )
    base = make_model(family, original, root / "base", dataset_path=original, vocab_size=96)
    small = make_model(family, original, root / "small", tokenizer=base, seed=1)
    rate = {"learning_rate": SIZES[family]["learning_rate"]}
    ft_main.main(ft_flags(base, original, root / "ft", **SHARED, **rate, epochs=20, metrics="chrf sacrebleu"))
    result = Road(family, original, base, root / "ft", root / "gen" / "generated_datasets.json", Path(), root / "kd")
    gen_main.main(
        gen_flags(
            base, original, root / "gen", checkpoint_path=result.teacher_weights, generation_type="sampling",
            split_for_generation="unlabeled train", num_return_sequences=K, add_original_data=True,
            task_prompt="modern:", max_labels_length=16, batch_size=32,
        )
    )  # fmt: skip
    result.merged = prepare_datasets_main.main(
        argv({
            "original_dataset_path": original, "generation_dataset_path": result.generated,
            "n_augmentations_per_example": K, "output_dir": root / "merged",
        })
    )  # fmt: skip
    models = {"teacher": base, "student": small}
    flags = {"epochs": 24, "stop_training_after_n_epochs": 15, "ft_steps_at_end": 1, "test_every_n_epochs": 5}
    kd_main.main(
        kd_flags(models, result.merged, result.student, teacher_state_dict_path=result.teacher_weights,
                 keep_checkpoint_after_test=True, **flags, **SHARED, **rate)
    )  # fmt: skip
    return result


def final(out: Path) -> dict[str, float]:
    """The scores of the closing test."""
    row = rows(out)[-1]
    assert (row["split"], row["epoch"], row["step"]) == ("test", "-1", "-1")
    return {name: float(value) for name, value in row.items() if name not in ("split", "epoch", "step")}


def test_teacher_and_student_learn_to_copy(road):
    first = float(rows(road.student)[0]["chrf"])
    assert final(road.teacher)["chrf"] > 70
    assert final(road.student)["chrf"] > max(55, 2 * first)
    texts = read(road.original)["test"]["text"]
    written = read(road.student / "eval_generations.json")["test__epoch-1__step-1"]
    assert written["references"] == texts
    assert sum(map(str.__eq__, written["predictions"], texts)) >= len(texts) // 4


def test_generated_file(road):
    original, generated = read(road.original), read(road.generated)
    assert list(generated) == ["unlabeled", "train"]
    assert set(generated["unlabeled"]) == {"text", "generated", "finish_reason"}
    assert set(generated["train"]) == {"text", "target", "generated", "finish_reason"}
    for split, columns in generated.items():
        assert set(columns["finish_reason"]) <= {"stop", "length"}
        assert columns["text"] == [text for text in original[split]["text"] for _ in range(K)]
        assert len(columns["generated"]) == K * len(original[split]["text"])
    copied = sum(map(str.__eq__, generated["train"]["text"], generated["train"]["generated"]))
    assert copied > len(generated["train"]["text"]) // 5  # each input's targets are beside it
    assert names(road.generated.parent) == {"generated_datasets.json", "run.json"}


def test_merged_file(road):
    original, generated, merged = read(road.original), read(road.generated), read(road.merged)
    assert set(merged) == {"dev", "test", "unlabeled", "ft", *(f"train_{i}" for i in range(K))}
    inputs = original["unlabeled"]["text"] + original["train"]["text"]
    targets = generated["unlabeled"]["generated"] + generated["train"]["generated"]
    for i in range(K):
        assert merged[f"train_{i}"]["text"] == original["train"]["text"] + inputs
        assert merged[f"train_{i}"]["target"] == original["train"]["target"] + targets[i::K]


def test_what_fine_tuning_leaves(road):
    """Best and last as bare weights (--keep_checkpoint_after_test False), the portable model, and the records."""
    out = road.teacher
    checkpoints = {name for name in names(out) if name.startswith("epoch")}
    assert {name.removesuffix("__model.pt").endswith("__last") for name in checkpoints} == {True, False}
    assert names(out) - checkpoints == {
        "eval_scores.csv", "eval_generations.json", "train_losses.csv", "model", "run.json"
    }  # fmt: skip
    best = max(rows(out)[:-1], key=lambda row: (float(row["chrf"]), -float(row["nll"])))
    score = f"{float(best['chrf']):.3f}".replace(".", "_")
    assert f"epoch{best['epoch']}__step{best['step']}__score{score}__model.pt" in checkpoints
    assert places(out) == [*(("dev", epoch, 7) for epoch in range(20)), ("test", -1, -1)]
    assert list(rows(out)[0]) == ["split", "epoch", "step", "sacrebleu", "chrf", "nll", "ppl"]


def test_what_distillation_leaves(road):
    """Best and last with optimizer (--keep_checkpoint_after_test True)."""
    out = road.student
    folders = sorted(name for name in names(out) if name.startswith("epoch"))
    assert len(folders) == 2
    assert [name.endswith("__last") for name in folders] in ([True, False], [False, True])
    for folder in folders:
        assert {"model.safetensors", "config.json", "optimizer.pt", "run_state.json"} <= names(out / folder)
    tests = [place for place in places(out) if place[0] == "test"]
    assert tests == [*(("test", epoch, 17) for epoch in (4, 9, 14)), ("test", -1, -1)]
    losses = rows(out, "train_losses.csv")
    assert [int(row["phase"]) for row in losses] == [0] * 15 + [1]
    assert all(row["logits"] and not row["forward"] for row in losses[:-1])
    assert losses[-1]["forward"]
    assert not losses[-1]["logits"]


def test_run_json(road):
    described = read(road.student / "run.json")
    assert described["status"] == "finished"
    assert described["scores"] == pytest.approx(final(road.student))
    assert described["flags"]["teacher_state_dict_path"] == str(road.teacher_weights)
    assert described["flags"]["weight_decay"] == 1e-5
    assert described["data"]["experiment_config_key"]["losses"][0]["logits_weight"] == 1.0
    assert len(described["data"]["dataset_path"]) == 64


def test_the_portable_model(road, tmp_path):
    """It opens with the library alone, says what it is, and scores as it did."""
    auto_class = AutoModelForSeq2SeqLM if road.family == "t5" else AutoModelForCausalLM
    model = auto_class.from_pretrained(road.student / "model")
    assert AutoTokenizer.from_pretrained(road.student / "model").eos_token_id == model.config.eos_token_id
    (best,) = (path for path in road.student.glob("epoch*") if not path.name.endswith("__last"))
    saved, kept = weights_of(road.student / "model"), weights_of(best)
    assert all(torch.equal(value, kept[name]) for name, value in saved.items())
    card = (road.student / "model" / "README.md").read_text()
    assert "kd_main.py" in card
    assert f"{final(road.student)['chrf']:.3f}" in card

    flags = ft_flags(str(road.student / "model"), road.original, tmp_path / "again", **SHARED, do_train=False)
    scores = ft_main.main(flags)
    assert places(tmp_path / "again") == [("test", -1, -1)]
    assert scores == final(road.student)


def test_the_teacher_s_weights_in_three_forms_are_one_model(road, tmp_path):
    """README's `********.pt`, the portable folder, and its file of weights."""
    forms = {"pt": road.teacher_weights, "folder": road.teacher / "model"}
    forms["file"] = road.teacher / "model" / "model.safetensors"
    for name, path in forms.items():
        flags = {"checkpoint_path": path, "do_train": False, **SHARED, "metrics": "sacrebleu"}
        assert ft_main.main(ft_flags(road.base, road.original, tmp_path / name, **flags)) == final(road.teacher)


# ------------------------------------------------------------------------------------------------- teacher and student


@pytest.fixture
def no_weights(monkeypatch):
    """Any attempt to read weights is a defect."""

    def refuse(*_arguments, **_flags):
        raise AssertionError("weights were read")

    monkeypatch.setattr(setup, "load_model", refuse)
    monkeypatch.setattr(weights, "read_state_dict", refuse)


def test_a_teacher_of_another_kind_is_refused_before_weights_are_read(
    dropout_models, rotation_path, tmp_path, no_weights
):
    models = {"student": dropout_models["gpt2"]["student"], "teacher": dropout_models["t5"]["teacher"]}
    with pytest.raises(UserError, match="is decoder-only, --teacher_name .* encoder-decoder; both must be of one kind"):
        kd_main.main(kd_flags(models, rotation_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_teacher_with_another_tokenizer_is_refused_before_weights_are_read(
    dropout_models, rotation_path, tmp_path, no_weights
):
    models = dict(dropout_models["t5"])
    models["teacher"] = shutil.copytree(models["teacher"], tmp_path / "teacher")
    path = tmp_path / "teacher" / "tokenizer.json"
    tokenizer = read(path)
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[10], vocabulary[11] = vocabulary[11], vocabulary[10]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="must share a tokenizer; token 10"):
        kd_main.main(kd_flags(models, rotation_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_missing_mass_is_refused_of_a_live_teacher_before_weights_are_read(
    dropout_models, rotation_path, tmp_path, no_weights
):
    """None of its mass is missing; a line that would do nothing is a mistake of its writer."""
    experiments = tmp_path / "mine.yaml"
    experiments.write_text(
        "my_kd: {name: my, layer: no_layer, losses: [tail], scheduling: no_schedule}\n"
        "tail: {logits_weight: 1, missing_mass: bucket}\n"
        "no_layer: {student_dec_sa_layer: -1}\nno_schedule: {keep_last: True}\n"
    )
    flags = {"experiment_config_path": experiments, "experiment_config_key": "my_kd"}
    with pytest.raises(UserError, match="^experiment 'my_kd': 'tail' sets missing_mass, which applies only to stored"):
        kd_main.main(kd_flags(dropout_models["t5"], rotation_path, tmp_path / "out", **flags))
    assert not (tmp_path / "out").exists()


def test_an_experiment_without_teacher_does_not_even_look_for_one(dropout_models, rotation_path, tmp_path):
    models = {**dropout_models["t5"], "teacher": "/no/such/teacher"}
    flags = {"experiment_config_key": "finetuning", "epochs": 1}
    assert kd_main.main(kd_flags(models, rotation_path, tmp_path / "out", **flags))["nll"] > 0
    with pytest.raises(UserError, match="/no/such/teacher"):
        kd_main.main(kd_flags(models, rotation_path, tmp_path / "other"))


def test_a_teacher_in_bfloat16(dropout_models, rotation_path, tmp_path):
    """Its scores are near those of the float32 teacher, and not the same."""
    scores = {}
    for dtype in ("fp32", "bf16"):
        flags = kd_flags(dropout_models["t5"], rotation_path, tmp_path / dtype, epochs=1, teacher_dtype=dtype)
        scores[dtype] = kd_main.main(flags)["nll"]
    assert scores["bf16"] == pytest.approx(scores["fp32"], rel=1e-3)
    assert scores["bf16"] != scores["fp32"]


def test_a_student_that_is_the_teacher_has_nothing_to_learn(tiny_models, rotation_path, tmp_path):
    models = {"student": tiny_models["gpt2"]["teacher"], "teacher": tiny_models["gpt2"]["teacher"]}
    kd_main.main(kd_flags(models, rotation_path, tmp_path / "out", epochs=1, weight_decay=0, learning_rate=1e-12))
    assert all(float(row["loss"]) == pytest.approx(0, abs=1e-6) for row in rows(tmp_path / "out", "train_losses.csv"))


def test_pruned_student(tiny_models, rotation_path, tmp_path):
    """A name with a suffix is trained, and leaves a folder that needs none."""
    models = {"student": f"{tiny_models['t5']['teacher']}_prune0_1:0", "teacher": tiny_models["t5"]["teacher"]}
    scores = kd_main.main(kd_flags(models, rotation_path, tmp_path / "out", epochs=1))
    config = read(tmp_path / "out" / "model" / "config.json")
    assert (config["num_layers"], config["num_decoder_layers"]) == (2, 1)
    again = ft_flags(str(tmp_path / "out" / "model"), rotation_path, tmp_path / "again", do_train=False,
                     task_prompt="summarize:")  # fmt: skip
    assert ft_main.main(again) == scores


# ---------------------------------------------------------------------------------------------------------- likelihood


def test_the_likelihood_of_dev_is_that_of_dev_ppl(dropout_models, rotation_path, tmp_path):
    data = read(Path(rotation_path))
    data["test"] = data["dev_ppl"]
    (tmp_path / "d.json").write_text(json.dumps(data))
    flags = {"epochs": 1, "metric_for_best_model": "nll", "greater_is_better": False}
    ft_main.main(ft_flags(dropout_models["t5"]["student"], tmp_path / "d.json", tmp_path / "out", **flags))
    best = min(float(row["nll"]) for row in rows(tmp_path / "out") if row["split"] == "dev")
    assert final(tmp_path / "out")["nll"] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_bfloat16(fresh_accelerator, dropout_models, rotation_path, tmp_path, monkeypatch, family):
    """Forward passes in bfloat16, those of an evaluation too; weights in float32."""
    in_bf16, write = [], evaluate.write_tokens

    def noted(*given):
        in_bf16.append(torch.is_autocast_enabled("cpu"))
        return write(*given)

    monkeypatch.setattr(evaluate, "write_tokens", noted)
    flags = {"mixed_precision": "bf16", "epochs": 2}
    scores = kd_main.main(kd_flags(dropout_models[family], rotation_path, tmp_path / "out", **flags))
    assert scores["nll"] > 0
    assert in_bf16 and all(in_bf16)
    assert {value.dtype for value in weights_of(tmp_path / "out" / "model").values()} == {torch.float32}
    gen_main.main(gen_flags(str(tmp_path / "out" / "model"), rotation_path, tmp_path / "gen", mixed_precision="bf16"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_float16_on_a_cpu_is_float32_and_says_so(fresh_accelerator, dropout_models, rotation_path, tmp_path, capsys):
    model, scores = dropout_models["t5"]["student"], {}
    for precision in ("fp16", "no"):
        AcceleratorState._reset_state(reset_partial_state=True)
        flags = {"mixed_precision": precision, "epochs": 1}
        scores[precision] = ft_main.main(ft_flags(model, rotation_path, tmp_path / precision, **flags))
        assert ("--mixed_precision fp16: not on a cpu" in capsys.readouterr().out) is (precision == "fp16")
    assert scores["fp16"] == scores["no"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_float16(fresh_accelerator, dropout_models, rotation_path, tmp_path, monkeypatch, family):
    """The loss falls under the real scaler, which finds its scale in a few updates and keeps it."""
    scales, update = [], torch.amp.GradScaler.update

    def noted(scaler, *given):
        update(scaler, *given)
        scales.append(scaler.get_scale())

    monkeypatch.setattr(torch.amp.GradScaler, "update", noted)
    flags = {"mixed_precision": "fp16", "epochs": 12, "max_gpu_batch_size": 4}
    kd_main.main(kd_flags(dropout_models[family], rotation_path, tmp_path / "out", **flags))
    losses = [float(row["loss"]) for row in rows(tmp_path / "out", "train_losses.csv")]
    assert losses[-1] < 0.9 * losses[0]
    assert len(scales) > 20
    assert scales[-1] == scales[len(scales) // 4] >= 2**10
    assert {value.dtype for value in weights_of(tmp_path / "out" / "model").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"mixed_precision": "bf16"}, "--mixed_precision bf16"),
        ({"teacher_dtype": "bf16"}, "--teacher_dtype bf16"),
        ({"mixed_precision": "bf16", "teacher_dtype": "bf16"}, "--mixed_precision bf16 --teacher_dtype bf16"),
        ({}, None),
    ],
)
@pytest.mark.parametrize("instructions", [True, False])
def test_emulated_bfloat16_is_told(fresh_accelerator, monkeypatch, capsys, flags, named, instructions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": instructions})
    command = {"experiment_config_key": "logits_kd", "dataset_path": "d.json", "output_dir": "out", **flags}
    device = devices.make_accelerator(parse(DistillArguments, argv(command))).device.type
    told = f"warning: {named}: this {device} has no bfloat16 instructions; float32 is several times as fast\n"
    assert capsys.readouterr().out == (told if named and not instructions else "")


# ------------------------------------------------------------------------------------------------------ degenerate data


@pytest.mark.parametrize(
    ("family", "text", "target"),
    [
        ("t5", "", ""),
        ("t5", "漢字", "A dog."),
        ("gpt2", "", ""),
        *slow(("t5", "", "A dog."), ("gpt2", "A cat.", "A dog."), ("gpt2", "A cat.", ""), ("gpt2", " ", "\n")),
    ],
)
def test_one_row_on_the_whole_road(dropout_models, tmp_path, family, text, target):
    """One row in each split, empty or unknown; unlabeled without target."""
    pair = {"text": [text], "target": [target]}
    data = {"train": pair, "dev": pair, "test": pair, "ft": pair, "unlabeled": {"text": ["A bird."]}}
    (tmp_path / "d.json").write_text(json.dumps(data))
    models = dropout_models[family]
    flags = {"epochs": 1, "metrics": "sacrebleu rouge gleu wer chrf"}
    ft_main.main(ft_flags(models["teacher"], tmp_path / "d.json", tmp_path / "ft", **flags))
    gen = {"num_return_sequences": 2, "generation_type": "sampling", "add_original_data": True}
    path = gen_main.main(gen_flags(str(tmp_path / "ft" / "model"), tmp_path / "d.json", tmp_path / "gen", **gen))
    assert {split: len(columns["generated"]) for split, columns in read(path).items()} == dict.fromkeys(
        ("train", "dev", "test", "unlabeled"), 2
    )
    merge = {"original_dataset_path": tmp_path / "d.json", "generation_dataset_path": path, "output_dir": tmp_path}
    merged = prepare_datasets_main.main(argv({**merge, "file_name": "merged.json"}))
    models = {"teacher": str(tmp_path / "ft" / "model"), "student": models["student"]}
    scores = kd_main.main(kd_flags(models, merged, tmp_path / "kd", ft_steps_at_end=1, **flags))
    assert all(value == value for value in scores.values())
    assert len(read(tmp_path / "kd" / "eval_generations.json")["test__epoch-1__step-1"]["predictions"]) == 1


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_model_that_writes_nothing_is_scored(dropout_models, tmp_path, family):
    """It learns that every target is empty: empty predictions are scored, not dropped."""
    data = {split: {"text": ["A cat.", "A dog."], "target": ["", ""]} for split in ("train", "dev")}
    data["test"] = {"text": ["A cat.", "A dog."], "target": ["A cat.", "A dog."]}
    (tmp_path / "d.json").write_text(json.dumps(data))
    flags = {"epochs": 8, "learning_rate": 0.1, "metrics": "rouge wer chrf gleu", "metric_for_best_model": "nll"}
    scores = ft_main.main(
        ft_flags(dropout_models[family]["student"], tmp_path / "d.json", tmp_path / "out", greater_is_better=False,
                 **flags)
    )  # fmt: skip
    written = read(tmp_path / "out" / "eval_generations.json")["test__epoch-1__step-1"]
    assert written["predictions"] == ["", ""]
    assert {name: scores[name] for name in ("wer", "rouge1_f", "chrf", "gleu_1")} == {
        "wer": 100.0, "rouge1_f": 0.0, "chrf": 0.0, "gleu_1": 0.0
    }  # fmt: skip


def test_debug_takes_128_rows(dropout_models, tmp_path):
    texts = [f"A cat {'sees ' * (i % 3)}." for i in range(140)]
    data = {split: {"text": texts, "target": texts} for split in ("train", "test")}
    (tmp_path / "d.json").write_text(json.dumps(data))
    flags = {"debug": True, "epochs": 1, "batch_size": 64, "max_gpu_batch_size": 64}
    ft_main.main(ft_flags(dropout_models["gpt2"]["student"], tmp_path / "d.json", tmp_path / "out", **flags))
    assert rows(tmp_path / "out", "train_losses.csv")[-1]["step"] == "1"
    assert len(read(tmp_path / "out" / "eval_generations.json")["test__epoch-1__step-1"]["predictions"]) == 128


# ------------------------------------------------------------------------------------------------------------ LayerDrop


@pytest.mark.parametrize("loss", [{"attention_relation_weight": 1.0}, {"hidden_weight": 1.0, "dropout": True}])
def test_layers_that_are_compared_are_never_dropped(tiny_models, rotation_path, tmp_path, capsys, loss):
    """Of models that would skip nine of ten layers; their configs keep the rate."""
    models = {}
    for role, folder in tiny_models["bart"].items():
        models[role] = str(tmp_path / role)
        shutil.copytree(folder, models[role])
        config = read(Path(models[role]) / "config.json")
        config |= {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9}
        (Path(models[role]) / "config.json").write_text(json.dumps(config))
    entries = {
        "test": {"name": "test", "layer": "last", "scheduling": "never", "losses": ["loss"]},
        "last": {"student_dec_sa_layer": -1},
        "never": {"keep_last": True},
        "loss": {"kl_loss": True, **loss},
    }
    (tmp_path / "e.yaml").write_text(json.dumps(entries))
    flags = {"experiment_config_path": tmp_path / "e.yaml", "experiment_config_key": "test", "epochs": 1}
    kd_main.main(kd_flags(models, rotation_path, tmp_path / "out", **flags))
    said = capsys.readouterr().out
    assert all(f"--{role}_name: LayerDrop (0.9) is off" in said for role in ("student", "teacher"))
    [*_, losses] = rows(tmp_path / "out", "train_losses.csv")
    terms = [name for name in losses if name.startswith(("enc", "dec", "hidden"))]
    assert len(terms) == (2 if "hidden_weight" in loss else 9)
    assert all(float(losses[name]) > 0 for name in terms)
    assert read(tmp_path / "out" / "model" / "config.json")["encoder_layerdrop"] == 0.9


# ------------------------------------------------------------------------------------------------------ where texts end


@pytest.mark.parametrize("family", ["gpt2", *slow("t5")])
def test_texts_end_with_the_tokenizer_s_eos_whatever_the_config_names(tiny_models, tmp_path, family):
    """Labels end with it. A model that writes it at once writes empty texts, also from its exported folder."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_models[family]["student"], folder)
    tokenizer = loading.load_tokenizer(str(folder))
    for file in ("config.json", "generation_config.json"):
        content = read(folder / file) | {"eos_token_id": 7}
        (folder / file).write_text(json.dumps(content))
    pairs = {"text": [f"a cat {i}" for i in range(8)], "target": ["x"] * 8}
    (tmp_path / "d.json").write_text(json.dumps({"train": pairs, "test": pairs}))
    flags = {"epochs": 40, "save_checkpoint_every_n_steps": 40, "metric_for_best_model": "nll"}
    ft_main.main(ft_flags(str(folder), tmp_path / "d.json", tmp_path / "out", **flags))
    made = read(tmp_path / "out" / "model" / "generation_config.json")
    assert made["eos_token_id"] == [tokenizer.eos_token_id, 7]
    kind = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    model = kind.from_pretrained(tmp_path / "out" / "model")
    generation_config.fit_to_tokenizer(model, tokenizer)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 7]
    last = read(tmp_path / "out" / "eval_generations.json")["test__epoch-1__step-1"]
    assert set(last["predictions"]) == {"x"}


# ------------------------------------------------------------------------------------------- the prompt of the teacher


def test_a_teacher_s_folder_knows_its_prompt(dropout_models, rotation_path, tmp_path, capsys):
    """kd takes it where no flag is given; another one is warned of, in kd and in gen. Others have the published one."""
    models = dropout_models["t5"]
    ft_main.main(ft_flags(models["teacher"], rotation_path, tmp_path / "ft", task_prompt="cat:", epochs=1))
    teacher = str(tmp_path / "ft" / "model")
    prompts = {}
    for name, folder, prompt in (
        ("own", teacher, None),
        ("other", teacher, "dog:"),
        ("unknown", models["teacher"], None),
    ):
        capsys.readouterr()
        given = {"student": models["student"], "teacher": folder}
        kd_main.main(kd_flags(given, rotation_path, tmp_path / name, epochs=1, task_prompt=prompt))
        prompts[name] = read(tmp_path / name / "run.json")["flags"]["task_prompt"]
        said = capsys.readouterr().out
        assert (f"--task_prompt 'cat:': as --teacher_name {teacher} was trained" in said) is (name == "own")
        warned = f"warning: --task_prompt 'dog:': --teacher_name {teacher} was trained with 'cat:'"
        assert (warned in said) is (name == "other")
        assert read(tmp_path / name / "model" / "task_prompt.json") == {"task_prompt": prompts[name]}
    assert prompts == {"own": "cat:", "other": "dog:", "unknown": "summarize: "}
    gen_main.main(gen_flags(teacher, rotation_path, tmp_path / "gen", task_prompt="cat: "))
    assert "was trained with" not in capsys.readouterr().out
    gen_main.main(gen_flags(teacher, rotation_path, tmp_path / "gen2"))
    assert f"warning: --task_prompt '': --model_name {teacher} was trained with 'cat:'" in capsys.readouterr().out


def test_a_finished_distillation_is_recognized_without_a_flag(dropout_models, rotation_path, tmp_path, capsys):
    flags = kd_flags(dropout_models["t5"], rotation_path, tmp_path / "out", epochs=1)
    assert kd_main.main(flags) == kd_main.main(flags)
