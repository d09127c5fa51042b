"""Build a dataset file from a corpus, from pseudo-targets, or from the log-probabilities of an API."""

import sys
from collections.abc import Sequence
from pathlib import Path

from src.config.cli import parse, run_script
from src.config.flags.prepare import PrepareArguments


def main(argv: Sequence[str] | None = None) -> Path:
    """Build the file and return its path."""
    config = parse(PrepareArguments, argv)
    from src.prepare_datasets import prepare  # here, because importing it takes seconds

    return prepare(config)


if __name__ == "__main__":
    sys.exit(run_script(main))
