"""The stage that builds a dataset: from a corpus, a dataset file and its pseudo-targets, or an API's completions."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from pathlib import Path

from src.api.alignment import Aligner, Alignment
from src.api.responses import ApiFile
from src.api.rows import aligned_rows, plan_rows
from src.api.student_vocabulary import StudentTokens
from src.config.constants import DEV, DEV_PPL, FT, TARGET, TEST, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.config.flags.prepare import PrepareArguments, prepare_mode
from src.data.corpora.registry import load_corpus
from src.data.corpora.request import Request
from src.data.formats import read_datasets, read_generations
from src.data.pseudo_targets import Merge, merge_pseudo_targets
from src.data.references import references_of
from src.data.schema import TRAIN_I, Datasets, check_datasets, check_trainable, is_training_split, training_splits
from src.data.splits import (
    SplitSizes,
    add_ft,
    debug_rows,
    filter_by_words,
    in_order,
    n_rows,
    n_words,
    sample_dev,
    sample_split,
    sample_train,
    without_splits,
)
from src.data.tables import draw_splits, read_data, rows_of
from src.data.writers import open_dataset, write_datasets
from src.models.loading import is_encoder_decoder, load_config, load_tokenizer
from src.models.multilingual import set_languages
from src.storage.atomic import recover
from src.tokens.chat_preprocessing import ChatPreprocessor, check_chat_template
from src.tokens.preprocessing import Preprocessor

logger = logging.getLogger(__name__)

UNCUT = 2**30  # tokens: labels are stored whole, and cut when they are trained on


def prepare(config: PrepareArguments) -> Path:
    """Build the dataset file that `config` asks for, print its splits and return its path.

    The same flags and data give the same bytes. Raises UserError, with nothing written, if that cannot be done.
    """
    path = Path(config.output_dir) / config.file_name
    mode = prepare_mode(config)
    _refuse_own_input(config, path)
    recover(path)
    if mode == "logits":
        print(prepare_logits(config, path))
    else:
        datasets = prepare_original(config) if mode == "original" else prepare_generations(config)
        write_datasets(path, datasets)
        print(table(datasets))
    print(f"written: {path}")
    return path


def prepare_original(config: PrepareArguments) -> Datasets:
    """Load the corpus or dataset file, filter it, and sample its splits."""
    source = config.dataset_path or f"corpus '{config.corpus}'"
    datasets = load_original(config)
    if config.filter_by_length:
        datasets = filter_by_words(datasets, config.max_input_length, config.max_labels_length, source)
    sizes = split_sizes(config, datasets)
    if not config.corpus:
        wanted = {DEV: sizes.dev and max(sizes.dev, sizes.dev_ppl or 0), TEST: sizes.test}
        lacking = {split: size for split, size in wanted.items() if size is not None and split not in datasets}
        datasets = draw_splits(datasets, lacking, seed=config.seed, source=source)
    datasets = sample_train(datasets, sizes.train, rest_to_unlabeled=config.unlabeled_split, seed=config.seed)
    datasets = add_ft(datasets, config.add_ft_split, source)
    datasets = sample_split(datasets, UNLABELED, sizes.unlabeled, seed=config.seed)
    datasets = sample_dev(datasets, sizes.dev, sizes.dev_ppl, seed=config.seed)
    datasets = sample_split(datasets, TEST, sizes.test, seed=config.seed)
    if config.unlabeled_split and UNLABELED not in datasets:
        logger.warning("%s: no '%s' split: none there, and --train_size leaves no row of train", source, UNLABELED)
    return in_order(debug_rows(datasets, seed=config.seed) if config.debug else datasets)


def split_sizes(config: PrepareArguments, datasets: Datasets) -> SplitSizes:
    """The rows that the flags ask for; shares are of the split, or of `train` if the split has to be drawn from it."""
    rows = {
        split: None if size is None else rows_of(size, n_rows(datasets.get(split, datasets.get(TRAIN, {}))))
        for split, size in config.split_sizes.items()
    }
    return SplitSizes(config.train_size, rows[DEV], rows[TEST], config.unlabeled_size, config.val_ppl_size)


def load_original(config: PrepareArguments) -> Datasets:
    """The corpus, or the dataset file with the splits that are to be kept.

    A dataset file's `unlabeled` stays if `--load_use_unlabeled`; a corpus' needs `--unlabeled_split`.
    """
    if config.corpus:
        request = Request(config.dataset_path, split_sizes(config, {}), config.seed)
        datasets = load_corpus(config.corpus, request)
        return datasets if config.unlabeled_split else without_splits(datasets, UNLABELED)
    source = str(config.dataset_path)
    datasets = read_datasets(source, columns=config.columns)
    check_trainable(datasets, source)
    if any(TRAIN_I.fullmatch(split) for split in datasets):
        raise UserError(f"{source}: has '{TRAIN}_0' …, it is merged already; give the original dataset, with '{TRAIN}'")
    keep = {UNLABELED: config.load_use_unlabeled, FT: config.load_use_ft, DEV_PPL: config.load_use_val_ppl}
    return without_splits(datasets, *(split for split, kept in keep.items() if not kept))


def prepare_generations(config: PrepareArguments) -> Datasets:
    """Merge pseudo-targets into the dataset they were made for."""
    original_source, generations_source = str(config.original_dataset_path), str(config.generation_dataset_path)
    original = read_data(config, original_source)
    check_datasets(original, original_source)
    merge = Merge(
        use_labeled=config.use_labeled,
        use_unlabeled=config.use_unlabeled,
        use_original=config.use_original,
        use_cut_off=config.use_cut_off,
        n_per_input=config.n_augmentations_per_example,
        original_source=original_source,
        generations_source=generations_source,
    )
    merged = merge_pseudo_targets(original, read_generations(generations_source), merge)
    return debug_rows(merged, seed=config.seed) if config.debug else merged


def prepare_logits(config: PrepareArguments, path: Path) -> str:
    """Align an API's completions with the student's tokens. Returns the report to print.

    Rows are written as they are made: a file of JSON Lines of any size to a folder of Arrow files in bounded memory.
    """
    source = str(config.logits_dataset_path)
    tokenizer = load_tokenizer(config.student_name)
    set_languages(tokenizer, config.student_name, config.source_language, config.target_language)
    is_two_sided = is_encoder_decoder(load_config(config.student_name))
    if config.chat_template:
        check_chat_template(tokenizer, is_encoder_decoder=is_two_sided)
    preprocessor = (ChatPreprocessor if config.chat_template else Preprocessor)(
        tokenizer,
        is_two_sided,
        max_input_length=UNCUT,
        max_labels_length=UNCUT,
        special_tokens_in_text=config.special_tokens_in_text,
    )
    aligner = Aligner(
        StudentTokens(preprocessor.tokenizer, preprocessor.end), config.alignment, config.teacher_new_word_char
    )
    merge = Merge(
        use_labeled=config.use_labeled,
        use_unlabeled=config.use_unlabeled,
        n_per_input=config.n_augmentations_per_example,
        generations_source=source,
    )
    file = ApiFile(source)
    rows = Counter[str]()
    gc.disable()  # half of the time here, although plain lists have no reference cycles
    try:
        share = config.max_failed_share
        plan = plan_rows(file, merge, debug=config.debug, seed=config.seed, max_failed_share=share)
        with open_dataset(path, plan.splits) as add_row:
            for split, row in aligned_rows(file, plan, preprocessor, aligner):
                add_row(split, row)
                rows[split] += 1
    finally:
        gc.enable()
    return stored_table({split: rows[split] for split in plan.splits}, aligner.counted)


def stored_table(rows: dict[str, int], counted: Alignment) -> str:
    """Rows of each split, and how well the teacher's tokens fit the student's, as text.

    Shares are of the label tokens that stand for text, EOS aside: aligned with a teacher token; hard labels, where
    nothing of the teacher's is kept. Mass kept: of what is stored of the teacher at the aligned ones, the mean share.
    """
    first, *others = [split for split in rows if is_training_split(split)]
    name = f"{first} … {others[-1]}" if others else first
    counts = sorted({rows[split] for split in (first, *others)}, reverse=True)
    lines = [(name, " – ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1]))))]
    lines += [(split, f"{count:,}") for split, count in rows.items() if not is_training_split(split)]
    width = max(len(split) for split, _ in lines)
    of_positions, of_aligned = max(counted.positions, 1), max(counted.aligned, 1)
    return "\n".join([
        *(f"{split.ljust(width)}  {count:>9} rows" for split, count in lines),
        f"completions: {counted.completions:,} ({counted.cut_off:,} cut off, {counted.empty:,} empty)",
        f"label tokens: {counted.positions:,} ({counted.aligned / of_positions:.1%} aligned, mass kept there "
        f"{counted.mass / of_aligned:.1%}; {counted.hard / of_positions:.1%} hard labels)",
    ])  # fmt: skip


def table(datasets: Datasets) -> str:
    """Splits, rows and mean words per row, as text; `train_0 …` are one line."""
    rotation = training_splits(datasets)
    groups = [rotation, *([split] for split in datasets if not is_training_split(split))]
    lines = [("split", "rows", "words of text", "words of target")]
    for splits in filter(None, groups):
        rows = sorted({n_rows(datasets[split]) for split in splits})
        lines.append((
            splits[0] if len(splits) == 1 else f"{splits[0]} … {splits[-1]}",
            " – ".join(f"{count:,}" for count in dict.fromkeys((rows[0], rows[-1]))),
            _mean_words(datasets, splits, TEXT),
            _mean_words(datasets, splits, TARGET),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])
        for cells in lines
    )


def _mean_words(datasets: Datasets, splits: list[str], name: str) -> str:
    n_texts = total = 0
    for split in splits:
        for value in datasets[split].get(name, ()):
            for text in references_of(value):
                n_texts, total = n_texts + 1, total + n_words(text)
    return f"{total / n_texts:.1f}" if n_texts else "–"


def _refuse_own_input(config: PrepareArguments, path: Path) -> None:
    sources = (config.dataset_path, config.original_dataset_path, config.generation_dataset_path)
    for source in (*sources, config.logits_dataset_path):
        if source is not None and path.exists() and Path(source).resolve() == path.resolve():
            raise UserError(f"{path}: is read to make this file; give another --output_dir or --file_name")
