"""What a finished run prints: the scores of its best checkpoint, and where its files are."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from src.config.console import say
from src.config.constants import DEV, TEST
from src.evaluation.metrics import LIKELIHOOD_SCORES
from src.runs.folder import RunFolder
from src.runs.records import LOSSES, MODEL_FOLDER, PREDICTIONS, SCORES, read_rows

BEST = re.compile(r"epoch(\d+)__step(\d+)(?!.*__last)")  # the name of the best checkpoint, as a folder or a state dict
FILES = {"model": MODEL_FOLDER, "scores": SCORES, "losses": LOSSES, "predictions": PREDICTIONS}


def precision(score: str) -> str:
    """The format of a score: likelihoods are small numbers, the others are mostly percentages."""
    return ".3f" if score in LIKELIHOOD_SCORES else ".2f"


def show_summary(run: RunFolder) -> None:
    """Print a table of the best checkpoint's scores, and the paths of what the run has written."""
    place, dev = _best_on_dev(run.path)
    splits = {name: scores for name, scores in ((DEV, dev), (TEST, run.scores)) if scores}
    if splits:
        say("\n".join(["", f"scores of the {place}", *_table(splits)]))
    say(
        "\n".join(
            ["", *(f"{what:<12} {run.path / name}" for what, name in FILES.items() if (run.path / name).exists())]
        )
    )


def _best_on_dev(folder: Path) -> tuple[str, dict[str, float]]:
    """The best checkpoint in words, and its scores on dev; none if the run has no dev, or has its best from another."""
    found = next((match for entry in folder.glob("epoch*__step*") if (match := BEST.match(entry.name))), None)
    if found is None:
        return "last weights", {}
    epoch, step = map(int, found.groups())
    for row in read_rows(folder / SCORES):
        if (row["split"], row["epoch"], row["step"]) == (DEV, epoch, step):
            scores = {name: value for name, value in row.items() if isinstance(value, float)}
            return f"best checkpoint (epoch {epoch}, step {step})", scores
    return "best checkpoint", {}


def _table(splits: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A line for each score, a column for each split."""
    names = list(dict.fromkeys(name for scores in splits.values() for name in scores))
    width = max(map(len, names))
    yield " " * width + "".join(f"{split:>10}" for split in splits)
    for name in names:
        cells = (f"{scores[name]:{precision(name)}}" if name in scores else "-" for scores in splits.values())
        yield name.ljust(width) + "".join(f"{cell:>10}" for cell in cells)
