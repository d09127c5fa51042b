"""Lengths of texts in tokens before truncation, and warnings about inputs and targets that lose much.

Shapes: N texts.
"""

from dataclasses import dataclass

import numpy as np

WHOLE = 0.99  # of the texts, which the limit that is proposed would leave whole
WARN_ABOVE = 0.1  # of the texts, which may be cut without a word


@dataclass(frozen=True)
class Lengths:
    """Of n texts: tokens before they are cut, special ones and the prompt included.

    limit: tokens that one may have, n_cut: how many had more. enough: the limit that would leave 99 % of them whole.
    """

    limit: int
    n: int = 0
    mean: float = 0.0
    longest: int = 0
    n_cut: int = 0
    enough: int = 0

    @classmethod
    def of(cls, lengths: np.ndarray, limit: int) -> "Lengths":
        """Of lengths (N,) in tokens."""
        if not len(lengths):
            return cls(limit)
        enough = np.quantile(lengths, WHOLE, method="inverted_cdf")
        n_cut = int((lengths > limit).sum())
        return cls(limit, len(lengths), float(lengths.mean()), int(lengths.max()), n_cut, int(enough))

    @property
    def share(self) -> float:
        """Of the texts, which are cut."""
        return self.n_cut / max(1, self.n)


@dataclass(frozen=True)
class Cuts:
    """What tokens leave of a split: of its inputs, and of its targets, of which n_empty have no text left at all.

    truncation_side: where inputs are cut. special_token: one that texts name and that is read as text.
    """

    inputs: Lengths
    targets: Lengths | None = None
    n_empty: int = 0
    truncation_side: str = "right"
    special_token: str | None = None


def of_inputs(cuts: Cuts) -> str | None:
    """Many inputs whose end is never read."""
    inputs = cuts.inputs
    if inputs.share <= WARN_ABOVE:
        return None
    end = "end" if cuts.truncation_side == "right" else "beginning"
    cut = f"inputs are cut to --max_input_length {inputs.limit} at their {end} (--truncation_side)"
    return f"{_count(inputs)} {cut}; {_what_would_do(inputs)}"


def of_targets(cuts: Cuts) -> str | None:
    """Many targets that end in the middle of what they say, with an EOS."""
    targets = cuts.targets
    if targets is None or targets.share <= WARN_ABOVE:
        return None
    most = "most targets are truncated: " if targets.share > 0.5 else ""
    return f"{most}{_count(targets)} targets are cut to --max_labels_length {targets.limit}; {_what_would_do(targets)}"


def of_nothing(cuts: Cuts) -> str | None:
    """Empty targets, which only teach the model to stop."""
    if cuts.targets is None or not cuts.n_empty:
        return None
    return (
        f"{cuts.n_empty:,} of {cuts.targets.n:,} targets are empty after truncation: the text is blank, "
        f"or --max_labels_length {cuts.targets.limit} is too small"
    )


def of_special_tokens(cuts: Cuts) -> str | None:
    """Special tokens in texts, which are read as text; users of a chat template want them read as tokens."""
    if cuts.special_token is None:
        return None
    return (
        f"texts name special tokens ({cuts.special_token}), which are read as text; --special_tokens_in_text True "
        "reads them as those tokens"
    )


def percent(share: float) -> str:
    """A share for people: 0 %, 0.2 %, 12 %; what is not nothing is not called 0 %."""
    if not share:
        return "0 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{max(0.1, 100 * share):.1f} %"


def _count(lengths: Lengths) -> str:
    return f"{lengths.n_cut:,} of {lengths.n:,} ({percent(lengths.share)})"


def _what_would_do(lengths: Lengths) -> str:
    return f"{lengths.enough} would keep {percent(WHOLE)} of them whole"
