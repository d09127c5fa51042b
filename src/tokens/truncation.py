"""Warnings about truncated inputs and targets, empty targets, and names of special tokens in texts.

Shapes: N texts.
"""

from dataclasses import dataclass

import numpy as np

WHOLE = 0.99  # share of the texts that the proposed limit keeps whole
WARN_ABOVE = 0.1  # share of the texts that may be cut without a warning


@dataclass(frozen=True)
class Lengths:
    """Lengths of `n` texts in tokens before truncation, special tokens and the prompt included.

    n_cut: texts longer than `limit`. enough: the limit that would keep 99 % of the texts whole.
    """

    limit: int
    n: int = 0
    mean: float = 0.0
    longest: int = 0
    n_cut: int = 0
    enough: int = 0

    @classmethod
    def of(cls, lengths: np.ndarray, limit: int) -> "Lengths":
        """The summary of lengths (N,)."""
        if not len(lengths):
            return cls(limit)
        enough = np.quantile(lengths, WHOLE, method="inverted_cdf")
        n_cut = int((lengths > limit).sum())
        return cls(limit, len(lengths), float(lengths.mean()), int(lengths.max()), n_cut, int(enough))

    @property
    def share(self) -> float:
        """The share of the texts that are cut."""
        return self.n_cut / max(1, self.n)


@dataclass(frozen=True)
class Cuts:
    """What truncation takes from a split's inputs and targets.

    n_empty: targets without text after truncation. truncation_side: where inputs are cut. special_token: one whose name
    is in the texts and is read as text.
    """

    inputs: Lengths
    targets: Lengths | None = None
    n_empty: int = 0
    truncation_side: str = "right"
    special_token: str | None = None


def cut_warnings(cuts: Cuts) -> dict[str, str]:
    """The warnings about a split, by kind: inputs or targets of which more than 10 % are cut, empty targets (which only
    teach the model to stop), and names of special tokens (which a chat template means as tokens)."""
    inputs, targets, warnings = cuts.inputs, cuts.targets, {}
    if inputs.share > WARN_ABOVE:
        end = "end" if cuts.truncation_side == "right" else "beginning"
        cut = f"inputs are cut to --max_input_length {inputs.limit} at their {end} (--truncation_side)"
        warnings["inputs"] = _count(inputs, cut)
    if targets is not None and targets.share > WARN_ABOVE:
        most = "most targets are truncated: " if targets.share > 0.5 else ""
        warnings["targets"] = most + _count(targets, f"targets are cut to --max_labels_length {targets.limit}")
    if targets is not None and cuts.n_empty:
        warnings["empty targets"] = (
            f"{cuts.n_empty:,} of {targets.n:,} targets are empty after truncation: the text is blank, "
            f"or --max_labels_length {targets.limit} is too small"
        )
    if cuts.special_token is not None:
        warnings["special tokens"] = (
            f"texts contain names of special tokens ({cuts.special_token}), which are read as text; "
            "--special_tokens_in_text True reads them as tokens"
        )
    return warnings


def _count(lengths: Lengths, are_cut: str) -> str:
    kept = f"{lengths.enough} would keep {percent(WHOLE)} of them whole"
    return f"{lengths.n_cut:,} of {lengths.n:,} ({percent(lengths.share)}) {are_cut}; {kept}"


def percent(share: float) -> str:
    """A share in percent: 0 %, 0.2 %, 12 %; a small share is at least 0.1 %."""
    if not share:
        return "0 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{max(0.1, 100 * share):.1f} %"
