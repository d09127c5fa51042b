"""Find texts that a tokenizer cannot represent: unknown characters, and targets that decode to another text."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from src.config.console import say
from src.config.constants import TARGET, TEXT
from src.config.errors import UserError
from src.config.parsing import shown
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
    unknown characters. `source`: the data set, for the error.
    """
    split = next(iter(training_splits(datasets) or datasets))
    uncut = replace(preprocessor, max_input_length=UNCUT, max_labels_length=UNCUT)
    texts = _sample(datasets[split][TEXT])
    _say_unknown(split, "inputs", texts, _with_unknown(uncut, texts))
    if TARGET not in datasets[split]:
        return
    targets = _sample(first_references(datasets[split][TARGET]))
    unknown = _with_unknown(uncut, targets)
    if sum(unknown) >= REFUSE_ABOVE * len(targets):
        example = targets[unknown.index(1)]
        raise UserError(
            f"{source}: split '{split}': nearly all targets have characters that the model's tokenizer does not know, "
            f"as {shown(example)}; choose a model whose tokenizer knows them"
        )
    _say_unknown(split, "targets", targets, unknown)
    labels = uncut.encode_labels(targets).tokens
    written = [
        str(uncut.tokenizer.decode(labels[row].tolist(), skip_special_tokens=True)) for row in range(len(targets))
    ]
    _say_changed(split, targets, written, unknown)


def _sample(texts: Sequence[str]) -> list[str]:
    return list(texts[:: ceil(len(texts) / ROWS)])


def _with_unknown(preprocessor: Preprocessor, texts: Sequence[str]) -> list[int]:
    """1 for each text with an unknown token. White space is not counted."""
    unknown = preprocessor.tokenizer.unk_token_id
    if unknown is None or unknown == preprocessor.tokenizer.eos_token_id:
        return [0] * len(texts)
    tokens = preprocessor.encode_labels([" ".join(text.split()) for text in texts]).tokens
    return [int(unknown in tokens[row]) for row in range(len(texts))]


def _say_unknown(split: str, kind: str, texts: Sequence[str], unknown: Sequence[int]) -> None:
    if sum(unknown) > WARN_ABOVE * len(texts):
        example = shown(texts[unknown.index(1)])
        n_unknown = f"{sum(unknown):,} of {len(texts):,} {kind}"
        say(f"warning: {split}: {n_unknown} have characters that the tokenizer does not know, as {example}")


def _say_changed(split: str, targets: Sequence[str], written: Sequence[str], unknown: Sequence[int]) -> None:
    """Warn about targets that change when encoded and decoded, although all their characters are known."""
    pairs = [
        (target, text)
        for target, text, is_unknown in zip(targets, written, unknown, strict=True)
        if not is_unknown and target.strip() != text.strip()
    ]
    if len(pairs) <= WARN_ABOVE * len(targets):
        return
    letters = [("".join(text.split()).casefold() for text in pair) for pair in pairs]
    what = " (white space or case alone)" if all(a == b for a, b in letters) else ""
    target, text = pairs[0]
    changed = f"{len(pairs):,} of {len(targets):,} targets{what}"
    say(f"warning: {split}: the tokenizer changes {changed}: {shown(target)} comes back as {shown(text.strip())}")
