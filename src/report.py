"""Stage: compare finished runs, in the terminal or on a page."""

import csv
from importlib.util import find_spec
from pathlib import Path

from src.config.console import say
from src.config.errors import UserError
from src.config.flags.report import CompareArguments, ReportArguments
from src.reports.collect import Collection, collect
from src.reports.comparison import Comparison, build_comparisons
from src.reports.sizes import read_profiles
from src.reports.statistics import Bootstrap
from src.reports.summary import summary
from src.reports.tables import csv_rows, left_out, tables_of
from src.storage.atomic import atomic_write, check_writable


def compare(config: CompareArguments) -> str:
    """Print the tables of all runs in `config.output_dirs`, and return them. Raises UserError for a folder without."""
    collection, comparisons = read_comparisons(config, Bootstrap(config.seed))
    parts = []
    for comparison in comparisons:
        parts.append(f"{comparison.title}\n{summary(comparison)}")
        parts += [f"{table.title}\n{table.as_text()}" for table in tables_of(comparison)]
        parts += comparison.notes
    parts += [f"{table.title}\n{table.as_text()}" for table in left_out(collection)]
    text = "\n\n".join(parts)
    say(text)
    return text


def report(config: ReportArguments) -> Path:
    """Write the page and its tables, and the picture if asked for; returns the page's path.

    Raises UserError for a folder without runs, a missing package, or a file that cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise UserError("report_main.py needs the package matplotlib; run pip install -r requirements-comparison.txt")
    from src.reports.page import as_markdown, write_page
    from src.reports.plots import gap_figure
    from src.reports.svg import standalone

    for flag, path in (("output_file", config.output_file), ("picture", config.picture)):
        if path is not None:
            _check_place(flag, Path(path))
    bootstrap = Bootstrap(config.seed)
    collection, comparisons = read_comparisons(config, bootstrap)
    page, picture = Path(config.output_file), None
    if config.picture is not None:
        picture = next(filter(None, map(gap_figure, comparisons)), None)
        if picture is None:
            raise UserError(
                f"--picture {config.picture}: no method has a gap; see docs/reports.md for the runs it needs"
            )
    with atomic_write(page) as file:
        file.write(write_page(comparisons, collection, n_examples=config.n_examples, bootstrap=bootstrap))
    with atomic_write(page.with_suffix(".md")) as file:
        file.write(as_markdown(comparisons, collection))
    rows = list(csv_rows(comparisons))
    with atomic_write(page.with_suffix(".csv")) as file:
        writer = csv.DictWriter(file, rows[0] if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if picture is not None:
        with atomic_write(str(config.picture)) as file:
            file.write(standalone(picture))
    say(str(page))
    return page


def _check_place(flag: str, path: Path) -> None:
    """Raise UserError if a file cannot be written there."""
    file = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if file is not None or path.is_dir():
        raise UserError(f"--{flag} {path}: cannot be written: {file or path} is a {'file' if file else 'folder'}")
    check_writable(path.parent)


def read_comparisons(config: CompareArguments, bootstrap: Bootstrap) -> tuple[Collection, list[Comparison]]:
    """What the folders hold, and the comparisons of the runs that can be compared."""
    collection = collect(config.output_dirs)
    files = collection.profiles if config.profile_files is None else config.profile_files
    return collection, build_comparisons(
        collection.compared, read_profiles(files), score=config.score, bootstrap=bootstrap
    )
