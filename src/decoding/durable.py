"""Writing with a model for every row of some splits, in durable pieces: a killed run ends with the same results."""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.console import progress_bar, say
from src.config.constants import TEXT
from src.config.errors import NotFiniteError, UserError
from src.config.flags.shared import WritingArguments
from src.config.parsing import nearest
from src.config.signals import Interrupted, StopRequests
from src.data.schema import Datasets, check_datasets, some_texts
from src.decoding.checks import check_decoding
from src.decoding.generate import write_tokens
from src.decoding.settings import Decoding
from src.devices.processes import Accelerator, make_accelerator
from src.models.checks_before_loading import check_lengths, check_model_files
from src.models.generation_config import apply_settings, fit_to_tokenizer
from src.models.loading import is_encoder_decoder, load_config, load_model, load_tokenizer
from src.models.multilingual import set_languages
from src.models.trained_prompt import warn_if_prompt_differs
from src.runs.description import FINISHED, UNFINISHED, data_fingerprint
from src.runs.folder import PARTIAL, RunFolder, open_run
from src.storage.json_files import append_json_line, read_json_lines
from src.tokens.batch import Batch
from src.tokens.collate import collate
from src.tokens.order import chunks, longest_first
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets
from src.tokens.unknown_characters import check_characters_known

WriteBatch = Callable[[Batch, int], list]


@dataclass(frozen=True)
class Writer:
    """A model in eval mode on its device, and all that it needs to write K targets of an input."""

    accelerator: Accelerator
    preprocessor: Preprocessor
    model: PreTrainedModel
    decoding: Decoding

    @classmethod
    def of(cls, config: WritingArguments, decoding: Decoding, datasets: Datasets) -> "Writer":
        warn_if_prompt_differs(config.task_prompt, config.model_name, "model_name")
        accelerator = make_accelerator(config)
        tokenizer = load_tokenizer(config.model_name, some_texts(datasets))
        set_languages(tokenizer, config.model_name, config.source_language, config.target_language)
        kind = is_encoder_decoder(load_config(config.model_name))
        preprocessor = Preprocessor.of(config, tokenizer, is_encoder_decoder=kind)
        inputs = {split: {TEXT: columns[TEXT]} for split, columns in datasets.items()}
        check_characters_known(preprocessor, inputs, config.dataset_path)
        model = load_model(config.model_name, state_dict_path=config.checkpoint_path)
        fit_to_tokenizer(model, tokenizer)
        apply_settings(model, config.model_name, config)
        check_decoding(model, config.model_name, config, decoding)
        return cls(accelerator, preprocessor, model.to(accelerator.device), decoding)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.preprocessor.tokenizer

    def write(self, batch: Batch, k: int) -> Tensor:
        """(B * K, L) as `write_tokens`; the batch must be on the device."""
        try:
            with self.accelerator.autocast():
                return write_tokens(self.model, batch, replace(self.decoding, targets_per_input=k))
        except NotFiniteError as error:
            raise UserError(f"{self.model.config._name_or_path}: {error}; try --mixed_precision no") from None


@dataclass(frozen=True)
class Writing:
    """Writing that is ready to begin: K results for every row of some splits, in durable pieces.

    k_of: K by split. write(batch, K): the results of a batch on the device, JSON values, the K of one row adjacent.
    """

    config: WritingArguments
    run: RunFolder
    datasets: Datasets
    k_of: Mapping[str, int]
    writer: Writer
    write: WriteBatch

    @property
    def n_targets(self) -> int:
        return sum(self.k_of[split] * len(columns[TEXT]) for split, columns in self.datasets.items())

    def tokenized(self) -> TokenizedDatasets:
        texts = {split: {TEXT: columns[TEXT]} for split, columns in self.datasets.items()}
        return TokenizedDatasets(texts, self.writer.preprocessor)

    def progress(self, *, repair: bool) -> list[dict[str, Any]]:
        """The pieces written already; `repair` cuts off one that is torn. UserError for one that has changed since."""
        if self.run.status != UNFINISHED:
            return []
        lines = read_json_lines(self.run.path / PARTIAL, repair=repair)
        for number, line in enumerate(lines, start=1):
            if not isinstance(line, dict) or line.get("crc") != _checksum(line):
                raise UserError(
                    f"{self.run.path / PARTIAL}: line {number}: was changed after it was written. Delete this "
                    "line; its batch will be generated again"
                )
        return lines

    def results(self) -> Iterator[tuple[str, int, list]]:
        """(split, row, its K results) for every row once, in any order; those of earlier, interrupted runs come first.

        Longest inputs go first. Each batch is seeded by (seed, split, number): a continued run has the same results.
        """
        data = self.tokenized()
        pieces = list(_pieces(data, self.datasets, self.config.batch_size))
        progress = self.run.path / PARTIAL
        self.progress(repair=False)  # looked at before anything is written
        self.run.begin(anew=self.run.status != UNFINISHED)
        done = set()
        for line in self.progress(repair=True):
            done.add((line["split"], line["batch"]))
            yield from _by_row(line["split"], line["rows"], line["targets"])
        pieces = [piece for piece in pieces if (piece.split, piece.number) not in done]
        there = self.n_targets - sum(self.k_of[piece.split] * len(piece.rows) for piece in pieces)
        if there:
            say(f"continuing: {there} of {self.n_targets} targets are there")
        with StopRequests() as stop, progress_bar(self.n_targets, "generate", "targets", initial=there) as bar:
            for piece in pieces:
                _check_stop(stop, progress)
                torch.manual_seed(_seed(self.config.seed, piece))
                batch = collate(self.writer.preprocessor, data.split(piece.split), piece.rows)
                targets = self.write(batch.to(self.writer.accelerator.device), self.k_of[piece.split])
                rows = [int(row) for row in piece.rows]
                line = {"split": piece.split, "batch": piece.number, "rows": rows, "targets": targets}
                append_json_line(progress, {**line, "crc": _checksum(line)})
                yield from _by_row(piece.split, rows, targets)
                bar.update(len(targets))


