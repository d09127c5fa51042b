"""Flags of prepare_datasets_main.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from src.config.constants import CORPORA
from src.config.errors import UserError
from src.config.flags.base import (
    ALIGNMENTS,
    DATA,
    FILES,
    MODEL,
    REQUIRED,
    RUN,
    SOURCE_LANGUAGE,
    SPECIAL_TOKENS,
    TARGET_LANGUAGE,
    Arguments,
    flag,
)


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(Arguments):
    r"""Build a dataset file, in one of three modes that follow from the paths given.

    original     no path, or --dataset_path: load a corpus, sample its splits, write {split: {"text", "target"}}.
    generations  --original_dataset_path and --generation_dataset_path: merge pseudo-targets into train_0, train_1, ...
    logits       --logits_dataset_path: align an API's tokens and log-probabilities with the student's tokenizer.

    Writes  output_dir/file_name.

    Example:
      python prepare_datasets_main.py --dataset_name shakespeare --train_size 7000 --val_size 750 --val_ppl_size 750 \
        --unlabeled_split True --unlabeled_size 28000 --file_name shakespeare_7k.json --output_dir datasets/original
    """

    script: ClassVar[str] = "prepare_datasets_main.py"

    output_dir: str = flag(REQUIRED, "Folder of the file to write; made if it does not exist.", FILES)
    file_name: str = flag(
        "dataset.json", "Name of the file to write; in mode logits a name.arrow is a folder of large splits.", FILES
    )
    dataset_name: str = flag(
        "xsum", 'Corpus to load; "" if dataset_path is a dataset file of its own.', FILES, choices=(*CORPORA, "")
    )
    dataset_path: str | None = flag(
        None, "Dataset file to start from, or with dataset_name the corpus' raw files.", FILES
    )
    original_dataset_path: str | None = flag(
        None, "Mode generations: the dataset file whose inputs have pseudo-targets.", FILES
    )
    generation_dataset_path: str | None = flag(
        None, "Mode generations: the generated_datasets.json of gen_main.py.", FILES
    )
    logits_dataset_path: str | None = flag(
        None,
        "Mode logits: an API's completions: JSON of text, prediction, tokens, logprobs, or JSON Lines of responses.",
        FILES,
    )
    train_size: int | None = flag(None, "Rows of train; None: all.", DATA, minimum=1)
    val_size: int | None = flag(None, "Rows of dev; None: all.", DATA, minimum=1)
    test_size: int | None = flag(None, "Rows of test; None: all.", DATA, minimum=1)
    unlabeled_size: int | None = flag(None, "Rows of unlabeled; None: all.", DATA, minimum=1)
    val_ppl_size: int | None = flag(
        None, "Rows of dev_ppl, for the negative log-likelihood; None: no dev_ppl.", DATA, minimum=1
    )
    unlabeled_split: bool = flag(
        False, "Make an unlabeled split: the corpus' own, or else the training rows that were not sampled.", DATA
    )
    filter_by_length: bool = flag(False, "Drop rows with more words than max_input_length or max_labels_length.", DATA)
    max_input_length: int = flag(512, "Words a text may have if filter_by_length is True.", DATA, minimum=1)
    max_labels_length: int = flag(128, "Words a target may have if filter_by_length is True.", DATA, minimum=1)
    add_ft_split: str = flag(
        "full",
        "Split ft: all train rows (full), the corpus' ft rows that are in train (filter), or its own (split).",
        DATA,
        choices=("full", "filter", "split"),
    )
    load_use_unlabeled: bool = flag(True, "Keep the unlabeled split of a dataset_path file.", DATA)
    load_use_ft: bool = flag(True, "Keep the ft split of a dataset_path file.", DATA)
    load_use_val_ppl: bool = flag(True, "Keep the dev_ppl split of a dataset_path file.", DATA)
    use_unlabeled: bool = flag(True, "Modes generations and logits: use the pseudo-targets of unlabeled inputs.", DATA)
    use_labeled: bool = flag(True, "Modes generations and logits: use the pseudo-targets of labeled inputs.", DATA)
    use_original: bool = flag(True, "Mode generations: add the labeled pairs to every train_i.", DATA)
    use_cut_off: bool = flag(
        True, "Mode generations: use pseudo-targets that stopped at the length limit; they never teach an EOS.", DATA
    )
    n_augmentations_per_example: int | None = flag(
        None,
        "Pseudo-targets of each input, None: all it has; in mode logits 0 stands for the references.",
        DATA,
        minimum=0,
    )
    student_name: str = flag("t5-small", "Mode logits: the student whose tokenizer is aligned to.", MODEL)
    special_tokens_in_text: bool = flag(False, SPECIAL_TOKENS, MODEL)
    source_language: str = flag("", SOURCE_LANGUAGE, MODEL)
    target_language: str = flag("", TARGET_LANGUAGE, MODEL)
    teacher_new_word_char: str = flag(
        " ", "Mode logits: what the teacher's tokens that begin a word start with.", MODEL
    )
    alignment: str = flag(
        "edit",
        "Mode logits: tokens align by edit distance, prefixes too (edit), or only at one place in the text (exact).",
        MODEL,
        choices=ALIGNMENTS,
    )
    max_failed_share: float = flag(
        0.1,
        "Mode logits: share of failed, refused or filtered answers, which are left out, above which to stop.",
        DATA,
        minimum=0,
        maximum=1,
    )
    seed: int = flag(42, "Seed of the sampled rows.", RUN, minimum=0, maximum=2**32 - 1)
    debug: bool = flag(False, "Use 32 rows of train and 16 of every other split, to try a command out.", RUN)

    def check(self) -> None:
        super().check()
        mode = prepare_mode(self)
        if not self.file_name:
            raise UserError("--file_name: must not be empty")
        if Path(self.file_name).is_absolute() or ".." in Path(self.file_name).parts or not Path(self.file_name).name:
            raise UserError(f"--file_name {self.file_name}: must name a file in --output_dir")
        if mode == "original" and not self.dataset_name and not self.dataset_path:
            raise UserError('--dataset_name "" needs a --dataset_path to load from')
        if mode == "original" and self.unlabeled_size is not None and not self.unlabeled_split:
            raise UserError(f"--unlabeled_size {self.unlabeled_size} needs --unlabeled_split True")
        if mode != "logits" and self.file_name.endswith(".arrow"):
            raise UserError(f"--file_name {self.file_name}: a folder of Arrow files is for --logits_dataset_path")
        if mode == "logits" and not (self.use_unlabeled or self.use_labeled):
            raise UserError("--use_unlabeled and --use_labeled are both False: nothing to train on")
        if mode == "generations" and not (self.use_unlabeled or self.use_labeled or self.use_original):
            raise UserError("--use_unlabeled, --use_labeled and --use_original are all False: nothing to train on")
        if mode == "generations" and self.n_augmentations_per_example == 0:
            raise UserError("--n_augmentations_per_example: must be at least 1 when pseudo-targets are merged, not 0")
        if not self.teacher_new_word_char:
            raise UserError("--teacher_new_word_char: must not be empty")


def prepare_mode(args: PrepareArguments) -> str:
    """'original', 'generations' or 'logits', as the paths given say; any other mix is a UserError."""
    paths = {
        "--dataset_path": args.dataset_path,
        "--original_dataset_path": args.original_dataset_path,
        "--generation_dataset_path": args.generation_dataset_path,
        "--logits_dataset_path": args.logits_dataset_path,
    }
    given = tuple(name for name, path in paths.items() if path)
    if given in ((), ("--dataset_path",)):
        return "original"
    if given == ("--original_dataset_path", "--generation_dataset_path"):
        return "generations"
    if given == ("--logits_dataset_path",):
        return "logits"
    raise UserError(
        f"{' with '.join(given)} is no mode; give none or --dataset_path (original data), "
        "--original_dataset_path with --generation_dataset_path (pseudo-targets), or --logits_dataset_path alone"
    )
