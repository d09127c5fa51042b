"""Tokens on disk: made once, shared by runs and processes, the same as tokens in memory."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from src.models.loading import load_tokenizer
from src.storage import atomic
from src.storage.locks import waiting_lock
from src.tokens import token_cache
from src.tokens.preprocessing import Preprocessor
from src.tokens.token_cache import TokenCache
from src.tokens.tokenized import TokenizedDatasets


@pytest.fixture
def preprocessor(tiny_models) -> Preprocessor:
    return Preprocessor(load_tokenizer(tiny_models["t5"]["student"]), True, 16, 8, "copy:")


@pytest.fixture
def datasets() -> dict[str, dict[str, list[str]]]:
    texts = [f"The cat sees a {word}." for word in ("dog", "bird", "dog", "cat", "house")]
    return {
        "train_0": {"text": texts, "target": texts[::-1]},
        "train_1": {
            "text": texts[:3],
            "target": [*texts[:2], "A bird." * 9],
            "finish_reason": ["stop", "length", None],
        },
        "dev": {"text": ["A dog."], "target": ["A cat."]},
    }


@pytest.fixture
def cached(monkeypatch, tmp_path) -> TokenCache:
    monkeypatch.setattr(token_cache, "LEAST", 2)
    return TokenCache(tmp_path / ".tokens")


def everything(data: TokenizedDatasets) -> dict:
    """The tokens of all rows, and what was cut off them."""
    splits = {name: data.split(name) for name in data.datasets}
    return {
        name: (
            [split.inputs[row].tolist() for row in split.input_of_row],
            [split.labels[row].tolist() for row in range(len(split))],
            split.lengths.tolist(),
            split.cuts,
        )
        for name, split in splits.items()
    }


def test_the_same_tokens_as_in_memory(preprocessor, datasets, cached):
    expected = everything(TokenizedDatasets(datasets, preprocessor))
    assert everything(TokenizedDatasets(datasets, preprocessor, cached)) == expected  # made
    files = sorted(cached.folder.rglob("*"))
    assert everything(TokenizedDatasets(datasets, preprocessor, cached)) == expected  # read
    assert sorted(cached.folder.rglob("*")) == files
    assert isinstance(TokenizedDatasets(datasets, preprocessor, cached).split("train_0").labels.flat, np.memmap)


def test_other_settings_or_texts_have_other_tokens(preprocessor, datasets, cached):
    texts = datasets["train_0"]["text"]
    others = [replace(preprocessor, **{name: value}) for name, value in
              {"max_input_length": 12, "task_prompt": "say:", "truncation_side": "left"}.items()]  # fmt: skip
    made = [cached.encode(each, texts, labels=False) for each in (preprocessor, *others)]
    made += [cached.encode(preprocessor, texts[1:], labels=False), cached.encode(preprocessor, texts, labels=True)]
    assert len([entry for entry in cached.folder.iterdir() if entry.is_dir()]) == len(made) == 6
    plain = TokenCache().encode(others[1], texts, labels=False)
    assert np.array_equal(made[2].tokens.flat, plain.tokens.flat)


def test_few_texts_and_read_only_folders_stay_in_memory(preprocessor, datasets, tmp_path, monkeypatch):
    TokenCache(tmp_path / ".tokens").encode(preprocessor, datasets["train_0"]["text"], labels=False)
    assert not (tmp_path / ".tokens").exists()
    monkeypatch.setattr("os.access", lambda *_: False)
    (tmp_path / "d.json").touch()
    assert TokenCache.beside(str(tmp_path / "d.json")).folder is None
    assert TokenCache.beside("hf:xsum").folder is None


def test_two_at_a_time_make_them_once(preprocessor, cached, monkeypatch):
    """One tokenizes; the other waits and reads what it wrote."""
    texts, made, encode = [f"The cat sees {i}." for i in range(5_000)], [], Preprocessor.encode_in_chunks

    def noted(self, texts, *, labels):
        made.append(len(texts))
        yield from encode(self, texts, labels=labels)

    monkeypatch.setattr(Preprocessor, "encode_in_chunks", noted)
    with ThreadPoolExecutor(2) as threads:
        asked = [
            threads.submit(cached.encode, replace(preprocessor, truncation_side="left"), texts, labels=False)
            for _ in range(2)
        ]
        first, second = (each.result() for each in asked)
    assert made == [5_000]
    assert np.array_equal(first.tokens.flat, second.tokens.flat)
    assert not list(cached.folder.glob(".*"))


def test_a_second_process_does_not_remove_the_folder_that_the_first_has_just_made(preprocessor, cached, monkeypatch):
    """Between its creation and its lock, the folder looks like that of a killed writer."""
    texts, opened = ["a", "b", "c"], atomic._opened

    with ThreadPoolExecutor(1) as threads:
        others = []

        def slowly(folder):
            if not others:
                others.append(threads.submit(cached.encode, preprocessor, texts, labels=False))
                time.sleep(0.3)
            return opened(folder)

        monkeypatch.setattr(atomic, "_opened", slowly)
        ours = cached.encode(preprocessor, texts, labels=False)
        (theirs,) = (each.result() for each in others)
    assert np.array_equal(ours.tokens.flat, theirs.tokens.flat)


def test_a_process_that_waited_for_the_lock_keeps_later_ones_out(tmp_path):
    """A holder deletes the lock file at its end. The next holder must lock the file that later processes will open."""
    path = tmp_path / "lock"

    def waits() -> bool:
        with waiting_lock(path):
            return path.exists()

    with ThreadPoolExecutor(1) as threads:
        with waiting_lock(path):
            waiting = threads.submit(waits)
            time.sleep(0.2)
        assert waiting.result()
    assert not path.exists()


def test_what_a_killed_writer_left_is_removed(preprocessor, cached):
    texts = ["a", "b", "c"]
    cached.encode(preprocessor, texts, labels=False)
    (folder,) = cached.folder.iterdir()
    left = folder.with_name(f".{folder.name}.0123abcd.tmp")
    folder.rename(left)
    cached.encode(preprocessor, texts, labels=False)
    assert list(cached.folder.iterdir()) == [folder]
