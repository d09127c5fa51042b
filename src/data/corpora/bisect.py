"""BiSECT: split and rephrase."""

from __future__ import annotations

from src.config.constants import TARGET, TEST, TEXT, TRAIN
from src.data.corpora.request import CORPUS_SEED, Request, read_raw
from src.data.schema import Datasets
from src.data.splits import keep_rows, n_rows, sample_rows

BISECT_TRAIN_ROWS = 100_000


BISECT_CHALLENGES = ("challenge_bisect", "challenge_hsplit")


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
