"""Figures as SVG by matplotlib: legible in light and dark, in color and in black and white.

Colors are CSS variables, so that the page that holds a figure decides on them; lines and markers differ too.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, GRID = "#1a1b1c", "#c8c9ca"
PALETTE = ("#0072b2", "#c44e00", "#007a5a", "#a83287", "#7a5c00", "#5b4fc4", "#b0203a", "#4a6a7a")
VARIABLES = {INK: "--ink", GRID: "--grid"} | {color: f"--c{i}" for i, color in enumerate(PALETTE)}
DARK = (  # in the order of VARIABLES
    "#e8e8e8", "#45484b", "#6cb8f0", "#ff9a5c", "#4fd1a5", "#f08ad0", "#e0c050", "#a9a0ff", "#ff8090", "#a8c4d4"
)  # fmt: skip
LIGHT_SHEET, DARK_SHEET = (
    " ".join(f"{name}: {color};" for name, color in zip(VARIABLES.values(), colors, strict=True))
    for colors in (VARIABLES, DARK)
)
COLORS = f":root {{ {LIGHT_SHEET} }} @media (prefers-color-scheme: dark) {{ :root {{ {DARK_SHEET} }} }}"
SVG_STYLE = "svg { font-family: sans-serif; stroke-linejoin: round; }"
REPLACED = (  # in matplotlib's SVG: what a page does not need
    (r"<metadata>.*?</metadata>|<!--.*?-->", ""),
    (r">\s+<", "><"),
    (r"\s*\n", ""),
    (r' id="(?![mp][0-9a-f]{10}")[^"]*"', ""),
    (r"font-family: [^;]*; ", ""),
    (r' transform="rotate\(-?0 [^)]*\)"', ""),
    (r"xlink:href", "href"),
)
MARKERS, LINES = "osD^vPX*", ("-", "--", "-.", ":")
STYLE: Any = {
    "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": GRID,
    "grid.linewidth": 0.5, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "axes.titlesize": 9, "text.parse_math": False,
}  # fmt: skip


def look(number: int) -> dict[str, Any]:
    """Color, marker and line of a method or family; the same in every figure."""
    i = number - 1
    return {"color": PALETTE[i % 8], "marker": MARKERS[(i + i // 8) % 8], "linestyle": LINES[i % 4]}


@contextmanager
def svg_figure(title: str, width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure to draw on, and a list that holds its SVG after the block; width and height in inches."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):
        figure = Figure((width, height), layout="constrained")
        written: list[str] = []
        yield figure, written
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        written.append(_clean(file.getvalue(), title))


def _clean(svg: str, title: str) -> str:
    """A small SVG element with a title, and with variables for its colors; font and joins are left to style sheets."""
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None
    drawn = svg[svg.index("</defs>") + len("</defs>") :]  # after matplotlib's style sheet
    for pattern, replacement in REPLACED:
        drawn = re.sub(pattern, replacement, drawn, flags=re.DOTALL)
    drawn = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda place: re.sub(r"(\d\.\d)\d+", r"\1", place[0]), drawn)
    for color, variable in VARIABLES.items():
        drawn = drawn.replace(color, f"var({variable})")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" viewBox="{size[0][9:-1]}"'
    return f'{head} style="max-width: {float(size[1]):.0f}pt">{drawn.strip()}'


def standalone(svg: str) -> str:
    """A figure as a file of its own, which follows the reader's choice of light or dark."""
    return svg.replace(">", f"><style>{COLORS} {SVG_STYLE}</style>", 1) + "\n"
