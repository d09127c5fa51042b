"""Distil a teacher whose log-probabilities are stored. `--help` explains the flags."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from src.config.arguments import DistillStoredArguments
from src.config.cli import parse, run_script
from src.config.errors import UserError


def main(argv: Sequence[str] | None = None) -> NoReturn:
    parse(DistillStoredArguments, argv)
    raise UserError("stored log-probabilities cannot be trained on by this version; kd_main.py distils a live teacher")


if __name__ == "__main__":
    sys.exit(run_script(main))
