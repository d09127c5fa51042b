"""The words of a dry run's report: sizes, times, tables, and lines on memory, disk and time."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.preflight.estimates import Memory
from src.tokens.truncation import Cuts, Lengths, percent

Section = tuple[str, Sequence[str]]  # a heading and its lines


def memory_lines(memory: Memory, where: str, to_try: Sequence[str]) -> list[str]:
    """What is needed, whether it fits, what to try if not, and the parts of the total; where: the device."""
    if memory.fits:
        first = f"about {size(memory.total)} at the peak, of {size(memory.available)} that this run can have ({where})"
    else:
        more = "more than" if memory.peak is None else "about"
        first = (
            f"does not fit: {more} {size(memory.total)} at the peak, and this run can have {size(memory.available)} "
            f"({where}); try {', '.join(to_try)}"
        )
    shown = (f"{name} {size(value)}" for name, value in memory.parts.items() if value or name == "weights")
    return [first, " + ".join(shown)]


def disk_lines(checkpoints: int, *, free: int, freed: int, evaluations: int = 0) -> list[str]:
    """The disk space that is needed and whether it is there.

    free: bytes on the disk. freed: bytes of the run's earlier files, which are replaced.
    """
    needed = checkpoints + evaluations
    texts = f", predictions and references {size(evaluations)}" if evaluations else ""
    line = f"checkpoints take up to {size(checkpoints)}{texts}; {size(free)} are free"
    if freed:
        line += f", and {size(freed)} are this folder's already"
    return [line if needed <= free + freed else f"does not fit: {line}; try another --output_dir"]


@dataclass(frozen=True)
class Part:
    """Something done `count` times: what one of them is called, and its seconds."""

    one: str
    count: int
    seconds: float

    @property
    def total(self) -> float:
        return self.count * self.seconds


def time_lines(parts: Sequence[Part]) -> list[str]:
    """The total time, and that of each part."""
    total = sum(part.total for part in parts)
    lines = [f"about {duration(total)}" if total >= 1 else duration(total)]
    for part in parts:
        if part.count:
            lines.append(f"{plural(part.count, part.one)} of {moment(part.seconds)}: {duration(part.total)}")
    return lines


def size(n_bytes: int) -> str:
    """Bytes in decimal units: 340 kB, 2.4 MB, 17 GB."""
    value, unit = n_bytes / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value >= 999.5:
            value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if value < 9.95 and unit != "kB" else f"{value:.0f} {unit}"


def moment(seconds: float) -> str:
    """The time of a step: 0.031 s, 2.4 s, 75 s."""
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def duration(seconds: float) -> str:
    """The time of a run: 40 s, 3 min, 3 h 20 min, 2 days 4 h."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h"


def listed(names: Sequence[str]) -> str:
    """train_1, train_2; of more than three the first and the last."""
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)} splits)"


def span(values: Sequence[int]) -> str:
    """7,000, or 6,990 to 7,000."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def plural(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


@dataclass(frozen=True)
class SplitSample:
    """A split, its number of rows, and what the limits of length cut off the sampled rows."""

    name: str
    rows: int
    cuts: Cuts


def table_of_splits(splits: Sequence[SplitSample]) -> list[str]:
    """A line for each split: rows, tokens of a row (mean and longest), share that is cut, empty targets."""
    has_targets = any(each.cuts.targets for each in splits)
    header = ["split", "rows", "inputs: mean", "longest", "cut"]
    if has_targets:
        header += ["targets: mean", "longest", "cut", "empty"]
    rows = [header]
    for each in splits:
        cells = [each.name, f"{each.rows:,}", *_cells(each.cuts.inputs)]
        if has_targets:
            cells += [*_cells(each.cuts.targets), f"{each.cuts.n_empty:,}"] if each.cuts.targets else [""] * 4
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return lines[:1] + [line + _sampled(each) for line, each in zip(lines[1:], splits, strict=True)]


def _cells(lengths: Lengths) -> list[str]:
    return [f"{lengths.mean:.1f}", f"{lengths.longest:,}", percent(lengths.share)]


def _sampled(split: SplitSample) -> str:
    return "" if split.cuts.inputs.n == split.rows else f"  (of {split.cuts.inputs.n:,} rows)"


def render(sections: Sequence[Section]) -> str:
    """The sections as text: headings at the left, lines beside them."""
    width = max(len(word) for word, _ in sections) + 2
    return "\n".join(
        f"{word if i == 0 else '':<{width}}{line}" for word, lines in sections for i, line in enumerate(lines)
    )
