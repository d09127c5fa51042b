"""Generate results for every row of some splits, batch by batch; a killed run continues and ends with the same file."""

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta

from src.config.console import progress_bar, say
from src.config.constants import TEXT
from src.config.errors import UserError
from src.config.flags.generate import WritingArguments
from src.config.parsing import nearest
from src.config.signals import Interrupted, StopRequests
from src.data.schema import Datasets, check_datasets
from src.decoding.generator import TargetGenerator
from src.decoding.server_engine import ServerEngine, Started
from src.devices import processes
from src.runs.description import UNFINISHED
from src.runs.folder import PARTIAL, RunFolder
from src.storage.json_files import append_json_line, located_json_lines, read_json_line
from src.tokens.batch import Batch, collate
from src.tokens.order import chunks, longest_first
from src.tokens.token_cache import NO_CACHE, TokenCache
from src.tokens.tokenized import TokenizedDatasets

# Of a batch on the device and K: JSON values, the K of one row adjacent; a server has them later.
GenerateBatch = Callable[[Batch, int], list | Started]

_Key = tuple[str, int]  # split and number of a batch


class _Line(msgspec.Struct):
    """A line of the progress file: a batch, and the results of its rows."""

    split: str
    batch: int
    rows: Annotated[list[int], Meta(min_length=1)]
    targets: list[Any]


class _Piece(NamedTuple):
    """A batch by its split and number; results: of its rows, there or to come; is_saved: an interrupted run did."""

    split: str
    number: int
    rows: list[int]
    results: list | Started
    is_saved: bool = False


