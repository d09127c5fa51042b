"""Warnings about problems that scores hide."""

import json
from collections.abc import Callable
from math import log, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import slow
from tiny_runs import TINY, argv, ft_flags, kd_flags, places, read, result, rows
from torch.amp import GradScaler

import ft_main
import kd_dataset_with_logits_main
import kd_main
from src.config.signals import Interrupted
from src.devices import accelerator as devices
from src.evaluation import evaluate
from src.evaluation.evaluate import Evaluator
from src.evaluation.health import (
    copying_wins,
    far_below_teacher,
    looping_texts,
    nll_at_chance,
    repeats_itself,
    skipped_updates,
    zero_scores,
)
from src.models.folders import write_model_folder
from src.models.loading import load_model, load_tokenizer
from src.training import setup
from src.training.update import Updater


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("", False),
        ("the the the", False),
        ("the the the the", True),
        ("a b a b a b a b", True),
        ("well a b a b a b a b", True),
        ("a b a b a b a", False),
        ("a b a b a b a b end", False),  # it got out of it
        ("a b c d e f g h " * 4, True),
        ("a b c d e f g h i " * 4, False),  # longer than a loop is
        ("ha ha ha", False),
    ],
)
def test_a_loop_at_the_end(text, repeats):
    assert repeats_itself(text) is repeats


def test_a_few_loops_are_no_reason():
    assert looping_texts([]) is None
    assert looping_texts(["no no no no"] * 5 + ["fine"] * 95) is None
    assert (
        looping_texts(["no no no no"] * 6 + ["fine"] * 94) == "6 of 100 predictions repeat the same words at their end"
    )


def test_the_likelihood_of_a_uniform_distribution():
    assert nll_at_chance(0.9 * log(1000), 1000) is None
    assert nll_at_chance(log(1000), 1000) == ("nll 6.91 is no better than chance (log of 1,000 tokens: 6.91)")


@pytest.mark.parametrize(
    ("predictions", "texts", "references", "said"),
    [
        # Two words of a copy are wrong, all of the model's.
        (
            ["x", "y"],
            ["the red cat sees it", "a dog is here now"],
            ["the red cat sees you", "a dog is there now"],
            True,
        ),
        (["the red cat sees you"], ["the red cat sees it"], ["the red cat sees you"], False),
        (["the red cat sees it"], ["the red cat sees it"], ["the red cat sees it"], False),  # it copies, rightly
        (["the red cat sees it"], ["the red cat sees it"], ["a dog"], False),  # neither is right
        (["a"] * 3, ["a b c d e", "a b c d e", "f g h i j"], ["a b c d e"] * 3, True),  # one reference of three inputs
        (["a b c d e"] * 3, ["a b c d e", "a b c d e", "f g h i j"], ["a b c d e"] * 3, False),
        (["", ""], ["", "the red cat sees it"], ["the red cat sees it", ""], False),
    ],
)
def test_copying(predictions, texts, references, said):
    line = copying_wins(predictions, texts, references)
    assert (line is not None) is said
    if line is not None:
        assert line.startswith("copying the input would score ")
        assert line.endswith("sacrebleu, the model 0.0")


@pytest.mark.parametrize(
    ("student", "teacher", "greater", "said"),
    [
        (20.0, 30.0, True, False),
        (20.0, 30.1, True, True),
        (40.0, 30.0, True, False),
        (40.1, 30.0, False, True),  # an error rate
        (40.0, 30.0, False, False),
        (20.0, 90.0, False, False),
        (nan, 90.0, True, False),
    ],
)
def test_how_far_below_its_teacher_a_student_may_be(student, teacher, greater, said):
    line = far_below_teacher(student, teacher, "chrf", higher_is_better=greater)
    assert (line is not None) is said
    if line is not None:
        assert line.startswith(f"chrf {student} after the first epoch, the teacher's on the same rows is {teacher}; ")
        assert all(hint in line for hint in ("tokenizer", "--task_prompt", "--learning_rate", "--max_labels_length"))


