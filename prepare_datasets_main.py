"""Build a dataset file: from a corpus, or from a dataset file and its pseudo-targets (--help tells how)."""

import sys
from collections.abc import Sequence
from pathlib import Path

from src.config.cli import parse, run_script
from src.config.flags.prepare import PrepareArguments


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse the flags, build the file and return its path."""
    config = parse(PrepareArguments, argv)
    from src.prepare_datasets import prepare  # after parsing, so that --help and a wrong flag answer at once

    return prepare(config)


if __name__ == "__main__":
    sys.exit(run_script(main))
