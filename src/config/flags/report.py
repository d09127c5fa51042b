"""Flags of compare_main.py and report_main.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from src.config.errors import UserError
from src.config.flags.base import EVALUATION, FILES, REQUIRED, Arguments, flag


@dataclass(frozen=True, kw_only=True)
class CompareArguments(Arguments):
    r"""Compare finished runs in the terminal: scores, deviation over seeds, share of the gap closed, flags that differ.

    Reads   the run.json, scores and test predictions of every run in OUTPUT_DIRS and the folders below.
    Writes  nothing.

    Example:
      python compare_main.py outputs
    """

    script: ClassVar[str] = "compare_main.py"

    output_dirs: tuple[str, ...] = flag(
        REQUIRED, "Folders of runs (their --output_dir), or folders that hold such folders.", FILES, positional=True
    )
    score: str | None = flag(
        None,
        "Score that ranks the methods, such as sacrebleu or nll. None means the students' --metric_for_best_model.",
        EVALUATION,
    )
    profile_files: tuple[str, ...] | None = flag(
        None,
        "Files (JSON) of profile_main.py with the models' speed and memory. None means every profile.json in "
        "OUTPUT_DIRS and the folders below.",
        FILES,
    )


@dataclass(frozen=True, kw_only=True)
class ReportArguments(CompareArguments):
    r"""Write one web page about finished runs: scores, curves, figures, examples, and how each run was made.

    Reads   every run in OUTPUT_DIRS and the folders below; their dataset files, for the inputs of the examples.
    Writes  --output_file, and the tables beside it as Markdown (.md) and CSV (.csv).

    Example:
      python report_main.py outputs --output_file outputs/report.html
    """

    script: ClassVar[str] = "report_main.py"

    output_file: str = flag(REQUIRED, "Page to write (.html); it needs no other file and no network.", FILES)
    picture: str | None = flag(
        None, "Also write the figure of the gap closed alone to this file (.svg). None means no such file.", FILES
    )
    n_examples: int = flag(
        100, "Test rows to show per dataset: those where the students differ most from the teacher.", EVALUATION,
        minimum=0,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        for name, ending in (("output_file", ".html"), ("picture", ".svg")):
            value = getattr(self, name)
            if value is not None and Path(value).suffix != ending:
                raise UserError(f"--{name} {value}: must end in {ending}")
