"""Draw docs/pipeline.svg: the five stages and the files between them, for light and dark pages."""

from pathlib import Path

FILE = Path(__file__).resolve().parent / "pipeline.svg"
WIDTH, HEIGHT, BOX, GAP = 1_000, 190, 124, 51
BOXES = (  # title, lines below the title
    ("corpus", ("hub name, file,", "folder")),
    ("dataset", ("train dev test", "unlabeled ft")),
    ("teacher", ("best checkpoint", "on dev")),
    ("pseudo-targets", ("K per input, labeled", "and unlabeled")),
    ("dataset", ("train_0 …", "train_{K-1}")),
    ("student", ("model folder,", "scores, run.json")),
)
STAGES = ("prepare", "ft", "gen", "prepare", "kd")
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
  .title { font-weight: 600 } .small { font-size: 11px; fill: #59636e } .stage { fill: #0969da; font-weight: 600 }
  rect { fill: #f6f8fa; stroke: #59636e } path { stroke: #0969da; stroke-width: 1.5; fill: none }
  .tip { fill: #0969da; stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 } .stage, .tip { fill: #4493f8 }
    rect { fill: #151b23; stroke: #9198a1 } path { stroke: #4493f8 }
  }
"""


def drawing() -> str:
    """The SVG as text."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    parts.append("<title>corpus, dataset, teacher, pseudo-targets, merged dataset, student</title>")
    parts.append(f"<style>{STYLE}</style>")
    for i, (title, lines) in enumerate(BOXES):
        left = i * (BOX + GAP)
        middle = left + BOX / 2
        parts.append(f'<rect x="{left + 0.5}" y="60.5" width="{BOX - 1}" height="80" rx="8"/>')
        parts.append(f'<text class="title" x="{middle}" y="86">{title}</text>')
        parts += [f'<text class="small" x="{middle}" y="{106 + 17 * n}">{line}</text>' for n, line in enumerate(lines)]
    for i, stage in enumerate(STAGES):
        start = (i + 1) * BOX + i * GAP
        parts.append(f'<path d="M{start + 4} 100 H{start + GAP - 10}"/>')
        parts.append(f'<path class="tip" d="M{start + GAP - 12} 95 l9 5 l-9 5 z"/>')
        parts.append(f'<text class="stage" x="{start + GAP / 2}" y="50">{stage}</text>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")
