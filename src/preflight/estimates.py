"""What a run will take, before it is made: work, memory, disk, time. Numbers in; numbers, and lines for people, out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from src.config.constants import DEV, TEST
from src.config.flags.shared import TrainingArguments
from src.data.references import Target, first_references, references_of
from src.tokens.tokenized import TokenizedDatasets
from src.tokens.truncation import Cuts, Lengths, percent
from src.training import rhythm
from src.training.phase import Phase
from src.training.state import RunState

Section = tuple[str, Sequence[str]]  # a word, and lines about it
AROUND_A_TEXT = 7  # bytes of quotes, comma, newline and indent

# ---------------------------------------------------------------------------------------------------------------- work


@dataclass(frozen=True)
class Work:
    """What is left of a phase: epochs, the one at hand included; updates; evaluations on dev and on test.

    by_epoch: the updates of each epoch.
    """

    by_epoch: tuple[int, ...]
    dev: int = 0
    test: int = 0

    @property
    def epochs(self) -> int:
        return len(self.by_epoch)

    @property
    def updates(self) -> int:
        return sum(self.by_epoch)


def work_in_epoch(
    config: TrainingArguments, n_rows: int, *, steps_done: int = 0, evaluated: int = 0
) -> tuple[int, int]:
    """Updates and evaluations that are left of an epoch over `n_rows` rows, from a position on."""
    n_steps = rhythm.steps_in_epoch(n_rows, config.micro_batch_size)
    interval = rhythm.evaluation_interval(config.save_checkpoint_every_n_steps, n_steps)
    updates = evaluations = 0
    while True:
        if rhythm.evaluates_after(steps_done, evaluated, n_steps, interval):
            evaluations, evaluated = evaluations + 1, steps_done
        if steps_done == n_steps:
            return updates, evaluations
        updates, steps_done = updates + 1, min(n_steps, steps_done + config.accumulation_steps)


def work_of_phases(
    config: TrainingArguments, phases: Sequence[Phase], data: TokenizedDatasets, state: RunState
) -> list[Work]:
    """Of every phase that is left, from where the run stands, if patience never ends one; without the closing test."""
    whole = cache(lambda n_rows: work_in_epoch(config, n_rows))
    works: list[Work] = []
    epoch, done = state.epoch, state.epoch - state.phase_start
    for phase in phases[state.phase :]:
        by_epoch: list[int] = []
        dev = test = 0
        for number in range(done, phase.epochs):
            n_rows = data.rows(rhythm.rotated(phase.splits, number))
            at_hand = not works and not by_epoch
            place = {"steps_done": state.steps_done, "evaluated": state.evaluated}
            updates, evaluations = work_in_epoch(config, n_rows, **place) if at_hand else whole(n_rows)
            by_epoch.append(updates)
            dev += evaluations if DEV in data else 0
            # An epoch's last evaluation is the one at its end.
            test += evaluations > 0 and TEST in data and rhythm.is_test_epoch(epoch, config.test_every_n_epochs)
            epoch += 1
        works.append(Work(tuple(by_epoch), dev, test))
        done = 0
    return works


def nearest_to_mean(sizes: Sequence[float] | np.ndarray, n: int) -> list[int]:
    """The places of the `n` sizes that are nearest to the mean of all, the nearest first."""
    distances = np.abs(np.asarray(sizes, dtype=np.float64) - np.mean(sizes))
    return np.argsort(distances, kind="stable")[:n].tolist()


# -------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Needs:
    """Bytes that can be counted beforehand; optimizer_there: those of the optimizer's state that are there already."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    teacher: int = 0
    optimizer_there: int = 0

    @property
    def to_come(self) -> int:
        return self.gradients + self.optimizer - self.optimizer_there


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what they hold.

    work: of an update or a batch besides gradients and optimizer, None if there was not enough for one. rest: of the
    program and the data. available: what the process can have, with what it has.
    """

    needs: Needs
    work: int | None
    rest: int
    available: int

    @property
    def total(self) -> int:
        needs = self.needs
        return needs.weights + needs.teacher + needs.gradients + needs.optimizer + (self.work or 0) + self.rest

    @property
    def fits(self) -> bool:
        return self.work is not None and self.total <= self.available


def memory_at_peak(needs: Needs, *, before: int, peak: int | None, available: int) -> Memory:
    """Of a process that held `before` bytes ahead of its first steps and at most `peak` in them; None: it ran out."""
    rest = max(0, before - needs.weights - needs.teacher - needs.optimizer_there)
    work = None if peak is None else max(0, peak - before - needs.to_come)
    return Memory(needs, work, rest, available)


def memory_lines(memory: Memory, where: str, to_try: Sequence[str]) -> list[str]:
    """What is needed, whether it fits, what to try if not, and what it is made of."""
    if memory.fits:
        first = f"about {size(memory.total)} at the peak, of {size(memory.available)} that this run can have ({where})"
    else:
        more = "more than" if memory.work is None else "about"
        first = (
            f"does not fit: {more} {size(memory.total)} at the peak, and this run can have {size(memory.available)} "
            f"({where}); try {', '.join(to_try)}"
        )
    parts = {
        "weights": memory.needs.weights,
        "teacher": memory.needs.teacher,
        "gradients": memory.needs.gradients,
        "optimizer": memory.needs.optimizer,
        "the longest batch": memory.work or 0,
        "program and data": memory.rest,
    }
    shown = (f"{name} {size(value)}" for name, value in parts.items() if value or name == "weights")
    return [first, " + ".join(shown)]


def smaller_micro_batch(batch_size: int, micro_batch_size: int) -> int | None:
    """The largest size of micro-batches that is at most half of the present one; None if there is none."""
    sizes = (size for size in range(micro_batch_size // 2, 0, -1) if batch_size % size == 0)
    return next(sizes, None)


# ---------------------------------------------------------------------------------------------------------------- disk


def disk_at_peak(weights: int, optimizer: int, *, has_dev: bool, n_phases: int) -> int:
    """Bytes of checkpoints that a run holds at once, at most.

    While it trains: the state and the one that replaces it, of the best (where there is a dev) likewise, and after the
    first phase its last. At its end: one of each, and the portable model.
    """
    checkpoint = weights + optimizer
    while_training = (2 + 2 * has_dev + (n_phases > 1)) * checkpoint
    at_end = (2 + has_dev) * checkpoint + weights
    return max(while_training, at_end) if n_phases else weights


def disk_of_evaluations(evaluations: Mapping[str, int], targets: Mapping[str, Sequence[Target]]) -> int:
    """Bytes of the predictions of so many evaluations by split: as lines, and with references in the file that is made
    of the lines at the end, when both are there. Predictions are taken to be as long as (first) references."""
    total = 0
    for split, count in evaluations.items():
        predictions = _bytes_in_json(first_references(targets[split]))
        references = _bytes_in_json(text for target in targets[split] for text in references_of(target))
        total += count * (2 * predictions + references)
    return total


def _bytes_in_json(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) + AROUND_A_TEXT for text in texts)


def disk_lines(checkpoints: int, *, free: int, freed: int, evaluations: int = 0) -> list[str]:
    """free: bytes on the disk; freed: of what an earlier state of the run holds there, which is replaced."""
    needed = checkpoints + evaluations
    texts = f", predictions and references {size(evaluations)}" if evaluations else ""
    line = f"checkpoints take up to {size(checkpoints)}{texts}; {size(free)} are free"
    if freed:
        line += f", and {size(freed)} are this folder's already"
    return [line if needed <= free + freed else f"does not fit: {line}; try another --output_dir"]


# ---------------------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Kind:
    """One kind of a phase's updates: what is special of it, its share of them, and what one of it takes."""

    what: str
    share: float
    seconds: float


