"""Make a student: keep some layers of a trained model, or build a small one with random weights."""

import sys
from collections.abc import Sequence
from pathlib import Path

from src.config.cli import parse, run_script
from src.config.flags.create_student import CreateStudentArguments


def main(argv: Sequence[str] | None = None) -> Path:
    """Write the model folder that the flags ask for, print its path and return it."""
    config = parse(CreateStudentArguments, argv)
    from src.create_student import create_student  # after the flags: torch takes seconds to import

    folder = create_student(config)
    print(folder)
    return folder


if __name__ == "__main__":
    sys.exit(run_script(main))
