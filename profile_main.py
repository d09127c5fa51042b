"""Measure parameters, FLOPs, latency, memory and throughput of models."""

from pathlib import Path

from src.config.cli import parse, run_script
from src.config.flags.profile import ProfileArguments


def main(argv: list[str] | None = None) -> Path:
    """Write the results, print the path of the JSON file and return it."""
    config = parse(ProfileArguments, argv)
    from src.profile_models import profile_models  # here, because importing torch takes seconds

    path = profile_models(config)
    print(path)
    return path


if __name__ == "__main__":
    raise SystemExit(run_script(main))