@dataclass(frozen=True)
class Job:
    """What a stage wants written.

    file: its name. left_out: splits that are taken only if they are named. k_of(splits): results of a row, by split.
    load(splits): the model, and what makes results with it. make(writing, path): writes the file, and returns a line
    on it.
    """

    file: str
    left_out: tuple[str, ...]
    k_of: Callable[[Datasets], Mapping[str, int]]
    load: Callable[[Datasets], tuple[Writer, WriteBatch]]
    make: Callable[[Writing, Path], str]


def open_writing_run(config: WritingArguments, datasets: Datasets) -> RunFolder:
    """The output folder of a run with these flags and data. Raises UserError for one that holds something else."""
    return open_run(config, {"dataset_path": data_fingerprint(config.dataset_path, datasets)})


def is_written(run: RunFolder, job: Job) -> bool:
    """Whether a former run has written the job's file to its end."""
    return run.status == FINISHED and (run.path / job.file).is_file()


def write_file(config: WritingArguments, datasets: Datasets, job: Job) -> Path:
    """The run around a file that a model's writing goes to: checked first, made once, its path returned.

    A finished run is not repeated. Raises UserError for what is wrong with flags, data or model.
    """
    chosen = splits_to_generate(config, datasets, left_out=job.left_out)
    run = open_writing_run(config, datasets)
    path = run.path / job.file
    with run.held():
        if is_written(run, job):
            line = "written already"
        else:
            line = job.make(prepare_writing(config, job, run, chosen), path)
            run.finish({})
        run.tidy()
    say(f"{line}: {path}")
    return path


def prepare_writing(config: WritingArguments, job: Job, run: RunFolder, chosen: Datasets) -> Writing:
    """Check the model and load it, for the splits that were chosen."""
    check_model_files(config.model_name, state_dict_path=config.checkpoint_path)
    check_lengths(config.model_name, config)
    return Writing(config, run, chosen, job.k_of(chosen), *job.load(chosen))


def splits_to_generate(config: WritingArguments, datasets: Datasets, *, left_out: Iterable[str]) -> Datasets:
    """The splits of --split_for_generation, or all but `left_out`, checked; UserError for one that is not there."""
    for split in config.split_for_generation or ():
        if split not in datasets:
            raise UserError(
                f"--split_for_generation: {config.dataset_path} has no split {split!r}; nearest: "
                f"{nearest(split, datasets)!r}"
            )
    names = config.split_for_generation or tuple(split for split in datasets if split not in left_out)
    chosen = {split: datasets[split] for split in names}
    check_datasets(chosen, config.dataset_path, need_target=False)
    return chosen


@dataclass(frozen=True)
class Piece:
    """A batch of one split: its number in the split (for the seed and the progress file) and its rows."""

    split: str
    number: int
    rows: np.ndarray


def _pieces(data: TokenizedDatasets, splits: Iterable[str], batch_size: int) -> Iterator[Piece]:
    """Batches of every split, longest inputs first."""
    for split in splits:
        order = longest_first(data.split(split).input_lengths)
        for number, rows in enumerate(chunks(order, batch_size)):
            yield Piece(split, number, np.asarray(rows))


def _checksum(line: dict[str, Any]) -> int:
    """CRC-32 of what a line of progress holds."""
    values = {name: value for name, value in line.items() if name != "crc"}
    return zlib.crc32(json.dumps(values, ensure_ascii=False).encode("utf-8"))


def _by_row(split: str, rows: list[int], targets: list[Any]) -> Iterator[tuple[str, int, list]]:
    k = len(targets) // len(rows)
    return ((split, row, targets[k * i : k * (i + 1)]) for i, row in enumerate(rows))


def _seed(seed: int, piece: Piece) -> int:
    entropy = [seed, piece.number, *piece.split.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def _check_stop(stop: StopRequests, progress: Path) -> None:
    try:
        stop.check()
    except Interrupted:
        say(f"stopped; the same command continues from {progress}")
        raise