@dataclass(frozen=True)
class DurableGeneration:
    """K results for every row of some splits, ready to be generated; each finished batch is saved as a line of JSON.

    datasets: the chosen splits. k_of: K by split. generate_batch: what makes the results, with the generator's model.
    results_type: of a batch's results in the progress file, which msgspec checks.
    """

    config: WritingArguments
    run: RunFolder
    datasets: Datasets
    k_of: Mapping[str, int]
    generator: TargetGenerator | ServerEngine
    generate_batch: GenerateBatch
    results_type: Any

    @property
    def n_targets(self) -> int:
        return sum(self.k_of[split] * len(columns[TEXT]) for split, columns in self.datasets.items())

    def tokenized(self) -> TokenizedDatasets:
        texts = {split: {TEXT: columns[TEXT]} for split, columns in self.datasets.items()}
        cache = NO_CACHE if self.config.dry_run else TokenCache.beside(self.config.dataset_path)
        return TokenizedDatasets(texts, self.generator.preprocessor, cache)

    def progress(self, *, repair: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """The lines of batches that are done, each with its first byte; `repair` cuts off a torn last line.

        Raises UserError for a line that does not hold K results for each of its rows.
        """
        if self.run.status != UNFINISHED:
            return
        path = self.run.path / PARTIAL
        for number, (start, line) in enumerate(located_json_lines(path, repair=repair), start=1):
            if not self._is_complete(line):
                raise UserError(
                    f"{path}: line {number}: does not hold the results of a batch of this run. Delete this line; its "
                    "batch will be generated again"
                )
            yield start, line

    def _is_complete(self, line: Any) -> bool:
        try:
            done = msgspec.convert(line, _Line)
            targets = msgspec.convert(done.targets, self.results_type)
        except msgspec.ValidationError:
            return False
        if done.split not in self.datasets or len(targets) != self.k_of[done.split] * len(done.rows):
            return False
        return all(0 <= row < len(self.datasets[done.split][TEXT]) for row in done.rows)

    def results(self) -> Iterator[tuple[str, int, list]]:
        """Begin the run; then yield (split, row, its K results), every row once, in the order of the batches.

        Longest inputs go first. Each batch is seeded by (seed, split, number): a continued run has the same results.
        A server writes several batches at once; if it goes away, or the run is stopped, those that are complete stay.
        Several processes are dealt the batches; the main one gets all results and saves them, the others yield none.
        """
        data = self.tokenized()
        batches = {
            (split, number): rows
            for split in self.datasets
            for number, rows in enumerate(
                chunks(longest_first(data.split(split).input_lengths), self.config.batch_size)
            )
        }
        processes.from_main(lambda: deque(self.progress(repair=False), maxlen=0))  # before anything is written
        self.run.begin(anew=self.run.status != UNFINISHED)
        places, n_done = processes.from_main(lambda: self._places(batches))
        if n_done:
            say(f"continuing: {n_done} of {self.n_targets} targets are there")
        return self._results(data, batches, places, n_done)

    def _places(self, batches: Container[_Key]) -> tuple[dict[_Key, int], int]:
        """The first byte of each batch's line in the progress file, and the targets that they hold."""
        places: dict[_Key, int] = {}  # their results may not fit in memory
        n_done = 0
        for start, line in self.progress(repair=True):
            key = (line["split"], line["batch"])
            n_done += len(line["targets"]) if key in batches and key not in places else 0
            places[key] = start
        return places, n_done

    def _results(
        self,
        data: TokenizedDatasets,
        batches: Mapping[_Key, np.ndarray],
        places: Mapping[_Key, int],
        n_done: int,
    ) -> Iterator[tuple[str, int, list]]:
        """The results of `batches`, of which the lines at `places` hold `n_done`."""
        pieces: deque[_Piece] = deque()
        missing = [key for key in batches if key not in places]
        own, mail = set(processes.dealt(missing)), processes.Mail()
        n_ahead = self.generator.n_ahead if isinstance(self.generator, ServerEngine) else 0
        with (
            processes.stop_requests() as stop,
            progress_bar(self.n_targets, "generate", "targets", initial=n_done) as bar,
        ):
            try:
                for key, rows in batches.items():
                    if key in own:
                        if stop.leaves():
                            break
                        pieces.append(_Piece(*key, rows.tolist(), self._generate(data, *key, rows)))
                    elif key in places and processes.is_main():
                        line = read_json_line(self.run.path / PARTIAL, places[key])
                        pieces.append(_Piece(*key, line["rows"], line["targets"], is_saved=True))
                    if not processes.is_main():
                        while pieces:
                            mail.send(pieces.popleft())
                    while len(pieces) > n_ahead:
                        yield from self._finish(pieces, stop, bar)
                    yield from self._arrived(mail, bar)
                while pieces:
                    yield from self._finish(pieces, stop, bar)
                if not processes.is_main():
                    mail.close()
                while processes.is_main() and mail.n_senders:
                    mail.wait()
                    yield from self._arrived(mail, bar)
                stop.check()
            except Interrupted:
                say(f"stopped; the same command continues from {self.run.path / PARTIAL}")
                raise
            finally:
                if isinstance(self.generator, ServerEngine):
                    self.generator.client.close()
                    for piece in pieces:
                        if isinstance(piece.results, Started) and piece.results.is_complete():
                            self._save(piece, piece.results.result())

    def _arrived(self, mail: processes.Mail, bar: Any) -> Iterator[tuple[str, int, list]]:
        """In the main process, the results of other processes that are there, once they are on disk."""
        for line in mail.arrived():
            piece = _Piece(*line)
            results: list = line[3]
            self._save(piece, results)
            bar.update(len(results))
            yield from _group_by_row(piece.split, piece.rows, results)

    def _finish(self, pieces: deque[_Piece], stop: StopRequests, bar: Any) -> Iterator[tuple[str, int, list]]:
        """The results of the first piece, once they are on disk."""
        piece = pieces[0]
        results = piece.results
        if isinstance(results, Started):
            try:
                with stop.at_once():
                    results = results.result()
            except UserError as error:
                raise UserError(f"split '{piece.split}', {error}; the same command continues") from None
        if not piece.is_saved:
            self._save(piece, results)
            bar.update(len(results))
        pieces.popleft()
        yield from _group_by_row(piece.split, piece.rows, results)

    def _generate(self, data: TokenizedDatasets, split: str, number: int, rows: np.ndarray) -> list | Started:
        """A batch's results, from its own seed."""
        seeds = np.random.SeedSequence([self.config.seed, number, *split.encode()])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        batch = collate(self.generator.preprocessor, data.split(split), rows)
        return self.generate_batch(batch.to(self.generator.device), self.k_of[split])

    def _save(self, piece: _Piece, targets: list) -> None:
        line = {"split": piece.split, "batch": piece.number, "rows": piece.rows, "targets": targets}
        append_json_line(self.run.path / PARTIAL, line)


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
