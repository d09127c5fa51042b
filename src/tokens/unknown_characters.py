"""Find texts that a tokenizer cannot represent: unknown characters, and targets that decode to another text."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from math import ceil

from src.config.console import say
from src.config.constants import TARGET, TEXT
from src.config.errors import UserError
from src.config.parsing import shown
from src.data.conversations import contents_of
from src.data.references import first_references
from src.data.schema import Datasets, training_splits
from src.tokens.preprocessing import Preprocessor

ROWS = 1_000  # of a split that are checked, evenly spaced
WARN_ABOVE = 0.01  # share of them that may be affected without a warning
REFUSE_ABOVE = 0.9  # share of targets with unknown characters with which nothing can be learned
UNCUT = 2**30  # a maximum length that cuts nothing


def check_characters_known(preprocessor: Preprocessor, datasets: Datasets, source: str) -> None:
    """Warn about inputs and targets that the tokenizer cannot represent.

    Checks the first training split, or the first split if there is none. Raises UserError if nearly all targets have
    unknown characters. `source`: the dataset, for the error.
    """
    split = next(iter(training_splits(datasets) or datasets))
    uncut = replace(preprocessor, max_input_length=UNCUT, max_labels_length=UNCUT)
    for kind, column in (("inputs", TEXT), ("targets", TARGET)):
        if column not in datasets[split]:
            continue
        values = datasets[split][column]
        texts = list(map(contents_of, first_references(values[:: ceil(len(values) / ROWS)])))
        is_unknown = _have_unknown(uncut, texts)
        unknown = list(compress(texts, is_unknown))
        if kind == "targets" and len(unknown) >= REFUSE_ABOVE * len(texts):
            raise UserError(
                f"{source}: split '{split}': nearly all targets have characters that the model's tokenizer does not "
                f"know, as {shown(unknown[0])}; choose a model whose tokenizer knows them"
            )
        if len(unknown) > WARN_ABOVE * len(texts):
            n_unknown = f"{len(unknown):,} of {len(texts):,} {kind}"
            say(
                f"warning: {split}: {n_unknown} have characters that the tokenizer does not know, as "
                f"{shown(unknown[0])}"
            )
        if kind == "targets":
            known = [text for text, is_one in zip(texts, is_unknown, strict=True) if not is_one]
            _warn_of_changed(split, uncut, known, len(texts))


def _have_unknown(preprocessor: Preprocessor, texts: Sequence[str]) -> list[bool]:
    """Whether each text has an unknown token. White space is not counted."""
    unknown = preprocessor.tokenizer.unk_token_id
    if unknown is None or unknown == preprocessor.tokenizer.eos_token_id:
        return [False] * len(texts)
    tokens = preprocessor.encode_labels([" ".join(text.split()) for text in texts]).tokens
    return [unknown in tokens[row] for row in range(len(texts))]


def _warn_of_changed(split: str, preprocessor: Preprocessor, targets: list[str], n_sampled: int) -> None:
    """Warn if many targets, all of whose characters are known, change when they are encoded and decoded."""
    labels = preprocessor.encode_labels(targets).tokens
    decode = preprocessor.tokenizer.decode
    written = [str(decode(labels[row], skip_special_tokens=True)) for row in range(len(targets))]
    pairs = [(a.strip(), b.strip()) for a, b in zip(targets, written, strict=True) if a.strip() != b.strip()]
    if len(pairs) > WARN_ABOVE * n_sampled:
        changed = f"{len(pairs):,} of {n_sampled:,} targets"
        (target, text), *_ = pairs
        say(f"warning: {split}: the tokenizer changes {changed}: {shown(target)} comes back as {shown(text)}")
