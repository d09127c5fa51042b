"""Run a study: all commands of a plan, by Snakemake."""

from src.config.cli import parse, run_script
from src.config.flags.study import StudyArguments


def main(argv: list[str] | None = None) -> None:
    """Run the study; raises UserError if a command failed."""
    config = parse(StudyArguments, argv)
    from src.run_study import run_study

    run_study(config)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
