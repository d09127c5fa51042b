"""Generate results for every row of some splits, batch by batch; a killed run continues and ends with the same file."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from src.runs.description import UNFINISHED
from src.runs.folder import PARTIAL, RunFolder
from src.storage.json_files import append_json_line, read_json_lines
from src.tokens.batch import Batch, collate
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
        try:
            split, _, rows, targets = (line[name] for name in ("split", "batch", "rows", "targets"))
            numbers = range(len(self.datasets[split][TEXT]))
            return bool(rows) and all(row in numbers for row in rows) and len(targets) == self.k_of[split] * len(rows)
        except (KeyError, TypeError):
            return False

    def results(self) -> Iterator[tuple[str, int, list]]:
        """Yield (split, row, its K results), every row once, in any order; those of an interrupted run come first.

        Longest inputs go first. Each batch is seeded by (seed, split, number): a continued run has the same results.
        """
        data = self.tokenized()
        batches = {
            (split, number): rows
            for split in self.datasets
            for number, rows in enumerate(
                chunks(longest_first(data.split(split).input_lengths), self.config.batch_size)
            )
        }
        self.progress(repair=False)  # checked before anything is written
        self.run.begin(anew=self.run.status != UNFINISHED)
        for line in self.progress(repair=True):
            batches.pop((line["split"], line["batch"]), None)
            yield from _group_by_row(line["split"], line["rows"], line["targets"])
        n_done = self.n_targets - sum(self.k_of[split] * len(rows) for (split, _), rows in batches.items())
        if n_done:
            say(f"continuing: {n_done} of {self.n_targets} targets are there")
        with StopRequests() as stop, progress_bar(self.n_targets, "generate", "targets", initial=n_done) as bar:
            for (split, number), rows in batches.items():
                try:
                    stop.check()
                except Interrupted:
                    say(f"stopped; the same command continues from {self.run.path / PARTIAL}")
                    raise
                targets = self._generate(data, split, number, rows)
                yield from _group_by_row(split, rows.tolist(), targets)
                bar.update(len(targets))

    def _generate(self, data: TokenizedDatasets, split: str, number: int, rows: np.ndarray) -> list:
        """A batch's results, once they are on disk."""
        seeds = np.random.SeedSequence([self.config.seed, number, *split.encode()])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        batch = collate(self.generator.preprocessor, data.split(split), rows)
        targets = self.generate_batch(batch.to(self.generator.accelerator.device), self.k_of[split])
        line = {"split": split, "batch": number, "rows": rows.tolist(), "targets": targets}
        append_json_line(self.run.path / PARTIAL, line)
        return targets


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


def _group_by_row(split: str, rows: list[int], targets: list[Any]) -> Iterator[tuple[str, int, list]]:
    k = len(targets) // len(rows)
    return ((split, row, targets[k * i : k * (i + 1)]) for i, row in enumerate(rows))
