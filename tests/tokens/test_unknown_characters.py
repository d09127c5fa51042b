"""Texts with characters unknown to the tokenizer give a warning or an error before anything runs."""

import json
from pathlib import Path

import pytest
from conftest import tiny_sentences
from tiny_runs import ft_flags, gen_flags
from tiny_students import model_folder, unigram, wordpiece

import ft_main
import gen_main
from src.config.errors import UserError
from src.tokens.preprocessing import Preprocessor
from src.tokens.unknown_characters import check_characters_known

CHINESE = ["猫喜欢房子", "狗看见鸟", "旧房子", "新红色"] * 10
PLAIN = list(dict.fromkeys(tiny_sentences(400, seed=1)))[:40]


def said(capsys, tokenizer, targets: list[str], *, texts: list[str] = PLAIN, kind: bool = True) -> list[str]:
    made = Preprocessor(tokenizer, kind, 64, 64)
    check_characters_known(made, {"train": {"text": texts, "target": targets}}, "data.json")
    return capsys.readouterr().out.splitlines()


def test_known_texts_are_passed_over(capsys):
    assert said(capsys, unigram([]), PLAIN) == []
    few = [*PLAIN[:-1], "{"] * 3
    assert said(capsys, unigram([]), few, texts=PLAIN * 3)  # 3 of 120
    assert said(capsys, unigram([]), [*PLAIN * 5, "{"], texts=[*PLAIN * 5, "a"]) == []  # 1 of 201


def test_unknown_characters_are_warned_of_with_an_example(capsys):
    half = [f"{{ {text} }}" if row % 2 else text for row, text in enumerate(PLAIN)]
    [line] = said(capsys, unigram([]), half)
    assert line == (
        f"warning: train: 20 of 40 targets have characters that the tokenizer does not know, as {half[1]!r}"
    )
    [line] = said(capsys, unigram([]), PLAIN, texts=half)
    assert line.startswith("warning: train: 20 of 40 inputs have characters that the tokenizer does not know")


@pytest.mark.parametrize("targets", [CHINESE, [f"{{ {text} }}" for text in PLAIN]], ids=["chinese", "braces"])
def test_targets_that_nothing_can_be_learned_of_are_refused(targets, capsys):
    with pytest.raises(
        UserError, match="data.json: split 'train': nearly all targets have characters that the model's"
    ):
        said(capsys, unigram([]), targets)


def test_changed_targets_only_warn(capsys):
    [line] = said(capsys, wordpiece([]), [f"A {text}" for text in PLAIN], kind=True)
    assert "changes 40 of 40 targets: " in line and "comes back as 'a " in line
    wide = [f"ａ {text}" for text in PLAIN]  # NFKC makes it narrow
    [line] = said(capsys, unigram([]), wide)
    assert f"the tokenizer changes 40 of 40 targets: {wide[0]!r} comes back as 'a" in line


def test_bytes_and_decoder_only_models_write_everything(tiny_tokenizers, capsys):
    from tiny_students import byte_level

    assert said(capsys, byte_level([]), [*CHINESE], kind=False) == []
    assert said(capsys, unigram([], byte_fallback=True), CHINESE) == []


def test_a_run_is_refused_before_weights_are_read(tmp_path, monkeypatch, capsys):
    folder = model_folder(tmp_path / "model", unigram([]), "t5")
    data = write(tmp_path / "data.json", CHINESE)
    monkeypatch.setattr("src.training.setup.load_model", None)
    for flags in ({}, {"dry_run": True}):
        with pytest.raises(UserError, match="nearly all targets"):
            ft_main.main(ft_flags(folder, data, tmp_path / "out", **flags))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    gen_main.main(gen_flags(folder, data, tmp_path / "gen"))  # reads inputs alone
    assert "targets" not in capsys.readouterr().out.replace("pseudo-targets", "")


def write(path: Path, targets: list[str]) -> Path:
    columns = {"text": PLAIN, "target": targets}
    path.write_text(json.dumps(dict.fromkeys(("train", "dev", "test"), columns)))
    return path
