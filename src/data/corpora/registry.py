"""The corpora by name. To add one, write its function and name it in CORPUS_FUNCTIONS and in `CORPORA` of
src/config/constants.py.
"""

from __future__ import annotations

from pathlib import Path

from src.config.constants import DEV, TARGET, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.data.corpora.demo.corpus import demo
from src.data.corpora.request import CORPUS_SEED, Corpus, Request, check_columns, read_raw
from src.data.formats import read_datasets
from src.data.schema import Columns, Datasets, check_trainable
from src.data.splits import draw_shares, keep_rows, n_rows, n_words, sample_rows

BISECT_TRAIN_ROWS = 100_000
BISECT_CHALLENGES = ("challenge_bisect", "challenge_hsplit")
SHAKESPEARE_FILE = "datasets/raw/shakespeare/shakespeare_splits.json"
SHAKESPEARE_LAYOUT = '{"train": {"original": [...], "modern": [...]}, "dev", "test", "unlabeled": {"original": [...]}}'


def xsum(request: Request) -> Datasets:
    """XSum: a BBC article to its one-sentence summary (Narayan et al., 2018)."""
    raw = read_raw(request, "EdinburghNLP/xsum", ("document", "summary"))
    return {split: {TEXT: rows["document"], TARGET: rows["summary"]} for split, rows in raw.items()}


def squad(request: Request) -> Datasets:
    """SQuAD turned round: `{context}; answer: {first answer}` to the question (Rajpurkar et al., 2016).

    1,570 rows of the validation split are `dev`, the rest is `test`; a smaller file is shared in proportion.
    """
    raw = read_raw(request, "rajpurkar/squad", ("context", "question", "answers"), splits=("train", "validation"))
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


def art(request: Request) -> Datasets:
    """ART: `{observation_1}; outcome: {observation_2}` to what happened in between (Bhagavatula et al., 2020)."""
    raw = read_raw(request, "GEM/ART", ("observation_1", "observation_2", "target"))
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


def bisect(request: Request) -> Datasets:
    """BiSECT: a long sentence to the same in two (Kim et al., 2021); not in the paper, the filters are its code's.

    Kept: 20 to 50 words on both sides, 0.45 to 0.85 of the source's distinct words in the target; 100,000 rows of
    train; the challenge sets are part of test.
    """
    splits = ("train", "validation", "test", *BISECT_CHALLENGES)
    raw = read_raw(request, "GEM/BiSECT", ("source", "target"), splits=splits)
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
    check_columns({split: raw[split] for split in labeled}, ("original", "modern"), source)
    pool = {
        TEXT: [line for split in labeled for line in raw[split]["original"]],
        TARGET: [line for split in labeled for line in raw[split]["modern"]],
    }
    pairs = keep_rows(pool, lambda text, target: 8 <= n_words(text) <= 50 and 8 <= n_words(target) <= 50)
    datasets = draw_shares(pairs, {TRAIN: 7_000, DEV: 750, TEST: 800}, seed=CORPUS_SEED, source=source)
    if UNLABELED in raw:
        check_columns({UNLABELED: raw[UNLABELED]}, ("original",), source)
        datasets[UNLABELED] = {TEXT: raw[UNLABELED]["original"]}
    return datasets


CORPUS_FUNCTIONS: dict[str, Corpus] = {
    "xsum": xsum,
    "squad": squad,
    "art": art,
    "bisect": bisect,
    "shakespeare": shakespeare,
    "demo": demo,
}


def load_corpus(name: str, request: Request) -> Datasets:
    """Load a corpus and check it. Raises UserError that says what to download where if its data cannot be had."""
    datasets = CORPUS_FUNCTIONS[name](request)
    check_trainable(datasets, request.path or f"corpus '{name}'")
    return datasets
