"""`python -m tests.golden FOLDER`: compare this code with recorded values and gradients; the worst cases come last.

Exit status: 0 if every case is within tolerance, 1 if any is not, 2 if the folder has no record.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from src.config.errors import UserError
from tests.golden.compare import deviations, read_cases

N_WORST = 10
HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE, help="golden.json and its models [%(default)s]")
    folder = parser.parse_args(argv).folder.resolve()
    try:
        cases = read_cases(folder)
        found = [list(deviations(folder, case)) for case in cases]
    except (OSError, ValueError, KeyError, UserError) as error:
        print(f"{folder}: not a record of this format: {error!r}", file=sys.stderr)
        return 2
    for case, numbers in zip(cases, found, strict=True):
        n_off = sum(number.is_off for number in numbers)
        print(f"{'OFF' if n_off else 'ok ':<4}{case['family']} {case['name']}: {len(numbers) - n_off}/{len(numbers)}")
    flat = sorted((number for numbers in found for number in numbers), key=lambda each: (each.is_off, each.excess))
    print(f"\nworst of {len(flat)} numbers:")
    for number in flat[-N_WORST:]:
        print(number)
    n_off = sum(any(number.is_off for number in numbers) for numbers in found)
    print(f"{len(cases) - n_off} of {len(cases)} cases within tolerance")
    return 1 if n_off or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
