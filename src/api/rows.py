"""Turn an API file into training rows: choose each completion's split, then align its tokens with the student's.

The file is gone through twice, so that it never needs to be in memory: `plan_rows` finds out which completion goes to
which `train_i`, `aligned_rows` makes the rows.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from src.api.alignment import Aligner
from src.api.logprobs import lacks_logprobs
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
NO_PREDICTION, NO_LOGPROBS = "no prediction", "no log-probabilities"  # why an answer can't be learned from
FIRST_NAMED, REASONS_NAMED = 3, 5  # places of each reason, and reasons, in a message
TOKENS_PER_CALL = 10_000  # of the teacher, whose completions are tokenized together


@dataclass(frozen=True)
class Plan:
    """Which completions, numbered through the file, make the rows of which splits.

    splits: names in order; split_of: {number: split}; also_ft: numbers whose row makes an `ft` row too. has_lists: some
    rows have several references, so that all have a list of them.
    """

    splits: tuple[str, ...]
    split_of: dict[int, str]
    also_ft: frozenset[int]
    uses_references: bool = False
    has_lists: bool = False


@dataclass
class _Seen:
    """The first pass, split by split: texts and completions' numbers of the training rows, numbers of the others.

    cut_off: completions that stop at a limit of length. Training splits store what is known of them; where a text is a
    plain target (ft, dev), its end would be learned, or measured, as if the teacher had ended there.
    answers: by split; failed: those that cannot be used, by split and reason; places: the first of each reason.
    """

    training: Datasets = field(default_factory=dict)
    others: dict[str, list[int]] = field(default_factory=dict)
    labeled: set[int] = field(default_factory=set)
    cut_off: set[int] = field(default_factory=set)
    left_out: int = 0
    has_lists: bool = False
    answers: Counter[str] = field(default_factory=Counter)
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def is_usable(self, completion: Completion, split: str) -> bool:
        """Whether there is an answer to learn from; counted, with the reason and the place where there is none."""
        reason = completion.failure
        if reason is None and split not in OTHER_SPLITS and lacks_logprobs(completion):
            reason = NO_LOGPROBS
        self.answers[split] += 1
        if reason is None:
            return True
        self.failed[split, reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < FIRST_NAMED:
            places.append(completion.place)
        return False


def plan_rows(file: ApiFile, merge: Merge, *, debug: bool, seed: int, max_failed_share: float) -> Plan:
    """Decide where each completion of the file goes (SPEC §3, "API teacher").

    `train_i` gets the i-th completion of every input, as in merging; `dev`, `dev_ppl`, `test` and `ft` the first of
    each row. A file without `ft` gets one: the labeled rows of `train_0` (all of them where none is labeled).
    Completions that were cut off are left out of `ft` and `dev`, answers that failed of all, if no larger share did.
    `merge.n_per_input` 0: references instead of completions, each pair of text and reference once, in `train_0`.
    Raises UserError, naming the first rows, if too many failed, and if there is nothing to train on.
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
        whole = [number for number in wanted if number not in seen.cut_off]
        _warn_of_cut_off(file.path, FT, len(wanted) - len(whole), len(wanted))
        if whole:
            others[FT] = whole
    numbers = {split: {GENERATED: rows} for split, rows in (training | others).items()}
    if debug:
        numbers = debug_rows(numbers, seed=seed)
    return _as_plan(numbers, seen, uses_references=uses_references)


def _rotation(file: ApiFile, seen: _Seen, merge: Merge) -> dict[str, list[int]]:
    """The completions of each `train_i`, as merging would have it."""
    rows = concatenate(list(seen.training.values()), [TEXT])
    if not rows[GENERATED]:
        raise UserError(f"{file.path}: no completions of {merge.splits()}: nothing to train on")
    inputs = group_by_input(rows)
    splits = rotate(inputs, targets_per_input(inputs, merge), None)
    return {split: columns[TARGET] for split, columns in splits.items()}


def _as_plan(numbers: Datasets, seen: _Seen, *, uses_references: bool) -> Plan:
    borrowed = frozenset(numbers[FT][GENERATED]) if FT in numbers and FT not in seen.others else frozenset()
    split_of = {
        number: split
        for split, rows in numbers.items()
        if split != FT or FT in seen.others
        for number in rows[GENERATED]
    }
    return Plan(tuple(numbers), split_of, borrowed, uses_references, seen.has_lists)


def _completions(file: ApiFile, merge: Merge, max_failed_share: float) -> _Seen:
    """Number all completions: what trains by its text, and the first usable one of every other row."""
    seen = _Seen()
    cut_off = Counter[str]()
    for number, row in _numbered(file, "count completions"):
        seen.has_lists |= isinstance(row.reference, list)
        completions = row.completions or (Completion(row.place, "", failure=NO_PREDICTION),)
        if row.split == TEST:
            seen.others.setdefault(TEST, []).append(number)
        elif row.split in OTHER_SPLITS:
            first = next((i for i, completion in enumerate(completions) if not completion.failure), 0)
            if not seen.is_usable(completions[first], row.split):
                continue
            if completions[first].is_cut_off:
                cut_off[row.split] += 1
            else:
                seen.others.setdefault(row.split, []).append(number + first)
        elif row.split in merge.splits():
            _add_completions(seen, row, completions, number)
    _check_failed(file.path, seen, max_failed_share)
    for split, count in cut_off.items():
        _warn_of_cut_off(file.path, split, count, seen.answers[split])
    if seen.left_out:
        logger.warning("%s: %d empty completions that were cut off are left out", file.path, seen.left_out)
    return seen


