"""Flags of prepare_datasets_main.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from src.config.constants import CORPORA, ID
from src.config.errors import UserError
from src.config.flags.base import DATA, FILES, MODEL, RUN, TokenizerArguments, flag

MODES = {  # by the paths that are given
    "": "original",
    "--dataset_path": "original",
    "--original_dataset_path with --generation_dataset_path": "generations",
    "--logits_dataset_path": "logits",
}


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(TokenizerArguments):
    r"""Build a dataset file. The paths that are given decide the mode:

    original     no path, or --dataset_path: load a corpus, sample its splits, write {split: {"text", "target"}}.
    generations  --original_dataset_path and --generation_dataset_path: merge pseudo-targets into train_0, train_1, ...
    logits       --logits_dataset_path: align an API's tokens and log-probabilities with the student's tokenizer.

    Writes  output_dir/file_name.

    Example:
      python prepare_datasets_main.py --dataset_name shakespeare --train_size 7000 --val_size 750 --val_ppl_size 750 \
        --unlabeled_split True --unlabeled_size 28000 --file_name shakespeare_7k.json --output_dir datasets/original
    """

    script: ClassVar[str] = "prepare_datasets_main.py"

    file_name: str = flag(
        "dataset.json", "File to write; NAME.arrow is a folder of memory-mapped files, for large data.", FILES
    )
    dataset_name: str | None = flag(
        None, 'Corpus. None means xsum, or with --dataset_path no corpus, as "".', FILES, choices=(*CORPORA, "")
    )
    dataset_path: str | None = flag(None, "Dataset file or, with --dataset_name, the raw files of the corpus.", FILES)
    original_dataset_path: str | None = flag(None, "Mode generations: dataset with the pseudo-targets' inputs.", FILES)
    generation_dataset_path: str | None = flag(None, "Mode generations: pseudo-targets from gen_main.py (JSON).", FILES)
    logits_dataset_path: str | None = flag(
        None, "Mode logits: file of an API's completions; docs/api-teachers.md describes its forms.", FILES
    )
    train_size: int | None = flag(None, "Number of train rows to sample. None means all.", DATA, minimum=1)
    val_size: float | None = flag(
        None,
        "Number of dev rows to sample, or share of them (below 1); drawn from train if --dataset_path has no dev. None "
        "means all.",
        DATA,
        above=0,
    )
    test_size: float | None = flag(None, "As --val_size, for the split test.", DATA, above=0)
    unlabeled_size: int | None = flag(None, "Number of unlabeled rows to sample. None means all.", DATA, minimum=1)
    val_ppl_size: int | None = flag(
        None, "Number of rows of dev_ppl, on which nll and ppl are measured. None means no dev_ppl.", DATA, minimum=1
    )
    unlabeled_split: bool = flag(
        False, "Write an unlabeled split: that of the corpus, or else the train rows that were not sampled.", DATA
    )
    filter_by_length: bool = flag(
        False, "Drop rows with more words than --max_input_length or --max_labels_length.", DATA
    )
    max_input_length: int = flag(512, "Maximum number of words of a text, if --filter_by_length.", DATA, minimum=1)
    max_labels_length: int = flag(128, "Maximum number of words of a target, if --filter_by_length.", DATA, minimum=1)
    add_ft_split: str = flag(
        "full",
        "Rows of the split ft: all of train (full), or the corpus's own ft: its rows in train (filter) or all (split).",
        DATA,
        choices=("full", "filter", "split"),
    )
    load_use_unlabeled: bool = flag(True, "Keep the split unlabeled of the --dataset_path file.", DATA)
    load_use_ft: bool = flag(True, "Keep the split ft of the --dataset_path file.", DATA)
    load_use_val_ppl: bool = flag(True, "Keep the split dev_ppl of the --dataset_path file.", DATA)
    use_unlabeled: bool = flag(True, "Modes generations and logits: use the pseudo-targets of unlabeled inputs.", DATA)
    use_labeled: bool = flag(True, "Modes generations and logits: use the pseudo-targets of labeled inputs.", DATA)
    use_original: bool = flag(True, "Mode generations: add the labeled rows to every train_i.", DATA)
    use_cut_off: bool = flag(
        True, "Mode generations: use pseudo-targets cut off at the length limit; they never teach an EOS.", DATA
    )
    n_augmentations_per_example: int | None = flag(
        None, "Pseudo-targets to use per input. None means all; 0 (mode logits) the references.", DATA, minimum=0
    )
    student_name: str = flag("t5-small", "Mode logits: student whose tokenizer is used (hub name or folder).", MODEL)
    teacher_new_word_char: str = flag(" ", "Mode logits: character that begins a word in the teacher's tokens.", MODEL)
    alignment: str = flag(
        "edit",
        "Mode logits: align tokens by edit distance (edit), or only if they begin and end at the same place (exact).",
        MODEL,
        choices=("edit", "exact"),
    )
    max_failed_share: float = flag(
        0.1,
        "Mode logits: stop if a larger share (0 to 1) of answers failed; these are left out.",
        DATA,
        minimum=0,
        maximum=1,
    )
    debug: bool = flag(False, "Try the command out on 32 rows of train and 16 of every other split.", RUN)

    @property
    def corpus(self) -> str:
        """The name of the corpus, or "" for a dataset file."""
        default = "" if self.dataset_path else "xsum"
        return default if self.dataset_name is None else self.dataset_name

    def check(self) -> None:
        super().check()
        mode, file = prepare_mode(self), Path(self.file_name)
        if file.is_absolute() or ".." in file.parts or not file.name:
            raise UserError(f"--file_name {self.file_name}: must be the name of a file in --output_dir")
        if mode == "original" and not self.corpus and not self.dataset_path:
            raise UserError('--dataset_name "" needs a --dataset_path')
        if mode == "logits" or (mode == "original" and self.corpus):
            self._check_no_table("an API file" if mode == "logits" else f"the corpus '{self.corpus}'")
        if mode == "original" and self.unlabeled_size is not None and not self.unlabeled_split:
            raise UserError(f"--unlabeled_size {self.unlabeled_size} needs --unlabeled_split True")
        if mode == "logits" and not (self.use_unlabeled or self.use_labeled):
            raise UserError("--use_unlabeled and --use_labeled are both False: nothing to train on")
        if mode == "generations" and not (self.use_unlabeled or self.use_labeled or self.use_original):
            raise UserError("--use_unlabeled, --use_labeled and --use_original are all False: nothing to train on")
        if mode == "generations" and self.n_augmentations_per_example == 0:
            raise UserError("--n_augmentations_per_example: must be at least 1 in mode generations, not 0")
        if not self.teacher_new_word_char:
            raise UserError("--teacher_new_word_char: must not be empty")

    def _check_no_table(self, what: str) -> None:
        """Refuse flags for tables of the user's own, where the data have columns and splits of their own."""
        for ours, theirs in self.columns.items():
            if theirs != ours or ours == ID:
                raise UserError(f"--{ours}_column {theirs}: {what} has columns of its own; leave the flag out")
        for name in ("val_size", "test_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UserError(f"--{name} {size}: {what} needs a number of rows, not a share")


def prepare_mode(args: PrepareArguments) -> str:
    """The mode that the given paths decide: original, generations or logits. Raises UserError for any other mix."""
    paths = ("dataset_path", "original_dataset_path", "generation_dataset_path", "logits_dataset_path")
    given = " with ".join(f"--{name}" for name in paths if getattr(args, name))
    if given not in MODES:
        possible = ", ".join(f"{paths or 'none'} ({mode})" for paths, mode in MODES.items())
        raise UserError(f"{given}: no mode takes these paths; give {possible}")
    return MODES[given]
