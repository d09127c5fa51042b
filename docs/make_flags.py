"""Write docs/flags.md: every flag of every script, from the dataclasses in src/config/flags/."""

import sys
from dataclasses import fields
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from src.config.flags import base, create_student, generate, prepare, profile, report, shared, study, train  # noqa: E402  (needs the path above)

HEAD = """# Every flag

`python docs/make_flags.py` generates this page from `src/config/flags/`. `--help` shows the same text.

Booleans are `True` or `False`; a flag without a value means `True`. List items are separated by spaces.

**One file for all scripts.** Every script accepts `--config FILE.yaml`, a file with the same flags; the command line
overrides it. It may hold flags of all scripts: each script skips those that it does not have. A section named after a
script holds what only this script should see, and overrides the rest. A key that no script knows is refused.

```yaml
# all.yaml: python ft_main.py --config all.yaml
max_input_length: 128            # in tokens
batch_size: 32
metrics: [sacrebleu, rouge]
prepare_datasets_main:
  dataset_path: news.csv
  text_column: article
  max_input_length: 90           # in words
  output_dir: datasets/original
ft_main:
  dataset_path: datasets/original/dataset.json
  output_dir: outputs/teacher
```

The `run.json` of an earlier run is a `--config` too: its flags are used, without `output_dir` and `overwrite`.
"""
TITLES = {  # in the order of the page; None: the title is the name of the script
    base.Arguments: "Every script",
    base.DataArguments: "Scripts that read texts",
    base.TokenizerArguments: "Scripts that tokenize texts",
    prepare.PrepareArguments: None,
    create_student.CreateStudentArguments: None,
    profile.ProfileArguments: None,
    shared.SharedArguments: "Scripts that train or generate",
    shared.TrainingArguments: "Scripts that train",
    train.FineTuneArguments: None,
    generate.WritingArguments: "Scripts that generate",
    generate.GenerateArguments: None,
    generate.SimulateApiArguments: None,
    train.DistillStoredArguments: "Scripts that distill",
    train.DistillArguments: None,
    study.StudyArguments: None,
    report.CompareArguments: "Scripts that compare runs",
    report.ReportArguments: None,
}


def page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(_section(kind, title) for kind, title in TITLES.items())])


def _section(kind: type[base.Arguments], title: str | None) -> str:
    """The flags that an arguments class adds or overrides."""
    scripts = sorted({each.script for each in TITLES if issubclass(each, kind) and hasattr(each, "script")})
    named = ", ".join(f"`{script}`" for script in scripts)
    heading = named if title is None else f"{title}: {named}"
    rows = [_row(each) for each in fields(kind) if each.name in vars(kind).get("__annotations__", {})]
    return "\n".join([f"## {heading}\n", "| flag | default | meaning |", "|---|---|---|", *rows, ""])


def _row(flag) -> str:
    default = "required" if flag.default is base.REQUIRED else f"`{_shown(flag.default)}`"
    choices = flag.metadata["limits"]["choices"]
    named = ", ".join(f"`{choice}`" if choice else '`""`' for choice in choices or ())
    one_of = f" One of: {named}." if named else ""
    name = flag.name if flag.metadata["positional"] else f"--{flag.name}"
    return f"| `{name}` | {default} | {flag.metadata['sentence']}{one_of} |"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    (FOLDER / "flags.md").write_text(page(), encoding="utf-8")