def _add_completions(seen: _Seen, row: ApiRow, completions: Sequence[Completion], number: int) -> None:
    columns = seen.training.setdefault(row.split, {TEXT: [], GENERATED: []})
    for i, completion in enumerate(completions, start=number):
        if not seen.is_usable(completion, row.split):
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


def _check_failed(path: str, seen: _Seen, max_share: float) -> None:
    """Warn of answers that failed. Raises UserError if a larger share did, or all of a split."""
    for (split, reason), count in seen.failed.items():
        if reason == NO_PREDICTION and count == seen.answers[split]:
            raise UserError(
                f"{path}: split '{split}': no row has the teacher's prediction, which is its target; let the teacher "
                "complete it too, or leave the split out"
            )
    n_failed, n_answers = seen.failed.total(), seen.answers.total()
    if not n_failed:
        return
    reasons = _described(path, seen)
    if n_failed > max_share * n_answers:
        raise UserError(
            f"{path}: {n_failed} of {n_answers} answers failed, more than --max_failed_share {max_share:g}: {reasons}; "
            "ask for them again, with log-probabilities"
        )
    for split, count in seen.answers.items():
        if count == sum(n for (of, _), n in seen.failed.items() if of == split):
            raise UserError(
                f"{path}: split '{split}': all of its {count} answers failed: {reasons}; ask for them again"
            )
    logger.warning("%s: %d of %d answers failed and are left out: %s", path, n_failed, n_answers, reasons)


def _described(path: str, seen: _Seen) -> str:
    """The reasons of failed answers, the most frequent first, each with its first places."""
    counts = Counter[str]()
    for (_, reason), count in seen.failed.items():
        counts[reason] += count
    parts = []
    for reason, count in counts.most_common(REASONS_NAMED):
        places = [place.removeprefix(f"{path}: ") for place in seen.places[reason]]
        parts.append(f"{count} {reason} ({'; '.join(places)}{'; …' if count > len(places) else ''})")
    return ", ".join(parts) + (", …" if len(counts) > REASONS_NAMED else "")


def _references(file: ApiFile, merge: Merge) -> _Seen:
    """Number the rows that have a reference; each pair of a labeled text and its reference once."""
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


# --------------------------------------------------------------------------------------------------------- second pass


@dataclass(frozen=True)
class _Waiting:
    """A row to be trained on whose target is not tokenized yet; `completion` is None where labels are hard."""

    split: str
    columns: dict[str, Any]
    completion: Completion | None


def aligned_rows(
    file: ApiFile, plan: Plan, preprocessor: Preprocessor, aligner: Aligner
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the data set with their splits, aligned on the way, each split's in the order of the file.

    Columns: `text`, `target`, `reference` (None if there is none; lists where some rows have several), and in training
    splits `tokens` and `logits`. `preprocessor` must not cut labels. Raises UserError, naming the row, for tokens that
    cannot be used.
    """
    waiting: list[_Waiting] = []
    n_tokens = 0
    for number, row in _numbered(file, "align tokens", each_reference=plan.uses_references):
        reference = references_of(row.reference) if plan.has_lists else row.reference
        for i, completion in enumerate(row.completions or (None,), start=number):
            split = plan.split_of.get(i)
            if split is None and i not in plan.also_ft:
                continue
            if plan.uses_references or split == TEST:
                completion = None
            known = row.reference if row.split == TRAIN else reference
            target = known if completion is None else completion.prediction
            columns = {TEXT: row.text, TARGET: target, REFERENCE: reference}
            if i in plan.also_ft:
                yield FT, columns
            if split is None:
                continue
            if not is_training_split(split):
                yield split, columns
                continue
            waiting.append(_Waiting(split, columns, completion))
            n_tokens += len(target or "") // 4  # about
        if n_tokens >= TOKENS_PER_CALL:
            yield from _aligned(waiting, preprocessor, aligner)
            waiting, n_tokens = [], 0
    yield from _aligned(waiting, preprocessor, aligner)


def _aligned(
    waiting: list[_Waiting], preprocessor: Preprocessor, aligner: Aligner
) -> Iterator[tuple[str, dict[str, Any]]]:
    if not waiting:
        return
    located = preprocessor.locate_labels([row.columns[TARGET] for row in waiting])
    for row, (labels, characters) in zip(waiting, located, strict=True):
        if row.completion is None:
            tokens, logs = [[label] for label in labels], [[0.0] for _ in labels]
        else:
            tokens, logs = aligner.align(row.completion, labels, characters)
        yield row.split, {**row.columns, TOKENS: tokens, LOGITS: logs}