@dataclass(frozen=True)
class Part:
    """Something done `count` times: what one of them is called, its seconds, and what these are made of."""

    one: str
    count: int
    seconds: float
    made_of: str = ""

    @property
    def total(self) -> float:
        return self.count * self.seconds


def mean_seconds(kinds: Sequence[Kind]) -> float:
    return sum(kind.share * kind.seconds for kind in kinds)


def kinds_text(kinds: Sequence[Kind]) -> str:
    """What the mean of an update is made of; nothing where there is one kind alone."""
    if len(kinds) == 1:
        return ""
    return ", ".join(f"{percent(kind.share)} of {kind.what}: {moment(kind.seconds)}" for kind in kinds)


def time_lines(parts: Sequence[Part]) -> list[str]:
    """All that is counted, and each part that there is."""
    total = sum(part.total for part in parts)
    lines = [f"about {duration(total)}" if total >= 1 else duration(total)]
    for part in parts:
        if part.count:
            lines.append(f"{plural(part.count, part.one)} of {moment(part.seconds)}: {duration(part.total)}")
            lines += [f"  {part.made_of}"] if part.made_of else []
    return lines


# --------------------------------------------------------------------------------------------------------------- words


def size(n_bytes: int) -> str:
    """Bytes for people, in decimal units: 340 kB, 2.4 MB, 17 GB."""
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
class Looked:
    """A split with all its rows, and what the limits of length do to the rows that were looked at."""

    name: str
    rows: int
    cuts: Cuts


def table_of_splits(splits: Sequence[Looked]) -> list[str]:
    """A line for each split: rows, tokens of a row (mean and longest), what is cut, targets that are nothing."""
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
    return lines[:1] + [line + _looked_at(each) for line, each in zip(lines[1:], splits, strict=True)]


def _cells(lengths: Lengths) -> list[str]:
    return [f"{lengths.mean:.1f}", f"{lengths.longest:,}", percent(lengths.share)]


def _looked_at(split: Looked) -> str:
    return "" if split.cuts.inputs.n == split.rows else f"  (of {split.cuts.inputs.n:,} rows)"


def render(sections: Sequence[Section]) -> str:
    """The sections one below the other, their lines behind their words."""
    width = max(len(word) for word, _ in sections) + 2
    return "\n".join(
        f"{word if i == 0 else '':<{width}}{line}" for word, lines in sections for i, line in enumerate(lines)
    )
