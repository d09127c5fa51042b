"""Measure a model in one cell of the grid, with several batch sizes."""

from functools import cached_property

import numpy as np
from transformers import PreTrainedModel

from src.config.errors import NotFiniteError, UserError
from src.config.flags.profile import ProfileArguments
from src.decoding.sampling import inputs_at_once
from src.decoding.sampling_support import why_unsupported
from src.devices import memory as machine
from src.profiling.grid import LARGEST, Cell, Form
from src.profiling.largest_batch import MemoryTrials, budget_of, largest_that_fits
from src.profiling.measure import Workload, times_of
from src.profiling.results import Record

FEWEST_CALLS = 3  # that are timed at the largest batch


class CellProfile:
    """One model on its device, with inputs and targets of given lengths and a number of beams."""

    def __init__(self, config: ProfileArguments, form: Form, cell: Cell, model: PreTrainedModel) -> None:
        self._config, self._form, self._model = config, form, model
        self._work = Workload(model, cell, config.seed)
        weights = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
        budget = budget_of(model.device, weights, config.maximum_memory)
        self._generation, self._forward = (
            MemoryTrials(run, self._work.batch, model.device, weights, budget)
            for run in (self._work.generate, self._work.forward)
        )

    def measure(self, size: int | None) -> Record:
        """The record of a batch size, or of the LARGEST that fits. Raises UserError if the model computes NaN."""
        try:
            n_calls, n_warmup = self._config.n_calls, self._config.warmup_calls
            if size is not LARGEST:
                return self._record(size, n_calls, n_warmup)
            largest = largest_that_fits(self._generation.fits, self._most)
            as_many_inputs = -(-n_calls // max(1, largest))
            n_calls = min(n_calls, max(FEWEST_CALLS, as_many_inputs))
            record = self._record(max(1, largest), n_calls, min(n_warmup, 1))  # the search has warmed it up
        except NotFiniteError as error:
            raise UserError(f"{self._form.name}: {error}") from None
        record.max_batch_size = largest
        return record

    def _record(self, size: int, n_calls: int, n_warmup: int) -> Record:
        cell, device = self._work.cell, self._model.device
        record = Record(
            model_name=self._form.name,
            enc_layers_to_keep=self._form.encoder_layers,
            dec_layers_to_keep=self._form.decoder_layers,
            batch_size=size,
            input_length=cell.input_length,
            target_length=cell.target_length,
            num_beams=cell.num_beams,
            device=str(device),
            device_name=machine.name_of(device),
            parameters=self._model.num_parameters(),
            flops=self._flops * size,
            n_calls=n_calls,
        )
        calls = {"n_calls": n_calls, "n_warmup": n_warmup}
        record.forward_ms_median, record.forward_ms_p90 = self._milliseconds(self._forward, size, calls)
        record.latency_ms_median, record.latency_ms_p90 = self._milliseconds(self._generation, size, calls)
        if record.latency_ms_median is not None:
            record.peak_memory_mb = round(self._generation.peaks[size] / 1e6, 1)
            record.sentences_per_second = round(1000 * size / record.latency_ms_median, 3)
            record.tokens_per_second = round(1000 * size * cell.target_length / record.latency_ms_median, 3)
        return record

    def _milliseconds(
        self, trials: MemoryTrials, size: int, calls: dict[str, int]
    ) -> tuple[float | None, float | None]:
        """The median and the 90th percentile of calls on a batch; None if it does not fit into memory."""
        if not trials.fits(size):
            return None, None
        batch = self._work.batch(size)
        device = self._model.device
        seconds = trials.unless_out_of_memory(lambda: times_of(lambda: trials.run(batch), device, **calls))
        if seconds is None:
            return None, None
        median, high = np.percentile(np.multiply(1000, seconds), [50, 90]).round(3).tolist()
        return median, high

    @cached_property
    def _flops(self) -> int:
        return self._work.flops()

    @cached_property
    def _most(self) -> int | None:
        """The largest batch that our decoding loops do not split; None if `generate` writes."""
        if why_unsupported(self._model) is not None:
            return None
        cell = self._work.cell
        return inputs_at_once(self._model, self._work.batch(1), cell.target_length, cell.num_beams)


def line_of(record: Record) -> str:
    """What was measured, in a line."""
    where = f"{record.model_name}: {record.input_length} → {record.target_length} tokens, "
    where += f"{record.num_beams} beam{'s' * (record.num_beams > 1)}, batch of {record.batch_size}"
    if record.is_largest:
        where += " (the largest that fits)"
    if record.latency_ms_median is None:
        return f"{where}: does not fit into memory"
    return (
        f"{where}: {record.latency_ms_median:,.1f} ms ({record.latency_ms_p90:,.1f} at the 90th percentile), "
        f"{record.sentences_per_second:,.1f} sentences/s, {record.peak_memory_mb:,.0f} MB"
    )
