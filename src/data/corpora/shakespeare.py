"""Shakespeare's plays in modern English."""

from __future__ import annotations

from pathlib import Path

from src.config.constants import DEV, TARGET, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.data.corpora.request import CORPUS_SEED, Request, check_columns
from src.data.formats import read_datasets
from src.data.schema import Datasets
from src.data.splits import draw_shares, keep_rows, n_words

SHAKESPEARE_FILE = "datasets/raw/shakespeare/shakespeare_splits.json"


SHAKESPEARE_LAYOUT = '{"train": {"original": [...], "modern": [...]}, "dev", "test", "unlabeled": {"original": [...]}}'


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
