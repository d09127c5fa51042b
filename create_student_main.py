"""Make a student model: keep some layers of a trained model, or build a small model with random weights."""

from pathlib import Path

from src.config.cli import parse, run_script
from src.config.flags.create_student import CreateStudentArguments


def main(argv: list[str] | None = None) -> Path:
    """Write the model folder, print its path and return it."""
    config = parse(CreateStudentArguments, argv)
    from src.create_student import create_student  # here, because importing torch takes seconds

    folder = create_student(config)
    print(folder)
    return folder


if __name__ == "__main__":
    raise SystemExit(run_script(main))
