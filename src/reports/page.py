"""The page: one HTML file with everything in it, from the comparisons and the template page.html."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.reports import plots
from src.reports.collect import Collection
from src.reports.comparison import Comparison
from src.reports.examples import Example, examples_of
from src.reports.provenance import Made, how_made, time_table
from src.reports.statistics import Bootstrap
from src.reports.summary import summary
from src.reports.svg import COLORS, SVG_STYLE
from src.reports.tables import Table, left_out, tables_of

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Section:
    """A comparison as the page shows it. figures: SVG by caption. curves: SVG by method."""

    comparison: Comparison
    summary: str
    tables: list[Table]
    figures: dict[str, Markup]
    curves: dict[str, Markup]
    examples: list[Example]
    examples_note: str


def write_page(
    comparisons: Iterable[Comparison], collection: Collection, *, n_examples: int, bootstrap: Bootstrap
) -> str:
    """The page's text."""
    sections = [_section(comparison, n_examples, bootstrap) for comparison in comparisons]
    made: list[Made] = [how_made(run) for run in collection.runs]
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE).render(
        sections=sections,
        left_out=left_out(collection),
        made=made,
        time=time_table(collection.runs),
        colors=Markup(COLORS),  # ours, not from a run
        svg_style=Markup(SVG_STYLE),
    )


def _section(comparison: Comparison, n_examples: int, bootstrap: Bootstrap) -> Section:
    n_lines = len(comparison.rows)
    most = f" Of {n_lines} methods, the best {plots.MOST_LINES}." if n_lines > plots.MOST_LINES else ""
    figures = {
        f"Gap closed by number of pseudo-targets. Bars: standard deviation over seeds.{most}": plots.gap_figure(
            comparison
        ),
        f"{comparison.main} on dev, mean over seeds.{most}": plots.overview_figure(comparison),
        "Quality against cost. Numbers: methods. Circles, dashed line: the Pareto front.": plots.pareto_figure(
            comparison
        ),
    }
    curves = {f"{each.number} {each.label}": plots.curves(comparison, each) for each in comparison.methods}
    examples, note = examples_of(comparison, n_examples, bootstrap)
    return Section(
        comparison, summary(comparison), tables_of(comparison), _drawn(figures), _drawn(curves), examples, note
    )


def _drawn(figures: dict[str, str | None]) -> dict[str, Markup]:
    """The figures that exist, marked as SVG: matplotlib has escaped their texts."""
    return {caption: Markup(svg) for caption, svg in figures.items() if svg is not None}


def as_markdown(comparisons: Iterable[Comparison], collection: Collection) -> str:
    """The tables of the page."""
    parts = ["# Report"]
    for comparison in comparisons:
        parts += [f"## {comparison.title}", summary(comparison), *comparison.notes]
        for table in tables_of(comparison):
            parts += [f"### {table.title}", table.as_markdown(), table.note]
    for table in (*left_out(collection), time_table(collection.runs)):
        if table.rows:
            parts += [f"## {table.title}", table.as_markdown()]
    return "\n\n".join(filter(None, parts)) + "\n"
