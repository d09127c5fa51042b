"""Write one web page about finished runs."""

from pathlib import Path

from src.config.cli import parse, run_script
from src.config.flags.report import ReportArguments


def main(argv: list[str] | None = None) -> Path:
    """Write the page and its tables and return the page's path."""
    config = parse(ReportArguments, argv)
    from src.report import report

    return report(config)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