@pytest.mark.parametrize(
    ("scores", "predictions", "said"),
    [
        ({"rouge2_f": 0.0, "chrf": 3.0, "wer": 0.0, "nll": 0.0}, ["кот", ""], "rouge2_f: 0 for all 1 predictions"),
        ({"rouge2_f": 0.0, "sacrebleu": 0.0}, ["a", "b"], "rouge2_f, sacrebleu: 0 for all 2 predictions"),
        ({"rouge2_f": 0.1}, ["a"], None),
        ({"rouge2_f": 0.0}, ["", " "], None),
    ],
)
def test_scores_that_see_nothing_are_told_of(scores, predictions, said):
    line = zero_scores(scores, predictions)
    assert (line is None) is (said is None)
    assert line is None or (line.startswith(said) and "--bleu_tokenize" in line)


@pytest.mark.parametrize(
    ("skipped", "updates", "so_far", "said"),
    [
        (0, 100, 100, False),
        (50, 100, 100, False),
        (51, 100, 100, True),
        (16, 20, 20, False),
        (0, 0, 50, False),
        (1, 1, 50, False),
        (2, 2, 50, True),
    ],
)
def test_how_many_updates_may_be_skipped(skipped, updates, so_far, said):
    assert (skipped_updates(skipped, updates, so_far) is not None) is said


# -------------------------------------------------------------------------------------------------------- in real runs


def warnings(capsys: pytest.CaptureFixture) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]


def test_a_model_that_learnt_nothing_is_told_of(tiny_models, tiny_dataset_path, tmp_path, capsys):
    """A copy task: copying is perfect, and a random model is not."""
    flags = {"epochs": 1, "learning_rate": 1e-12, "max_labels_length": 12, "metric_for_best_model": "chrf"}
    ft_main.main(ft_flags(tiny_models["t5"]["student"], tiny_dataset_path, tmp_path / "out", **flags))
    said = warnings(capsys)
    assert len([line for line in said if "no better than chance" in line]) == 2
    assert said[0].startswith("warning: dev: nll ")
    assert any("test: copying the input would score 100.0 sacrebleu" in line for line in said)


