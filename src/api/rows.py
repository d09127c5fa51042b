"""Turn an API file into training rows: choose each completion's split, then align its tokens with the student's.

The file is read twice, so that it need not fit in memory: `plan_rows` chooses the split (`train_i`, `dev`, …) of each
completion, `aligned_rows` makes the rows.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from src.api.alignment import Aligner
from src.api.failures import NO_PREDICTION, Answers
from src.api.responses import ApiFile, ApiRow, Completion
from src.config.constants import DEV, DEV_PPL, FT, GENERATED, TARGET, TEST, TEXT, TRAIN
from src.config.errors import UserError
from src.data.pseudo_targets import Merge, concatenate, group_by_input, rotate, targets_per_input
from src.data.references import references_of
from src.data.schema import Datasets, is_training_split
from src.data.soft_targets import LOGITS, TOKENS
from src.data.splits import debug_rows
from src.tokens.preprocessing import Preprocessor

logger = logging.getLogger(__name__)

OTHER_SPLITS = (DEV, DEV_PPL, TEST, FT)
REFERENCE = "reference"
TOKENS_PER_CALL = 10_000  # tokens of the completions that are tokenized together


@dataclass(frozen=True)
class Plan:
    """The split of each completion; completions are numbered from 0 through the file.

    splits: names in order; splits_of: {number: its splits}, without those that are left out; uses_references: the
    targets are references; has_lists: some rows have several references, so all rows get a list.
    """

    splits: tuple[str, ...]
    splits_of: dict[int, tuple[str, ...]]
    uses_references: bool = False
    has_lists: bool = False


@dataclass
class _Seen:
    """The result of the first pass.

    training: texts and completions' numbers by split; others: numbers by split; labeled: numbers of `train`.
    cut_off: numbers of completions that reached a limit of length: kept where log-probabilities are stored, left out
    where the text is a plain target (ft, dev), which would have a false end. left_out: how many are cut off and empty.
    """

    training: Datasets = field(default_factory=dict)
    others: dict[str, list[int]] = field(default_factory=dict)
    labeled: set[int] = field(default_factory=set)
    cut_off: set[int] = field(default_factory=set)
    left_out: int = 0
    has_lists: bool = False
    answers: Answers = field(default_factory=Answers)


def plan_rows(file: ApiFile, merge: Merge, *, debug: bool, seed: int, max_failed_share: float) -> Plan:
    """Choose the split of each completion of the file.

    `train_i` gets the i-th completion of every input, as when pseudo-targets are merged; `dev`, `dev_ppl`, `test` and
    `ft` get the first of each row. A file without `ft` gets one: the labeled rows of `train_0`, or all if none is
    labeled. Completions that were cut off are left out of `ft` and `dev`, failed answers of all splits.
    `merge.n_per_input` 0: `train_0` gets references instead, each pair of text and reference once. Raises UserError if
    a larger share of answers failed than `max_failed_share`, naming the first, and if there is nothing to train on.
    """
    uses_references = merge.n_per_input == 0
    seen = _references(file, merge) if uses_references else _completions(file, merge, max_failed_share)
    if uses_references:
        training = {f"{TRAIN}_0": seen.training[TRAIN][GENERATED]}
        if not training[f"{TRAIN}_0"]:
            raise UserError(f"{file.path}: --n_augmentations_per_example 0 needs rows of '{TRAIN}' with '{TARGET}'")
    else:
        training = _rotation(file, seen, merge)
    others = {split: seen.others[split] for split in OTHER_SPLITS if split in seen.others}
    if FT not in others:
        first = training[f"{TRAIN}_0"]
        wanted = [number for number in first if number in seen.labeled] or first
        complete = [number for number in wanted if number not in seen.cut_off]
        _warn_of_cut_off(file.path, FT, len(wanted) - len(complete), len(wanted))
        if complete:
            others[FT] = complete
    numbers = {split: {GENERATED: rows} for split, rows in (training | others).items()}
    if debug:
        numbers = debug_rows(numbers, seed=seed)
    splits_of: dict[int, tuple[str, ...]] = {}
    for split, columns in numbers.items():
        for number in columns[GENERATED]:
            splits_of[number] = (*splits_of.get(number, ()), split)
    return Plan(tuple(numbers), splits_of, uses_references, seen.has_lists)


def _rotation(file: ApiFile, seen: _Seen, merge: Merge) -> dict[str, list[int]]:
    """The completions of each `train_i`, chosen as when pseudo-targets are merged."""
    rows = concatenate(list(seen.training.values()), [TEXT])
    if not rows[GENERATED]:
        raise UserError(f"{file.path}: no completions of {merge.splits()}: nothing to train on")
    inputs, _ = group_by_input(rows)
    splits = rotate(inputs, targets_per_input(inputs, merge), None)
    return {split: columns[TARGET] for split, columns in splits.items()}


def _completions(file: ApiFile, merge: Merge, max_failed_share: float) -> _Seen:
    """The first pass: all usable completions of training rows, and the first of every other row."""
    seen = _Seen()
    cut_off = Counter[str]()
    for number, row in _numbered(file, "count completions"):
        seen.has_lists |= isinstance(row.reference, list)
        completions = row.completions or (Completion(row.place, "", failure=NO_PREDICTION),)
        if row.split == TEST:
            seen.others.setdefault(TEST, []).append(number)
        elif row.split in OTHER_SPLITS:
            first = next((i for i, completion in enumerate(completions) if not completion.failure), 0)
            if not seen.answers.is_usable(completions[first], row.split, needs_logprobs=False):
                continue
            if completions[first].is_cut_off:
                cut_off[row.split] += 1
            else:
                seen.others.setdefault(row.split, []).append(number + first)
        elif row.split in merge.splits():
            _add_completions(seen, row, completions, number)
    seen.answers.check(file.path, max_failed_share)
    for split, count in cut_off.items():
        _warn_of_cut_off(file.path, split, count, seen.answers.counted[split])
    if seen.left_out:
        logger.warning("%s: %d empty completions that were cut off are left out", file.path, seen.left_out)
    return seen


def _add_completions(seen: _Seen, row: ApiRow, completions: Sequence[Completion], number: int) -> None:
    columns = seen.training.setdefault(row.split, {TEXT: [], GENERATED: []})
    for i, completion in enumerate(completions, start=number):
        if not seen.answers.is_usable(completion, row.split, needs_logprobs=True):
            continue
        if completion.is_cut_off and not completion.prediction.strip():
            seen.left_out += 1  # neither a text nor its end is known
            continue
        if completion.is_cut_off:
            seen.cut_off.add(i)
        columns[TEXT].append(row.text)
        columns[GENERATED].append(i)
        if row.split == TRAIN:
            seen.labeled.add(i)


def _warn_of_cut_off(path: str, split: str, count: int, n_rows: int) -> None:
    if count:
        logger.warning(
            "%s: split '%s': %d of %d completions were cut off and are left out: their end would count as the text's",
            path, split, count, n_rows,
        )  # fmt: skip


def _references(file: ApiFile, merge: Merge) -> _Seen:
    """The first pass for references: each pair of a labeled text and its reference once, and all other rows."""
    seen = _Seen()
    pairs: dict[tuple[str, str], int] = {}
    for number, row in _numbered(file, "count rows", each_reference=True):
        seen.has_lists |= isinstance(row.reference, list)
        if row.split in OTHER_SPLITS:
            if row.reference is None:
                raise UserError(
                    f"{row.place}: '{TARGET}': no reference; --n_augmentations_per_example 0 uses references"
                )
            seen.others.setdefault(row.split, []).append(number)
        elif row.split == TRAIN and merge.use_labeled and row.reference is not None:
            pairs.setdefault((row.text, str(row.reference)), number)
    seen.training[TRAIN] = {GENERATED: list(pairs.values())}
    return seen


def _numbered(file: ApiFile, description: str, *, each_reference: bool = False) -> Iterator[tuple[int, ApiRow]]:
    """All rows with the number of their first completion; a row without any takes one number.

    each_reference: a row of `train` comes once for each of its references.
    """
    number = 0
    for row in file.rows(description):
        texts = references_of(row.reference) if each_reference and row.split == TRAIN else []
        for each in [replace(row, reference=text) for text in texts] or [row]:
            yield number, each
            number += max(1, len(each.completions))


_Waiting = tuple[str, dict[str, Any], Completion | None]  # split, columns, and no completion if the labels are hard


def aligned_rows(
    file: ApiFile, plan: Plan, preprocessor: Preprocessor, aligner: Aligner
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of the dataset with its split; the rows of a split come in the order of the file.

    Columns: `text`, `target`, `reference` (None if there is none; lists if some rows have several), and in training
    splits `tokens` and `logits`: for each of T labels a list of K token ids, and their log-probabilities.
    `preprocessor` must not truncate labels. Raises UserError, naming the row, for tokens that cannot be used.
    """
    waiting: list[_Waiting] = []
    n_tokens = 0
    for number, row in _numbered(file, "align tokens", each_reference=plan.uses_references):
        reference = references_of(row.reference) if plan.has_lists else row.reference
        for i, completion in enumerate(row.completions or (None,), start=number):
            if plan.uses_references or row.split == TEST:
                completion = None
            known = row.reference if row.split == TRAIN else reference
            target = known if completion is None else completion.prediction
            columns = {TEXT: row.text, TARGET: target, REFERENCE: reference}
            for split in plan.splits_of.get(i, ()):
                if is_training_split(split):
                    waiting.append((split, columns, completion))
                    n_tokens += len(target or "") // 4  # a rough estimate
                else:
                    yield split, columns
        if n_tokens >= TOKENS_PER_CALL:
            yield from _aligned(waiting, preprocessor, aligner)
            waiting, n_tokens = [], 0
    yield from _aligned(waiting, preprocessor, aligner)


def _aligned(
    waiting: list[_Waiting], preprocessor: Preprocessor, aligner: Aligner
) -> Iterator[tuple[str, dict[str, Any]]]:
    if not waiting:
        return
    located = preprocessor.locate_labels([columns[TARGET] for _, columns, _ in waiting])
    for (split, columns, completion), (labels, characters) in zip(waiting, located, strict=True):
        if completion is None:
            tokens, logs = [[label] for label in labels], [[0.0] for _ in labels]
        else:
            tokens, logs = aligner.align(completion, labels, characters)
        yield split, {**columns, TOKENS: tokens, LOGITS: logs}
