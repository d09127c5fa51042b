"""The page: one HTML file with everything in it, from the studies and the template page.html."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from src.reports import plots
from src.reports.collect import Collection
from src.reports.examples import Example, examples_of
from src.reports.provenance import Made, how_made, time_table
from src.reports.statistics import Bootstrap
from src.reports.study import Study
from src.reports.summary import summary
from src.reports.svg import COLORS, SVG_STYLE
from src.reports.tables import Table, left_out, tables_of

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Section:
    """A study as the page shows it. figures: SVG by caption. curves: SVG by method."""

    study: Study
    summary: str
    tables: list[Table]
    figures: dict[str, Markup]
    curves: dict[str, Markup]
    examples: list[Example]
    examples_note: str


def write_page(studies: Iterable[Study], collection: Collection, *, n_examples: int, bootstrap: Bootstrap) -> str:
    """The page's text."""
    sections = [_section(study, n_examples, bootstrap) for study in studies]
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


def _section(study: Study, n_examples: int, bootstrap: Bootstrap) -> Section:
    n_lines = len(study.rows)
    most = f" Of {n_lines} methods, the best {plots.MOST_LINES}." if n_lines > plots.MOST_LINES else ""
    figures = {
        f"Gap closed by number of pseudo-targets. Bars: standard deviation over seeds.{most}": plots.gap_figure(study),
        f"{study.main} on dev, mean over seeds.{most}": plots.overview_figure(study),
        "Quality against cost. Numbers: methods. Circles, dashed line: the Pareto front.": plots.pareto_figure(study),
    }
    curves = {f"{each.number} {each.label}": plots.curves(study, each) for each in study.methods}
    examples, note = examples_of(study, n_examples, bootstrap)
    return Section(study, summary(study), tables_of(study), _drawn(figures), _drawn(curves), examples, note)


def _drawn(figures: dict[str, str | None]) -> dict[str, Markup]:
    """The figures that exist, marked as SVG: matplotlib has escaped their texts."""
    return {caption: Markup(svg) for caption, svg in figures.items() if svg is not None}


def as_markdown(studies: Iterable[Study], collection: Collection) -> str:
    """The tables of the page."""
    parts = ["# Report"]
    for study in studies:
        parts += [f"## {study.title}", summary(study), *study.notes]
        for table in tables_of(study):
            parts += [f"### {table.title}", table.as_markdown(), table.note]
    for table in (*left_out(collection), time_table(collection.runs)):
        if table.rows:
            parts += [f"## {table.title}", table.as_markdown()]
    return "\n\n".join(filter(None, parts)) + "\n"