@pytest.mark.parametrize("family", ["gpt2", *slow("t5")])
@pytest.mark.parametrize("padding", [0, 200])
def test_a_model_without_knowledge_whatever_its_kind(tiny_models, rotation_path, tmp_path, capsys, family, padding):
    """A uniform distribution, over tokens that pad the vocabulary too; said at the first evaluation, and at the end."""
    folder = tiny_models[family]["student"]
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    model.resize_token_embeddings(len(tokenizer) + padding, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    write_model_folder(tmp_path / "model", model, tokenizer, "A test's.\n")
    flags = {"epochs": 2, "learning_rate": 1e-12, "weight_decay": 0}
    ft_main.main(ft_flags(str(tmp_path / "model"), rotation_path, tmp_path / "out", **flags))
    lines = [line.partition("nll ")[0] for line in warnings(capsys) if "no better than chance" in line]
    assert lines == ["warning: dev: ", "warning: test: "]
    assert [split for split, _, _ in places(tmp_path / "out")].count("dev") == 6


@pytest.fixture
def writes(monkeypatch) -> Callable[[Callable[[Any, Any], list[str] | None]], list[tuple]]:
    """`writes(function)`: what models write is function(model, split), or what they really do where it is None.

    Gives the list of (is the teacher, training, dtype, rows, suppressed tokens) of what was written for.
    """
    plain = Evaluator.predict

    def install(function: Callable[[Any, Any], list[str] | None]) -> list[tuple]:
        seen: list[tuple] = []

        def predict(self, model, split):
            is_teacher = model.config.get_text_config().hidden_size == 32
            suppressed = model.generation_config.suppress_tokens
            seen.append((is_teacher, model.training, model.dtype, len(split), suppressed))
            texts = plain(self, model, split)
            own = function(model, split)
            assert own is None or len(own) == len(texts)
            return texts if own is None else own

        monkeypatch.setattr(Evaluator, "predict", predict)
        return seen

    return install


def test_texts_that_repeat_themselves_are_told_of_once(dropout_models, rotation_path, tmp_path, capsys, writes):
    """When it begins on dev, at whichever evaluation, and in the closing test; not again when the run is continued."""
    evaluations = iter(range(100))

    def predict(model, split):
        number = next(evaluations)
        if number == 3:
            raise Interrupted(15)
        return ["fine"] * len(split) if number == 0 else ["no no no no"] * len(split)

    writes(predict)
    flags = ft_flags(dropout_models["t5"]["student"], rotation_path, tmp_path / "out", epochs=3)
    with pytest.raises(Interrupted):
        ft_main.main(flags)
    assert [line for line in warnings(capsys) if "repeat" in line] == [
        "warning: dev: 4 of 4 predictions repeat the same words at their end"
    ]
    ft_main.main(flags)
    assert [line for line in warnings(capsys) if "repeat" in line] == [
        "warning: test: 4 of 4 predictions repeat the same words at their end"
    ]
    assert [split for split, _, _ in places(tmp_path / "out")].count("dev") == 8


def noisy(folder: Path) -> dict[str, Any]:
    """An experiment whose teacher has dropout and whose student writes labels: both draw random numbers."""
    loss = {"logits_weight": 1.0, "dropout": True, "generate_labels_weight": 0.5}
    entries = {
        "noisy": {"name": "noisy", "layer": "last", "scheduling": "one", "losses": ["loss"]},
        "last": {"student_dec_sa_layer": -1},
        "one": {"keep_last": True},
        "loss": loss,
    }
    (folder / "noisy.yaml").write_text(json.dumps(entries), encoding="utf-8")
    return {"experiment_config_path": folder / "noisy.yaml", "experiment_config_key": "noisy"}


def perfect(path: str) -> Callable[[Any, Any], list[str] | None]:
    """A teacher that writes dev's references, and students that write what they do."""
    targets = read(Path(path))["dev"]["target"]
    return lambda model, split: targets[: len(split)] if model.config.get_text_config().hidden_size == 32 else None


@pytest.mark.parametrize("family", [*slow("t5"), "gpt2"])
def test_a_student_far_below_its_teacher_is_told_of(
    dropout_models, rotation_path, tmp_path, capsys, monkeypatch, writes, family
):
    """Once, after the first epoch; of the same rows. TrainingState goes on as if nobody had looked."""
    monkeypatch.setattr(evaluate, "COMPARED_ROWS", 3)
    seen = writes(perfect(rotation_path))
    flags = {"epochs": 4, "stop_training_after_n_epochs": 2, "ft_steps_at_end": 1, **noisy(tmp_path)}
    kd_main.main(kd_flags(dropout_models[family], rotation_path, tmp_path / "out", **flags))
    (line,) = (line for line in warnings(capsys) if "teacher" in line)
    assert line.startswith("warning: dev: sacrebleu ")
    assert "the teacher's on the same rows is 100.0; " in line
    of_teacher_ = [each for each in seen if each[0]]
    assert of_teacher_ == [(True, False, torch.float32, 3, None)]
    assert [each[0] for each in seen[:4]] == [False, False, False, True]  # the third evaluation ends the epoch
    monkeypatch.setattr("src.training.engine.Trainer._below_teacher", lambda *_: None)
    kd_main.main(kd_flags(dropout_models[family], rotation_path, tmp_path / "plain", **flags))
    assert result(tmp_path / "out") == result(tmp_path / "plain")


def test_the_teacher_s_mode_is_the_same_afterwards(dropout_models, rotation_path, tmp_path, monkeypatch):
    modes = []
    plain = Evaluator.compare

    def compare(self, predictions, other, *rest):
        before = other.training
        scores = plain(self, predictions, other, *rest)
        modes.append((before, other.training))
        return scores

    monkeypatch.setattr(Evaluator, "compare", compare)
    kd_main.main(kd_flags(dropout_models["t5"], rotation_path, tmp_path / "out", epochs=1, **noisy(tmp_path)))
    assert modes == [(True, True)]


def test_stopped_while_the_teacher_writes(dropout_models, rotation_path, tmp_path, writes):
    """Nothing of the evaluation counts: the run evaluates again, and ends as one that was not stopped."""
    flags = kd_flags(dropout_models["gpt2"], rotation_path, tmp_path / "out", **noisy(tmp_path))
    kd_main.main([*flags, "--output_dir", str(tmp_path / "whole")])
    stops = iter([True])

    def predict(model, split):
        if model.config.get_text_config().hidden_size == 32 and next(stops, False):
            raise Interrupted(15)

    seen = writes(predict)
    with pytest.raises(Interrupted):
        kd_main.main(flags)
    assert places(tmp_path / "out") == [("dev", 0, 1), ("dev", 0, 3)]
    kd_main.main(flags)
    assert [each[0] for each in seen].count(True) == 2
    assert result(tmp_path / "out") == result(tmp_path / "whole")


@pytest.mark.parametrize(
    "flags",
    [
        {"metric_for_best_model": "ppl", "greater_is_better": False, "metrics": "chrf"},
        {"experiment_config_key": "finetuning"},
        *slow({"metric_for_best_model": "nll", "greater_is_better": False}),
    ],
    ids=["ppl", "no teacher", "nll"],
)
def test_without_a_score_or_a_teacher_nothing_is_compared(dropout_models, rotation_path, tmp_path, writes, flags):
    seen = writes(lambda *_: None)
    kd_main.main(kd_flags(dropout_models["t5"], rotation_path, tmp_path / "out", **flags))
    assert seen
    assert not any(each[0] for each in seen)


def test_a_stored_teacher_writes_nothing(dropout_models, tmp_path, writes):
    tokens, logits = [[[5], [6], [1]]], [[[0.0]] * 3]
    data = {"train": {"text": ["a"], "target": ["cat."], "tokens": tokens, "logits": logits}}
    tokenizer = load_tokenizer(dropout_models["t5"]["student"])
    n_labels = len(tokenizer("cat.")["input_ids"])
    data["train"] |= {"tokens": [[[5]] * n_labels], "logits": [[[0.0]] * n_labels]}
    data["dev"] = {"text": ["a"], "target": ["cat."]}
    (tmp_path / "d.json").write_text(json.dumps(data))
    flags = {**TINY, "student_name": dropout_models["t5"]["student"], "dataset_path": tmp_path / "d.json"}
    seen = writes(lambda *_: None)
    flags |= {"experiment_config_key": "logits_kd", "output_dir": tmp_path / "out"}
    kd_dataset_with_logits_main.main(argv(flags))
    assert seen
    assert not any(each[0] for each in seen)


@pytest.mark.parametrize("family", ["t5", *slow("gpt2")])
@pytest.mark.parametrize("padding", [0, 200])
def test_a_teacher_in_bfloat16_with_a_padded_vocabulary(
    dropout_models, rotation_path, tmp_path, writes, family, padding
):
    """It writes in its own format, and no token that its tokenizer has not."""
    folders = dict(dropout_models[family])
    teacher, tokenizer = load_model(folders["teacher"]), load_tokenizer(folders["teacher"])
    n_tokens = len(tokenizer)
    teacher.resize_token_embeddings(n_tokens + padding, mean_resizing=False)
    folders["teacher"] = str(write_model_folder(tmp_path / "teacher", teacher, tokenizer, "A test's.\n"))
    seen = writes(lambda *_: None)
    flags = {"teacher_dtype": "bf16", "epochs": 1, "num_beams": 2}
    kd_main.main(kd_flags(folders, rotation_path, tmp_path / "out", **flags))
    suppressed = list(range(n_tokens, n_tokens + padding)) or None
    assert [each for each in seen if each[0]] == [(True, False, torch.bfloat16, 4, suppressed)]


# ----------------------------------------------------------------------------------------- the scaler of half precision


@pytest.fixture
def overflowing(monkeypatch) -> Callable[[Callable[[int], bool]], None]:
    """`overflowing(when)`: runs from here on have a scaler, as in fp16 on a GPU, and gradients that overflow at the
    updates of which when(number) is true."""
    plain, look = devices.make_accelerator, Updater._clip_gradient

    def install(when: Callable[[int], bool]) -> None:
        def make(config):
            accelerator = plain(config)
            accelerator.scaler = GradScaler("cpu", growth_interval=3)
            return accelerator

        def look_at(self, place, leave):
            if when(self.state.updates):
                next(iter(self.training.model.parameters())).grad.fill_(torch.inf)
            look(self, place, leave)

        monkeypatch.setattr(setup, "make_accelerator", make)
        monkeypatch.setattr(Updater, "_clip_gradient", look_at)

    return install


@pytest.mark.parametrize("clipped", [{}, {"clip_grad_norm": 0.1}], ids=["plain", "clipped"])
def test_skipped_updates_are_counted(dropout_models, rotation_path, tmp_path, capsys, overflowing, clipped):
    """They change nothing, the learning rate included; with clipping the gradient's norm is that of the others."""
    overflowing(lambda number: number in (0, 1, 3))
    flags = {"epochs": 2, "batch_size": 2, "save_state_every_n_minutes": 1e-6, **clipped}
    ft_main.main(ft_flags(dropout_models["t5"]["student"], rotation_path, tmp_path / "out", **flags))
    losses = rows(tmp_path / "out", "train_losses.csv")
    assert [row["skipped"] for row in losses] == ["1.0", "0.5", "", "", "", ""]  # 2, 2, 1 updates, twice
    assert [float(row["learning_rate"]) for row in losses] == pytest.approx(
        [0.01 * (10 - made) / 10 for made in (0, 1, 2, 4, 6, 7)]
    )
    norms = [row["gradient_norm"] for row in losses]
    assert norms[0] == ""
    assert all(float(norm) > 0 for norm in norms[1:]) if clipped else not any(norms)
    assert not warnings_of_fp16(capsys)


def warnings_of_fp16(capsys) -> list[str]:
    return [line for line in warnings(capsys) if "updates were skipped" in line]


def test_updates_that_are_all_skipped_are_told_of_once(dropout_models, tmp_path, capsys, overflowing):
    overflowing(lambda number: number % 3 > 0)
    texts = [f"The cat sees a dog{i}." for i in range(40)]
    (tmp_path / "d.json").write_text(json.dumps({"train": {"text": texts, "target": texts}}))
    flags = {"epochs": 3, "batch_size": 2, "save_checkpoint_every_n_steps": 1}
    ft_main.main(ft_flags(dropout_models["t5"]["student"], tmp_path / "d.json", tmp_path / "out", **flags))
    (line,) = warnings_of_fp16(capsys)
    assert line.startswith("warning: no: 13 of the last 20 updates were skipped, ")
    assert "--mixed_precision bf16" in line


def test_a_run_with_a_scaler_is_continued_exactly(dropout_models, rotation_path, tmp_path, overflowing, monkeypatch):
    """Its scale, and its count of updates since the scale last grew, are a part of the state."""
    overflowing(lambda number: number in (0, 4, 5))
    flags = ft_flags(dropout_models["t5"]["student"], rotation_path, tmp_path / "out", epochs=3, batch_size=2)
    ft_main.main([*flags, "--output_dir", str(tmp_path / "whole")])
    for number in (3, 9):
        asked = iter(range(1000))

        def stops(self, asked=asked, number=number):
            if next(asked) == number:
                raise Interrupted(15)

        with monkeypatch.context() as patch:
            patch.setattr("src.config.signals.StopRequests.check", stops)
            with pytest.raises(Interrupted):
                ft_main.main(flags)
    ft_main.main(flags)
    assert result(tmp_path / "out") == result(tmp_path / "whole")
