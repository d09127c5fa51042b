"""Build a dataset file from a corpus, from pseudo-targets, or from the log-probabilities of an API."""

from pathlib import Path

from src.config.cli import parse, run_script
from src.config.flags.prepare import PrepareArguments


def main(argv: list[str] | None = None) -> Path:
    """Build the file and return its path."""
    config = parse(PrepareArguments, argv)
    from src.prepare_datasets import prepare  # here, because importing it takes seconds

    return prepare(config)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
