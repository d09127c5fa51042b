"""The corpora by name: one function each, from the raw files (or the hub) to `{split: {"text", "target"}}`.

A new corpus is one `@corpus("name")` function and its name in `CORPORA` of src/config/constants.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.config.constants import DEV, TARGET, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.data.demo_corpus import demo_rows
from src.data.files import read_datasets, rename_splits
from src.data.formats import load_hub
from src.data.schema import Columns, Datasets, check_shape, check_strings, check_trainable
from src.data.splits import Sizes, draw_shares, keep_rows, n_rows, n_words, sample_rows, take_rows

logger = logging.getLogger(__name__)

SHAKESPEARE_FILE = "datasets/raw/shakespeare/shakespeare_splits.json"
SHAKESPEARE_LAYOUT = '{"train": {"original": [...], "modern": [...]}, "dev", "test", "unlabeled": {"original": [...]}}'
CORPUS_SEED = 42  # of the draws that belong to a corpus' definition, whatever --seed says
BISECT_TRAIN_ROWS = 100_000
BISECT_CHALLENGES = ("challenge_bisect", "challenge_hsplit")
DEMO_SIZES = Sizes(train=2_000, dev=200, test=500, unlabeled=8_000)


@dataclass(frozen=True)
class Request:
    """What is asked of a corpus: where its raw files lie (None: its usual place), and, if it makes its rows, how many
    of each split (None: as it likes) and from which seed.
    """

    path: str | None = None
    sizes: Sizes = Sizes()
    seed: int = 42


Corpus = Callable[[Request], Datasets]
CORPUS_FUNCTIONS: dict[str, Corpus] = {}


def corpus(name: str) -> Callable[[Corpus], Corpus]:
    """Make a function the one that loads `--dataset_name name`."""

    def register(function: Corpus) -> Corpus:
        CORPUS_FUNCTIONS[name] = function
        return function

    return register


def load_corpus(name: str, request: Request) -> Datasets:
    """Load a corpus and check it. Raises UserError that says what to download where if its data cannot be had."""
    datasets = CORPUS_FUNCTIONS[name](request)
    check_trainable(datasets, request.path or f"corpus '{name}'")
    return datasets


@corpus("xsum")
def xsum(request: Request) -> Datasets:
    """XSum: a BBC article to its one-sentence summary (Narayan et al., 2018)."""
    raw = _raw(request, "EdinburghNLP/xsum", ("document", "summary"))
    return {split: {TEXT: rows["document"], TARGET: rows["summary"]} for split, rows in raw.items()}


@corpus("squad")
def squad(request: Request) -> Datasets:
    """SQuAD turned round: `{context}; answer: {first answer}` to the question (Rajpurkar et al., 2016).

    1,570 rows of the validation split are `dev`, the rest is `test`; a smaller file is shared in proportion.
    """
    raw = _raw(request, "rajpurkar/squad", ("context", "question", "answers"), splits=("train", "validation"))
    source = request.path or "squad"
    datasets = {split: _question_rows(rows, f"{source}: split '{split}'") for split, rows in raw.items()}
    if DEV not in datasets:
        return datasets
    return datasets | draw_shares(datasets[DEV], {DEV: 1_570, TEST: 9_000}, seed=CORPUS_SEED, source=source)


def _question_rows(rows: Columns, place: str) -> Columns:
    texts = []
    for i, (context, answers) in enumerate(zip(rows["context"], rows["answers"], strict=True)):
        found = answers.get(TEXT) if isinstance(answers, dict) else None
        if not isinstance(found, list) or not found or not isinstance(found[0], str):
            raise UserError(f"{place}, row {i}: 'answers' must be {{\"text\": [at least one answer]}}, not {answers}")
        texts.append(f"{context}; answer: {found[0]}")
    return {TEXT: texts, TARGET: rows["question"]}


@corpus("art")
def art(request: Request) -> Datasets:
    """ART: `{observation_1}; outcome: {observation_2}` to what happened in between (Bhagavatula et al., 2020)."""
    raw = _raw(request, "GEM/ART", ("observation_1", "observation_2", "target"))
    return {
        split: {
            TEXT: [
                f"{before}; outcome: {after}"
                for before, after in zip(rows["observation_1"], rows["observation_2"], strict=True)
            ],
            TARGET: rows["target"],
        }
        for split, rows in raw.items()
    }


@corpus("bisect")
def bisect(request: Request) -> Datasets:
    """BiSECT: a long sentence to the same in two (Kim et al., 2021); not in the paper, the filters are its code's.

    Kept: 20 to 50 words on both sides, 0.45 to 0.85 of the source's distinct words in the target; 100,000 rows of
    train; the challenge sets are part of test.
    """
    splits = ("train", "validation", "test", *BISECT_CHALLENGES)
    raw = _raw(request, "GEM/BiSECT", ("source", "target"), splits=splits)
    pairs = {split: {TEXT: rows["source"], TARGET: rows["target"]} for split, rows in raw.items()}
    kept = {split: keep_rows(rows, _is_split_and_rephrased) for split, rows in pairs.items()}
    if n_rows(kept[TRAIN]) > BISECT_TRAIN_ROWS:
        kept[TRAIN], _ = sample_rows(kept[TRAIN], BISECT_TRAIN_ROWS, seed=CORPUS_SEED)
    parts = [kept.pop(split) for split in (TEST, *BISECT_CHALLENGES) if split in kept]
    if parts:
        kept[TEST] = {name: [value for rows in parts for value in rows[name]] for name in (TEXT, TARGET)}
    return kept


def _is_split_and_rephrased(text: str, target: str) -> bool:
    words, target_words = text.split(), target.split()
    if not (20 <= len(words) <= 50 and 20 <= len(target_words) <= 50):
        return False
    distinct = set(words)
    return 0.45 <= len(distinct.intersection(target_words)) / len(distinct) <= 0.85


@corpus("shakespeare")
def shakespeare(request: Request) -> Datasets:
    """Shakespeare's English to modern English (Xu et al., 2012).

    The labeled splits of the raw file are pooled; of the pairs with 8 to 50 words on both sides 7,000 are drawn for
    `train` and 750 for `dev`, the rest is `test` (a smaller file is shared in proportion). The raw `unlabeled` lines
    stay a pool of their own, whatever their length, and have no target.
    """
    source = request.path or SHAKESPEARE_FILE
    if not Path(source).exists():
        raise UserError(f"{source}: no such file; put one there or give --dataset_path, holding {SHAKESPEARE_LAYOUT}")
    raw = read_datasets(source)
    labeled = [split for split in (TRAIN, DEV, TEST) if split in raw]
    if not labeled:
        raise UserError(f"{source}: no train, dev or test, only {list(raw)}; expected {SHAKESPEARE_LAYOUT}")
    _check_columns({split: raw[split] for split in labeled}, ("original", "modern"), source)
    pool = {
        TEXT: [line for split in labeled for line in raw[split]["original"]],
        TARGET: [line for split in labeled for line in raw[split]["modern"]],
    }
    pairs = keep_rows(pool, lambda text, target: 8 <= n_words(text) <= 50 and 8 <= n_words(target) <= 50)
    datasets = draw_shares(pairs, {TRAIN: 7_000, DEV: 750, TEST: 800}, seed=CORPUS_SEED, source=source)
    if UNLABELED in raw:
        _check_columns({UNLABELED: raw[UNLABELED]}, ("original",), source)
        datasets[UNLABELED] = {TEXT: raw[UNLABELED]["original"]}
    return datasets


@corpus("demo")
def demo(request: Request) -> Datasets:
    """A small task made on the spot, as many rows as asked for; no text is in two splits.

    `dev` and `test` come first, so that they stay the same whatever the sizes of `train` and `unlabeled`.
    """
    if request.path is not None:
        raise UserError(f"--dataset_path {request.path}: the corpus 'demo' has no raw files; leave the flag out")
    wanted = request.sizes
    sizes = {
        DEV: max(wanted.dev or DEMO_SIZES.dev or 0, wanted.dev_ppl or 0),
        TEST: wanted.test or DEMO_SIZES.test or 0,
        TRAIN: wanted.train or DEMO_SIZES.train or 0,
        UNLABELED: wanted.unlabeled or DEMO_SIZES.unlabeled or 0,
    }
    texts, targets = demo_rows(sum(sizes.values()), seed=request.seed)
    datasets: Datasets = {}
    start = 0
    for split, size in sizes.items():
        datasets[split] = take_rows({TEXT: texts, TARGET: targets}, range(start, start + size))
        start += size
    del datasets[UNLABELED][TARGET]
    return datasets


def _raw(
    request: Request,
    hub_name: str,
    columns: tuple[str, ...],
    *,
    splits: tuple[str, ...] = ("train", "validation", "test"),
) -> Datasets:
    """The corpus as its publishers have it, from `request.path` or the hub, with `validation` named `dev`."""
    files, names = ", ".join(splits), ", ".join(columns)
    layout = f"a folder with {files} (each .jsonl, .json, .csv or .parquet) of the columns {names}"
    if request.path is not None:
        raw, source = read_datasets(request.path), request.path
    else:
        try:
            raw, source = rename_splits(load_hub(hub_name, splits=splits), hub_name), hub_name
        except UserError as error:
            raise UserError(f"{error}. Or download it and give --dataset_path {layout}") from None
    names_here = [DEV if split == "validation" else split for split in splits]
    if TRAIN not in raw:
        raise UserError(f"{source}: no split '{TRAIN}', only {list(raw)}; expected {layout}")
    absent = [split for split in names_here if split not in raw]
    if absent:
        logger.warning("%s: no %s: the dataset is made without", source, ", ".join(absent))
    raw = {split: raw[split] for split in names_here if split in raw}
    _check_columns(raw, columns, source)
    return raw


def _check_columns(raw: Datasets, columns: tuple[str, ...], source: str) -> None:
    """Every split has these columns of strings (`answers`, which holds objects, is only looked for)."""
    check_shape(raw, source)
    for split, rows in raw.items():
        missing = [name for name in columns if name not in rows]
        if missing:
            raise UserError(f"{source}: split '{split}': no column {', '.join(missing)}; it has {list(rows)}")
        for name in columns:
            if name != "answers":
                check_strings(rows, name, f"{source}: split '{split}'")
