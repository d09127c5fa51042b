"""Compare finished runs in the terminal."""

from src.config.cli import parse, run_script
from src.config.flags.report import CompareArguments


def main(argv: list[str] | None = None) -> str:
    """Print the tables and return them."""
    config = parse(CompareArguments, argv)
    from src.report import compare

    return compare(config)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
