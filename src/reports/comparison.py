"""The runs of one test set, compared: methods with their statistics, and what can be said of them."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.config.constants import LOWER_IS_BETTER
from src.config.errors import UserError
from src.config.parsing import nearest
from src.reports.collect import Run
from src.reports.methods import STUDENT, Method, assign_roles, group_by_method, set_labels
from src.reports.sizes import Profile, Size, size_of
from src.reports.sources import count_pseudo_targets
from src.reports.statistics import Bootstrap, Difference, Mean, Wins, gap_closed

SHOWN = re.compile(r"(?!ppl$|rouge._[pr]$|bertscore_(precision|recall)$)")  # scores that say what no other does


@dataclass(frozen=True)
class Row:
    """A method's statistics, by score; a score that it has not is absent. wins, differences: against the baseline."""

    method: Method
    size: Size
    scores: dict[str, Mean]
    gaps: dict[str, Mean]
    differences: dict[str, Difference]
    wins: Wins | None

    def values(self, score: str) -> list[float]:
        """A score by seed."""
        return _values(self.method, score)


@dataclass(frozen=True)
class Comparison:
    """Methods that were tested on the same rows.

    name: of the dataset. scores: their names, the one that ranks first. notes: what a reader has to know.
    """

    name: str
    rows: list[Row]
    scores: list[str]
    n_test_rows: int
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"Dataset {self.name}"

    @property
    def main(self) -> str:
        """The score that ranks."""
        return self.scores[0]

    @property
    def methods(self) -> list[Method]:
        return [row.method for row in self.rows]

    @property
    def students(self) -> list[Row]:
        return [row for row in self.rows if row.method.role == STUDENT]

    @property
    def best(self) -> Row | None:
        """The student with the best main score on the test."""
        sign = -1 if self.main in LOWER_IS_BETTER else 1
        scored = [row for row in self.students if self.main in row.scores]
        return max(scored, key=lambda row: sign * row.scores[self.main].value, default=None)

    def row_of(self, method: Method | None) -> Row | None:
        return next((row for row in self.rows if row.method is method), None)


def build_comparisons(
    runs: Iterable[Run], profiles: Sequence[Profile], *, score: str | None, bootstrap: Bootstrap
) -> list[Comparison]:
    """A comparison for each test set, those with students first.

    score: the one that ranks; None: the --metric_for_best_model of most students. Raises UserError if no run has it.
    """
    by_test: dict[tuple, list[Run]] = {}
    for run in runs:
        by_test.setdefault(tuple(map(tuple, run.references)), []).append(run)
    known = {name for each in by_test.values() for run in each for name in run.scores}
    if score is not None and score not in known:
        raise UserError(
            f"--score {score}: no run has this score; nearest: {nearest(score, known)!r} of {' '.join(sorted(known))}"
        )
    comparisons = [_comparison(each, profiles, score, bootstrap) for each in by_test.values()]
    return sorted(comparisons, key=lambda each: -len(each.students))


def _comparison(runs: list[Run], profiles: Sequence[Profile], score: str | None, bootstrap: Bootstrap) -> Comparison:
    notes = list(_other_definitions(runs))
    methods = group_by_method(runs)
    assign_roles(methods)
    for method in methods:
        if method.is_distilled:
            method.n_pseudo_targets = count_pseudo_targets(method.first)
        for run in method.repeated:
            notes.append(
                f"{run.folder} is left out: {method.first.folder.parent} has these flags and this seed already"
            )
    set_labels(methods)
    methods.sort(key=lambda each: each.number)
    scores = _score_names(methods, score)
    notes += _missing(methods)
    rows = [_row(method, scores, size_of(method.first, profiles), bootstrap) for method in methods]
    return Comparison(_name(methods), rows, scores, len(runs[0].references), notes)


def _score_names(methods: Sequence[Method], score: str | None) -> list[str]:
    """The scores that are shown, the one that ranks first."""
    names = list(dict.fromkeys(name for method in methods for name in method.first.scores if SHOWN.match(name)))
    learners = [each for each in methods if each.role == STUDENT] or list(methods)
    wanted = [run.flags["metric_for_best_model"] for method in learners for run in method.runs]
    main = next(
        (name for name in (score, *(name for name, _ in Counter(wanted).most_common())) if name in names), names[0]
    )
    return [main, *(name for name in names if name != main)]


def _row(method: Method, scores: Sequence[str], size: Size, bootstrap: Bootstrap) -> Row:
    means, gaps, differences, wins = {}, {}, {}, None
    for score in scores:
        values = _values(method, score)
        mean = Mean.of(values)
        if mean is None:
            continue
        means[score] = mean
        start, goal = (Mean.of(_values(each, score)) if each else None for each in (method.baseline, method.teacher))
        gap = gap_closed(values, start.value, goal.value, score) if start and goal else None
        if gap is not None:
            gaps[score] = gap
        pairs = _pairs(method, score)
        difference = bootstrap.difference(pairs, score) if pairs else None
        if difference is not None:
            differences[score] = difference
    if method.baseline is not None:
        wins = bootstrap.wins(_pairs(method))
    return Row(method, size, means, gaps, differences, wins)


def _values(method: Method, score: str) -> list[float]:
    return [value for run in method.runs if (value := run.scores.get(score)) is not None]


def _pairs(method: Method, score: str | None = None) -> list[tuple[Run, Run]]:
    """Each run of a method with the baseline's run of the same seed, or else with its first; of runs with `score`."""
    if method.baseline is None:
        return []
    by_seed = {run.seed: run for run in method.baseline.runs}
    pairs = [(run, by_seed.get(run.seed, method.baseline.first)) for run in method.runs]
    return [pair for pair in pairs if score is None or all(each.scores.get(score) is not None for each in pair)]


def _missing(methods: Sequence[Method]) -> Iterable[str]:
    students = [each for each in methods if each.role == STUDENT]
    for name in ("teacher", "baseline"):
        lacking = [each.label for each in students if getattr(each, name) is None]
        if lacking:
            what = "run that trained or scored the teacher" if name == "teacher" else "run that fine-tuned the student"
            yield f"No gap for {'; '.join(lacking)}: no finished {what} on this test set is in the folders."


def _other_definitions(runs: list[Run]) -> Iterable[str]:
    """Remove scores that are defined otherwise than in most runs, and say so."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for name in filter(SHOWN.match, run.scores):
            if _definition(run, name):
                counts.setdefault(name, Counter())[_definition(run, name)] += 1
    for name, definitions in counts.items():
        usual = definitions.most_common(1)[0][0]
        for run in runs:
            if name in run.scores and _definition(run, name) not in ("", usual):
                yield f"{name} of {run.folder} is left out: it is `{_definition(run, name)}`, elsewhere `{usual}`."
                del run.scores[name]


def _definition(run: Run, score: str) -> str:
    """What a score is, without the version of the package that computed it."""
    return re.sub(r"\|version:[^|]*", "", run.records.description.score_definitions.get(score, ""))


def _name(methods: Sequence[Method]) -> str:
    """The dataset's file, as the run nearest to the original data names it."""
    return Path(
        str(methods[1 if len(methods) > 1 and methods[1].role == "fine-tuned student" else 0].value("dataset_path"))
    ).name
