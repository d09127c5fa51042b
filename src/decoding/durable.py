"""Generate results for every row of some splits, batch by batch; a killed run continues and ends with the same file."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.config.console import progress_bar, say
from src.config.constants import TEXT
from src.config.errors import UserError
from src.config.flags.generate import WritingArguments
from src.config.parsing import nearest
from src.config.signals import Interrupted, StopRequests
from src.data.schema import Datasets, check_datasets
from src.decoding.generator import TargetGenerator
from src.runs.description import FINISHED, UNFINISHED, data_fingerprint
from src.runs.folder import PARTIAL, RunFolder, open_run
from src.storage.json_files import append_json_line, read_json_lines
from src.tokens.batch import Batch
from src.tokens.collate import collate
from src.tokens.order import chunks, longest_first
from src.tokens.tokenized import TokenizedDatasets

GenerateBatch = Callable[[Batch, int], list]  # a batch on the device and K: JSON values, the K of one row adjacent


@dataclass(frozen=True)
class DurableGeneration:
    """K results for every row of some splits, ready to be generated; each finished batch is saved as a line of JSON.

    datasets: the chosen splits. k_of: K by split. generate_batch: what makes the results, with the generator's model.
    """

    config: WritingArguments
    run: RunFolder
    datasets: Datasets
    k_of: Mapping[str, int]
    generator: TargetGenerator
    generate_batch: GenerateBatch

    @property
    def n_targets(self) -> int:
        return sum(self.k_of[split] * len(columns[TEXT]) for split, columns in self.datasets.items())

    def tokenized(self) -> TokenizedDatasets:
        texts = {split: {TEXT: columns[TEXT]} for split, columns in self.datasets.items()}
        return TokenizedDatasets(texts, self.generator.preprocessor)

    def progress(self, *, repair: bool) -> list[dict[str, Any]]:
        """The lines of batches that are done; `repair` cuts off a torn last line.

        Raises UserError for a line that does not hold K results for each of its rows.
        """
        if self.run.status != UNFINISHED:
            return []
        path = self.run.path / PARTIAL
        lines = read_json_lines(path, repair=repair)
        for number, line in enumerate(lines, start=1):
            if not self._is_complete(line):
                raise UserError(
                    f"{path}: line {number}: does not hold the results of a batch of this run. Delete this line; its "
                    "batch will be generated again"
                )
        return lines

    def _is_complete(self, line: Any) -> bool:
        if not (isinstance(line, dict) and {"split", "batch", "rows", "targets"} <= line.keys()):
            return False
        split, rows, targets = line["split"], line["rows"], line["targets"]
        if not (isinstance(split, str) and split in self.datasets and isinstance(targets, list)):
            return False
        numbers = range(len(self.datasets[split][TEXT]))
        if not (isinstance(rows, list) and rows and all(row in numbers for row in rows)):
            return False
        return len(targets) == self.k_of[split] * len(rows)

    def results(self) -> Iterator[tuple[str, int, list]]:
        """Yield (split, row, its K results), every row once, in any order; those of an interrupted run come first.

        Longest inputs go first. Each batch is seeded by (seed, split, number): a continued run has the same results.
        """
        data = self.tokenized()
        batches = list(_number_batches(data, self.datasets, self.config.batch_size))
        self.progress(repair=False)  # checked before anything is written
        self.run.begin(anew=self.run.status != UNFINISHED)
        done = set()
        for line in self.progress(repair=True):
            done.add((line["split"], line["batch"]))
            yield from _group_by_row(line["split"], line["rows"], line["targets"])
        left = [batch for batch in batches if (batch.split, batch.number) not in done]
        n_done = self.n_targets - sum(self.k_of[batch.split] * len(batch.rows) for batch in left)
        if n_done:
            say(f"continuing: {n_done} of {self.n_targets} targets are there")
        with StopRequests() as stop, progress_bar(self.n_targets, "generate", "targets", initial=n_done) as bar:
            for batch in left:
                _check_stop(stop, self.run.path / PARTIAL)
                rows, targets = self._generate(data, batch)
                yield from _group_by_row(batch.split, rows, targets)
                bar.update(len(targets))

    def _generate(self, data: TokenizedDatasets, batch: "NumberedBatch") -> tuple[list[int], list]:
        """A batch's rows and results, once they are on disk."""
        torch.manual_seed(_seed(self.config.seed, batch))
        tokens = collate(self.generator.preprocessor, data.split(batch.split), batch.rows)
        targets = self.generate_batch(tokens.to(self.generator.accelerator.device), self.k_of[batch.split])
        rows = batch.rows.tolist()
        line = {"split": batch.split, "batch": batch.number, "rows": rows, "targets": targets}
        append_json_line(self.run.path / PARTIAL, line)
        return rows, targets


def open_generation_run(config: WritingArguments, datasets: Datasets) -> RunFolder:
    """The output folder of a run with these flags and data. Raises UserError for one that holds something else."""
    return open_run(config, {"dataset_path": data_fingerprint(config.dataset_path, datasets)})


def has_finished(run: RunFolder, path: Path) -> bool:
    """Whether an earlier run finished and its file is still there."""
    return run.status == FINISHED and path.is_file()


def finish_file(run: RunFolder, path: Path, what: str) -> None:
    """Mark the run as finished, remove its progress file and print what its file holds."""
    run.finish({})
    run.tidy()
    say(f"{what}: {path}")


def keep_file(run: RunFolder, path: Path) -> None:
    """Print that an earlier run wrote the file, and remove what a kill may have left beside it."""
    run.tidy()
    say(f"written already: {path}")


def select_splits(config: WritingArguments, datasets: Datasets, *, left_out: Iterable[str]) -> Datasets:
    """The splits of --split_for_generation, or without the flag all but `left_out`.

    Raises UserError for a split that is not there or whose inputs cannot be used.
    """
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
class NumberedBatch:
    """A batch of one split: its number in the split, which seeds it, and its rows."""

    split: str
    number: int
    rows: np.ndarray


def _number_batches(data: TokenizedDatasets, splits: Iterable[str], batch_size: int) -> Iterator[NumberedBatch]:
    """Batches of every split, longest inputs first."""
    for split in splits:
        order = longest_first(data.split(split).input_lengths)
        for number, rows in enumerate(chunks(order, batch_size)):
            yield NumberedBatch(split, number, rows)


def _group_by_row(split: str, rows: list[int], targets: list[Any]) -> Iterator[tuple[str, int, list]]:
    k = len(targets) // len(rows)
    return ((split, row, targets[k * i : k * (i + 1)]) for i, row in enumerate(rows))


def _seed(seed: int, batch: NumberedBatch) -> int:
    entropy = [seed, batch.number, *batch.split.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def _check_stop(stop: StopRequests, progress: Path) -> None:
    try:
        stop.check()
    except Interrupted:
        say(f"stopped; the same command continues from {progress}")
        raise
