"""The corpora by name. To add one, write its function in a file of this folder and name it here and in `CORPORA` of
src/config/constants.py.
"""

from src.data.corpora.bisect import bisect
from src.data.corpora.demo.corpus import demo
from src.data.corpora.hub import art, squad, xsum
from src.data.corpora.request import Corpus, Request
from src.data.corpora.shakespeare import shakespeare
from src.data.schema import Datasets, check_trainable

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
