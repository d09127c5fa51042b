"""How a run was made: its command, data, versions, warnings and time."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields

from src.config.flags.base import REQUIRED
from src.config.scripts import ARGUMENTS
from src.reports.collect import Run
from src.reports.tables import Cell, Table


@dataclass(frozen=True)
class Made:
    """A run's folder and state, the command that repeats it, and facts by name."""

    folder: str
    script: str
    state: str
    command: str
    facts: dict[str, str]
    warnings: list[str]


def how_made(run: Run) -> Made:
    description = run.records.description
    data = {f"data: {name}": value for name, value in description.data.items() if isinstance(value, str)}
    versions = ", ".join(f"{name} {version}" for name, version in description.versions.items())
    known = {"time": duration(description.seconds), "commit": description.commit, "versions": versions}
    facts = {name: value for name, value in {**known, **data}.items() if value}
    return Made(str(run.folder), run.script, run.status, command_of(run), facts, list(description.warnings))


def command_of(run: Run) -> str:
    """The command of a run: every flag that is not at its default."""
    known = ARGUMENTS.get(run.script)
    defaults = {each.name: each.default for each in fields(known)} if known else {}
    words = ["python", run.script]
    for name, value in run.records.description.flags.items():
        default = defaults.get(name, REQUIRED)
        if value is not None and value != (list(default) if isinstance(default, tuple) else default):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def duration(seconds: float | None) -> str:
    """Hours and minutes, or minutes and seconds of a short time."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def time_table(runs: Iterable[Run]) -> Table:
    """The time of each script, over all runs that have recorded it."""
    by_script: dict[str, list[float]] = {}
    for run in runs:
        if run.records.description.seconds is not None:
            by_script.setdefault(run.script, []).append(run.records.description.seconds)
    lines: list[list[Cell]] = [
        [
            Cell(script),
            Cell(str(len(each)), len(each)),
            Cell(duration(sum(each)), sum(each)),
            Cell(duration(max(each)), max(each)),
        ]
        for script, each in by_script.items()
    ]
    return Table("Time by stage", ["stage", "runs", "total", "longest"], lines, n_text=1)
