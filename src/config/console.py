"""What long work shows: one progress bar with a rate and the time left."""

import sys
import threading
from typing import Any

BAR_DELAY = 2.0  # seconds; shorter work shows no bar
LOG_INTERVAL = 30.0  # seconds between lines where the output is a file and not a terminal


def progress_bar(total: int, description: str, unit: str, *, initial: int = 0) -> Any:
    """A tqdm bar on stderr, counting `unit`s; quiet for short work and in the background, sparse in log files."""
    from tqdm.auto import tqdm  # here, because --help needs none of it

    on_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        delay=BAR_DELAY,
        disable=threading.current_thread() is not threading.main_thread(),
        leave=False,
        dynamic_ncols=on_terminal,
        ascii=not on_terminal,
        mininterval=0.2 if on_terminal else LOG_INTERVAL,
        maxinterval=10 if on_terminal else LOG_INTERVAL,
    )


def say(line: str) -> None:
    """Print a line on stdout without breaking a progress bar."""
    from tqdm.auto import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()
