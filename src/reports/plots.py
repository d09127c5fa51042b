"""Figures of a comparison: gap closed, learning curves, quality against cost."""

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from src.config.constants import DEV, LOWER_IS_BETTER
from src.reports.collect import Run
from src.reports.comparison import Comparison, Row
from src.reports.methods import Method
from src.reports.svg import INK, look, svg_figure

NOT_LOSSES = ("phase", "learned", "epoch", "step", "learning_rate", "loss", "gradient_norm", "skipped")
MOST_LINES = 16  # that can be told apart in a figure
PARETO_AXES = {"latency": "latency, ms", "parameters": "parameters", "memory": "peak memory, MB"}


def gap_figure(comparison: Comparison) -> str | None:
    """The share of the gap closed by number of pseudo-targets, a line for each method; None without any gap."""
    rows = _best([row for row in comparison.students if comparison.main in row.gaps], comparison.main)
    if not rows:
        return None
    counts = sorted({row.method.n_pseudo_targets for row in rows}, key=lambda count: -1 if count is None else count)
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.method.family, []).append(row)
    with svg_figure("Share of the gap closed by number of pseudo-targets", 6.8, 3.9) as (figure, written):
        axes = figure.add_subplot()
        for height, name in ((0, "fine-tuned student"), (100, "teacher")):
            axes.axhline(height, color=INK, linewidth=1, linestyle=(0, (6, 2)))
            axes.annotate(name, (1, height), xycoords=("axes fraction", "data"), xytext=(0, 3),
                          textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
        for number, (name, members) in enumerate(families.items(), start=1):
            offset = (number - (len(families) + 1) / 2) * min(0.1, 0.6 / len(families))
            places = [counts.index(row.method.n_pseudo_targets) + offset for row in members]
            gaps = [row.gaps[comparison.main] for row in members]
            axes.errorbar(places, [gap.value for gap in gaps], [gap.deviation or 0 for gap in gaps], capsize=3,
                          label=name, markersize=6, **look(number))  # fmt: skip
        axes.set_xticks(range(len(counts)), ["?" if count is None else f"{count:,}" for count in counts])
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.set_xlabel("pseudo-targets for each input")
        axes.set_ylabel(f"gap closed, % ({comparison.main})")
        if len(families) > 1:
            _legend(figure, axes)
        else:
            axes.set_title(next(iter(families)), loc="left")
    return written[0]


def overview_figure(comparison: Comparison) -> str | None:
    """The main score on dev while training, a line for each trained method; None if no run was evaluated on dev."""
    rows = _best(
        [row for row in comparison.rows if any(_points(run, comparison.main) for run in row.method.runs)],
        comparison.main,
    )
    if not rows:
        return None
    with svg_figure(f"{comparison.main} on dev while training", 6.8, 3.9) as (figure, written):
        axes = figure.add_subplot()
        for row in rows:
            style = look(row.method.number)
            points = _mean_points([_points(run, comparison.main) for run in row.method.runs])
            axes.plot(*_columns(points), label=f"{row.method.number} {_cut(row.method.label)}", linewidth=1.6,
                      markevery=max(1, len(points) // 8), markersize=5, **style)  # fmt: skip
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(_direction(comparison.main, "on dev"))
        _legend(figure, axes)
    return written[0]


def _best(rows: list[Row], score: str) -> list[Row]:
    """The MOST_LINES best rows on test, in their order."""
    sign = 1 if score in LOWER_IS_BETTER else -1
    ranked = sorted(rows, key=lambda row: sign * row.scores[score].value if score in row.scores else float("inf"))
    return [row for row in rows if row in ranked[:MOST_LINES]]


def curves(comparison: Comparison, method: Method) -> str | None:
    """Dev scores, losses and learning rate of a method while it trained: seeds thin, their mean thick."""
    scores = list(dict.fromkeys([comparison.main, *comparison.scores]))
    scores = [scores[0], "nll"] if scores[0] != "nll" else [*scores[1:2], "nll"]
    scores = [score for score in scores if any(_points(run, score) for run in method.runs)]
    losses = [run for run in method.runs if run.records.losses]
    if not scores and not losses:
        return None
    n_panels = len(scores) + 2 * bool(losses)
    with svg_figure(f"Learning curves of {method.label}", 2.9 * n_panels, 2.5) as (figure, written):
        panels = iter(figure.subplots(1, n_panels, squeeze=False)[0])
        for score in scores:
            _panel(next(panels), _direction(score, "on dev"), [[_points(run, score) for run in method.runs]], [""])
        if losses:
            names = [name for name in _terms(losses) if any(_losses(run, name) for run in losses)]
            _panel(next(panels), "training loss", [[_losses(run, name) for run in losses] for name in names], names)
            _panel(next(panels), "learning rate", [[_losses(run, "learning_rate") for run in losses]], [""])
    return written[0]


def pareto_figure(comparison: Comparison) -> str | None:
    """Quality against latency, size and memory, with the Pareto front; None without two points on an axis."""
    axes_of = {
        key: [row for row in comparison.rows if getattr(row.size, key) is not None and comparison.main in row.scores]
        for key in PARETO_AXES
    }
    shown = {key: rows for key, rows in axes_of.items() if len(rows) > 1}
    if not shown:
        return None
    with svg_figure("Quality against cost", 3.4 * max(2, len(shown)), 3.2) as (figure, written):
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (key, rows) in zip(panels, shown.items(), strict=True):
            costs = [getattr(row.size, key) for row in rows]
            values = [row.scores[comparison.main].value for row in rows]
            for row, cost, value in zip(rows, costs, values, strict=True):
                axes.plot([cost], [value], markersize=7, **look(row.method.number) | {"linestyle": ""})
                axes.annotate(str(row.method.number), (cost, value), xytext=(6, 4), textcoords="offset points")
            front = pareto_front(costs, values, lower_is_better=comparison.main in LOWER_IS_BETTER)
            axes.plot(*_columns(sorted((costs[i], values[i]) for i in front)), color=INK, linewidth=1,
                      linestyle="--", marker="o", markersize=13, markerfacecolor="none", zorder=1)  # fmt: skip
            axes.set_xlabel(PARETO_AXES[key])
            axes.margins(0.15)
            axes.set_xlim(0, max(costs) * 1.15)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            if comparison.main in LOWER_IS_BETTER:
                axes.invert_yaxis()
        panels[0].set_ylabel(_direction(comparison.main, "on test"))
    return written[0]


def pareto_front(costs: Sequence[float], values: Sequence[float], *, lower_is_better: bool) -> list[int]:
    """The points that no other beats: none is as cheap and as good, and better in one of the two."""
    gains = [-value if lower_is_better else value for value in values]
    points = list(zip(costs, gains, strict=True))
    return [
        i
        for i, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    ]


# ------------------------------------------------------------------------------------------------------------- points

Points = list[tuple[float, float]]  # epoch, value


def _points(run: Run, score: str) -> Points:
    """A score on dev by epoch, counted from 0."""
    return _by_epoch([row for row in run.records.scores if row["split"] == DEV], score)


def _losses(run: Run, name: str) -> Points:
    return _by_epoch(run.records.losses, name)


def _by_epoch(rows: Sequence[dict[str, Any]], name: str) -> Points:
    """An epoch's last row stands at its end, the others where their step is between."""
    last: dict[int, int] = {}
    for row in rows:
        last[row["epoch"]] = max(last.get(row["epoch"], 0), row["step"])
    return [
        (row["epoch"] + (row["step"] + 1) / (last[row["epoch"]] + 1), row[name])
        for row in rows
        if row.get(name) is not None
    ]


def _mean_points(series: Iterable[Points]) -> Points:
    """The mean over seeds where all are, that is, up to the end of the shortest."""
    tables = [dict(points) for points in series if points]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [(place, sum(table[place] for table in tables) / len(tables)) for place in shared]


def _terms(runs: Iterable[Run]) -> list[str]:
    """The loss terms in a run's log, and their sum if there are several."""
    terms = list(dict.fromkeys(name for run in runs for name in run.records.losses[0] if name not in NOT_LOSSES))
    return ["loss", *terms] if len(terms) > 1 else terms


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


# ------------------------------------------------------------------------------------------------------------ drawing


def _panel(axes: Axes, title: str, series: Sequence[Sequence[Points]], names: Sequence[str]) -> None:
    """Series of curves, one for each name: a thin line for each seed, a thick one for their mean."""
    for number, (name, seeds) in enumerate(zip(names, series, strict=True), start=1):
        style = look(number) | {"marker": ""}
        for points in seeds:
            if len(seeds) > 1:
                axes.plot(*_columns(points), linewidth=0.6, alpha=0.6, **style | {"linestyle": "-"})
        axes.plot(*_columns(_mean_points(seeds)), linewidth=1.8, label=name, **style)
    axes.set_title(title, loc="left")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(names) > 1:
        axes.legend(fontsize=7)


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", fontsize=8, handlelength=3,
                  ncols=1 if len(axes.get_legend_handles_labels()[1]) < 7 else 2)  # fmt: skip


def _direction(score: str, where: str) -> str:
    return f"{score} {where} ({'lower' if score in LOWER_IS_BETTER else 'higher'} is better)"


def _cut(label: str) -> str:
    return label if len(label) < 60 else f"{label[:57]}..."
