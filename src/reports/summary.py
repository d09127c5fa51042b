"""The question and the answer of a comparison, in plain sentences."""

from src.reports.comparison import Comparison, Row
from src.reports.methods import BASELINE, TEACHER
from src.reports.statistics import Mean
from src.reports.tables import decimals


def summary(comparison: Comparison) -> str:
    """What was compared, and the best student: its scores, its share of the gap, its size and speed."""
    n_runs = sum(len(row.method.runs) for row in comparison.rows)
    asked = (
        f"{_count(n_runs, 'run')} of {_count(len(comparison.rows), 'method')} on {comparison.n_test_rows:,} test rows."
    )
    best = comparison.best
    if best is None:
        return f"{asked} None of them distills, so there is no gap to close."
    method, score = best.method, comparison.main
    shown = [f"{score} {_shown(best.scores[score], score)}"]
    for name, other in ((TEACHER, method.teacher), (BASELINE, method.baseline)):
        row = comparison.row_of(other)
        if row is not None and score in row.scores:
            shown.append(f"{name} {_shown(row.scores[score], score)}")
    sentence = f"Best student on test: method {method.number}, {method.label} ({', '.join(shown)})"
    if score in best.gaps:
        sentence += f"; it closes {best.gaps[score].value:.0f} % of the gap"
    others = [f"{name} {_shown(mean, name)}" for name, mean in best.scores.items() if name != score]
    rest = f" Its other scores: {', '.join(others)}." if others else ""
    return f"{asked} {sentence}.{rest}{_sizes(best, comparison.row_of(method.teacher))}"


def _sizes(best: Row, teacher: Row | None) -> str:
    """Size and speed, as a share or a multiple of the teacher's."""
    told = []
    for key, unit, form in (
        ("parameters", "parameters", ",.0f"),
        ("latency", "ms per input", ",.1f"),
        ("speed", "sentences/s", ",.1f"),
    ):
        value = getattr(best.size, key)
        if value is None:
            continue
        goal = getattr(teacher.size, key) if teacher else None
        compared = f" ({value / goal:.2f} times the teacher's {goal:{form}})" if goal else ""
        told.append(f"{value:{form}} {unit}{compared}")
    return f" It has {', '.join(told)}." if told else ""


def _shown(mean: Mean, score: str) -> str:
    deviation = "" if mean.deviation is None else f" ± {mean.deviation:.{decimals(score)}f}"
    return f"{mean.value:.{decimals(score)}f}{deviation}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s'[: n != 1]}"
