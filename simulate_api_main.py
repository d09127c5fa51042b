"""Write completions and log-probabilities of a local model as an API would return them."""

from pathlib import Path

from src.config.cli import parse, run_script
from src.config.flags.generate import SimulateApiArguments


def main(argv: list[str] | None = None) -> Path:
    """Write the file of completions and return its path."""
    config = parse(SimulateApiArguments, argv)
    from src.data.tables import read_data
    from src.simulate_api import simulate

    return simulate(config, read_data(config, config.dataset_path, max_rows=config.max_rows))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
