"""Generate pseudo-targets with a model, usually the teacher."""

from pathlib import Path

from src.config.cli import parse, run_script
from src.config.flags.generate import GenerateArguments


def main(argv: list[str] | None = None) -> Path:
    """Generate the pseudo-targets and return the path of their file."""
    config = parse(GenerateArguments, argv)
    from src.data.tables import read_data
    from src.generate_accelerator import generate

    return generate(config, read_data(config, config.dataset_path, max_rows=config.max_rows))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
