"""The embedded demo corpus."""

from __future__ import annotations

from src.config.constants import DEV, TARGET, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.data.corpora.demo.grammar import demo_rows
from src.data.corpora.request import Request
from src.data.schema import Datasets
from src.data.splits import SplitSizes, take_rows

DEMO_SIZES = SplitSizes(train=2_000, dev=200, test=500, unlabeled=8_000)


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
