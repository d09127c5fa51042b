"""Write the results as a Markdown table, as JSON, as a plot, and between two markers of a document."""

import importlib.util
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.speed.rows import Row
from benchmarks.speed.workers import Measured

COLUMNS = ("row", "implementation", "tokens/s", "ours is", "s", "tokens", "peak GB", "% of the floor")
TEXT_COLUMNS = 2
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
PACKAGES = ("torch", "transformers", "ctranslate2", "trl")
Results = list[tuple[Row, list[Measured]]]


def table(results: Results) -> list[str]:
    """The lines of the Markdown table."""
    lines = [COLUMNS, *(line for row, measured in results for line in _cells(row, measured))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = [f"| {' | '.join(_padded(line, widths))} |" for line in lines]
    rule = ["-" * (width + 1) + ("-" if i < TEXT_COLUMNS else ":") for i, width in enumerate(widths)]
    return [text[0], f"|{'|'.join(rule)}|", *text[1:]]


def _padded(line: tuple[str, ...], widths: list[int]) -> Iterable[str]:
    for i, (cell, width) in enumerate(zip(line, widths, strict=True)):
        yield cell.ljust(width) if i < TEXT_COLUMNS else cell.rjust(width)


def _cells(row: Row, measured: list[Measured]) -> Iterable[tuple[str, ...]]:
    ours = measured[0].rate
    for i, each in enumerate(measured):
        if each.note or each.rate is None:
            yield (row.name, each.implementation, each.note, *[""] * (len(COLUMNS) - 3))
            continue
        yield (
            row.name,
            each.implementation,
            f"{each.rate:,.0f}",
            f"× {ours / each.rate:.2f}" if i and ours else "",
            f"{_median(each.seconds):.2f}",
            f"{_median(each.tokens):,.0f}",
            "" if each.peak is None else f"{max(0.0, each.peak) / 1e9:.2f}",
            "" if each.share_of_floor is None else f"{100 * each.share_of_floor:.0f}",
        )


def _median(values: list) -> float:
    from statistics import median

    return median(values)


def machine(device: str, threads: int) -> dict[str, Any]:
    """The machine and the package versions of the measurement."""
    return {
        "device": device,
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def summary(results: Results, where: dict[str, Any]) -> str:
    """The table, below a line about the machine and the versions."""
    limits = [
        each.limit for _, measured in results for each in measured if each.limit and "bf16" not in each.implementation
    ]
    limit = f", {_median(limits) / 1e9:,.0f} GFLOP/s of float32 matrix products" if limits else ""
    packages = ", ".join(f"{name} {where[name]}" for name in PACKAGES if where[name])
    first = f"{where['device']}, {where['processor']}, {where['threads']} threads{limit}; {packages}."
    return "\n".join([first, "", *table(results)]) + "\n"


def as_json(results: Results, where: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {
            "row": row.name,
            "implementation": each.implementation,
            "note": each.note,
            "seconds": each.seconds,
            "tokens": each.tokens,
            "tokens_per_second": each.rate,
            "peak_bytes_above_models": each.peak,
            "flops_per_token": each.flops_per_token,
            "limit_flops_per_second": each.limit,
            "share_of_floor": each.share_of_floor,
        }
        for row, measured in results
        for each in measured
    ]
    return {"machine": where, "rows": rows}


def between_markers(document: str, text: str) -> str:
    """The document with `text` between its markers. Raises ValueError unless it has each marker exactly once."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise ValueError(f"the document needs exactly one {BEGIN}, followed by exactly one {END}")
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{rest.split(END)[1]}"


def plot(results: Results, path: Path) -> bool:
    """Plot tokens per second and peak memory, one bar per implementation; False if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    bars = [(row.name, each, i == 0) for row, measured in results for i, each in enumerate(measured)]
    figure, panels = pyplot.subplots(1, 2, sharey=True, figsize=(12, 1.5 + 0.32 * len(bars)), layout="constrained")
    labels = [f"{name}  {each.implementation}" for name, each, _ in bars]
    colors = ["tab:blue" if first else "lightgray" for _, _, first in bars]
    titles = ("tokens per second", "peak memory above the models, GB")
    rates = [0 if each.note else each.rate or 0 for _, each, _ in bars]
    values = (rates, [(each.peak or 0) / 1e9 for _, each, _ in bars])
    for panel, title, numbers in zip(panels, titles, values, strict=True):
        panel.barh(range(len(bars)), numbers, color=colors)
        panel.set_xlabel(title)
        panel.spines[["top", "right"]].set_visible(False)
        for place, (number, (_, each, _)) in enumerate(zip(numbers, bars, strict=True)):
            text = f" {number:,.0f}" if number >= 100 else f" {number:.2f}"
            panel.text(number, place, text if number else f" {each.note.partition(':')[0] or '–'}", va="center", size=8)
        panel.margins(x=0.15)
    panels[0].set_yticks(range(len(bars)), labels)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
