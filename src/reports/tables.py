"""Tables of a comparison, and their forms: Markdown, plain text, rows of CSV. The page has its own form."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from src.reports.collect import Collection, Run
from src.reports.comparison import Comparison, Row
from src.reports.methods import differing_flags, short
from src.reports.statistics import Difference, Mean

NONE = "-"
PRECISE = ("nll",)  # scores with three decimals
SPEEDS = {  # columns of the table of sizes
    "parameters": ("parameters", "{:,.0f}"),
    "latency": ("latency, ms", "{:,.1f}"),
    "memory": ("peak memory, MB", "{:,.0f}"),
    "speed": ("sentences/s", "{:,.1f}"),
}


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the value that it is sorted by."""

    text: str
    value: float | str | None = None

    @property
    def order(self) -> float | str:
        """For sorting: the value, or else the text."""
        return self.text if self.value is None else self.value


@dataclass(frozen=True)
class Table:
    """Rows of cells. note: how to read it."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    n_text: int = 2  # columns that hold text, at the left

    def as_text(self) -> str:
        """Aligned columns, for a terminal."""
        return self._tabulated("simple", lambda text: text)

    def as_markdown(self) -> str:
        return self._tabulated("github", lambda text: text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " "))

    def _tabulated(self, form: str, escaped: Callable[[str], str]) -> str:
        lines = [[escaped(cell.text) for cell in row] for row in self.rows]
        align = ["left" if i < self.n_text else "right" for i in range(len(self.columns))]
        return tabulate(lines, list(map(escaped, self.columns)), tablefmt=form, disable_numparse=True, colalign=align)


def tables_of(comparison: Comparison) -> list[Table]:
    """The tables of a comparison that have something to show."""
    return [
        table
        for table in (
            _scores(comparison),
            _gaps(comparison),
            _differences(comparison),
            _sizes(comparison),
            _flags(comparison),
        )
        if len(table.columns) > 2 and table.rows
    ]


def _named(row: Row) -> list[Cell]:
    return [Cell(str(row.method.number), row.method.number), Cell(row.method.label)]


def _scores(comparison: Comparison) -> Table:
    counts = [
        [Cell(str(len(row.method.runs)), len(row.method.runs)), _count(row.method.n_pseudo_targets)]
        for row in comparison.rows
    ]
    lines = [
        [*_named(row), *count, *(_mean(row.scores.get(score), decimals(score)) for score in comparison.scores)]
        for row, count in zip(comparison.rows, counts, strict=True)
    ]
    note = "Mean over seeds ± standard deviation. Best checkpoint on dev, scored on test."
    return Table("Scores on test", ["#", "method", "seeds", "pseudo-targets", *comparison.scores], lines, note)


def _gaps(comparison: Comparison) -> Table:
    rows = [row for row in comparison.rows if row.gaps]
    scores = [score for score in comparison.scores if any(score in row.gaps for row in rows)]
    lines = [[*_named(row), *(_mean(row.gaps.get(score), 1) for score in scores)] for row in rows]
    note = "100 (x - S) / (T - S): 0 is the fine-tuned student (S), 100 the teacher (T)."
    return Table("Share of the gap closed, %", ["#", "method", *scores], lines, note)


def _differences(comparison: Comparison) -> Table:
    rows = [row for row in comparison.rows if row.wins is not None]
    scores = [score for score in comparison.scores if any(score in row.differences for row in rows)]
    lines = []
    for row in rows:
        assert row.wins is not None
        shares = (row.wins.better, row.wins.equal, row.wins.worse)
        wins = Cell(" / ".join(f"{share:.0f}" for share in shares), row.wins.better)
        lines.append([*_named(row), *(_difference(row.differences.get(score)) for score in scores), wins])
    note = (
        "Difference with its 95 % interval by paired bootstrap over test rows; an interval without 0 is significant. "
        "Wins: percent of the test rows where the method's chrF is higher / equal / lower."
    )
    columns = ["#", "method", *scores, "wins / ties / losses, %"]
    return Table("Compared with the fine-tuned student", columns, lines, note)


def _sizes(comparison: Comparison) -> Table:
    shown = {
        key: each for key, each in SPEEDS.items() if any(getattr(row.size, key) is not None for row in comparison.rows)
    }
    lines = [
        [*_named(row), *(_number(getattr(row.size, key), form) for key, (_, form) in shown.items())]
        for row in comparison.rows
    ]
    conditions = "; ".join(dict.fromkeys(row.size.conditions for row in comparison.rows if row.size.conditions))
    note = f"Measured by profile_main.py: {conditions}." if conditions else "Speed and memory: run profile_main.py."
    return Table("Size and speed", ["#", "method", *(name for name, _ in shown.values())], lines, note)


def _flags(comparison: Comparison) -> Table:
    differing = differing_flags(comparison.methods)
    lines = [[Cell(f"--{name}"), *(Cell(NONE if value is None else short(value)) for value in values)]
             for name, values in differing.items()]  # fmt: skip
    columns = ["flag", *(str(method.number) for method in comparison.methods)]
    return Table("Flags that differ, by method", columns, lines, n_text=len(columns))


def run_table(title: str, runs: Sequence[Run], reason: Callable[[Run], str]) -> Table:
    """Runs that are in no comparison, and why."""
    lines = [[Cell(str(run.folder)), Cell(run.script), Cell(reason(run))] for run in runs]
    return Table(title, ["folder", "script", "state"], lines, n_text=3)


def left_out(collection: Collection) -> list[Table]:
    """What is in no comparison: unfinished runs, runs without a test, and folders that cannot be read."""
    unreadable = [[Cell(str(folder)), Cell(why)] for folder, why in collection.unreadable.items()]
    tables = (
        run_table("Unfinished runs", collection.unfinished, lambda run: run.status),
        run_table("Other finished runs, without test scores", collection.others, lambda run: run.status),
        Table("Folders that cannot be read", ["folder", "reason"], unreadable),
    )
    return [table for table in tables if table.rows]


def csv_rows(comparisons: Iterable[Comparison]) -> Iterator[Mapping[str, Any]]:
    """A row for each dataset, method and score, with unrounded numbers."""
    for comparison in comparisons:
        for row in comparison.rows:
            for score, mean in row.scores.items():
                gap, difference = row.gaps.get(score), row.differences.get(score)
                yield {
                    "data_set": comparison.name,
                    "method": row.method.label,
                    "role": row.method.role,
                    "seeds": len(row.method.runs),
                    "pseudo_targets": row.method.n_pseudo_targets,
                    "score": score,
                    "mean": mean.value,
                    "deviation": mean.deviation,
                    "gap_closed": gap and gap.value,
                    "gap_closed_deviation": gap and gap.deviation,
                    "difference": difference and difference.value,
                    "difference_low": difference and difference.low,
                    "difference_high": difference and difference.high,
                    "wins": row.wins and row.wins.better,
                    "losses": row.wins and row.wins.worse,
                    "parameters": row.size.parameters,
                    "latency_ms": row.size.latency,
                    "peak_memory_mb": row.size.memory,
                    "sentences_per_second": row.size.speed,
                }


def decimals(score: str) -> int:
    """How many decimals of a score are shown."""
    return 3 if score in PRECISE else 2


def _mean(mean: Mean | None, decimals: int) -> Cell:
    if mean is None:
        return Cell(NONE)
    deviation = "" if mean.deviation is None else f" ± {mean.deviation:.{decimals}f}"
    return Cell(f"{mean.value:.{decimals}f}{deviation}", mean.value)


def _difference(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(NONE)
    return Cell(f"{difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]", difference.value)


def _count(count: int | None) -> Cell:
    return Cell(NONE if count is None else str(count), count)


def _number(value: float | None, form: str) -> Cell:
    return Cell(NONE if value is None else form.format(value), value)
