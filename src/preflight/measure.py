"""Time a few real steps of a prepared run and measure their memory. The models are of no use afterwards."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from src.config.console import progress_bar
from src.decoding.durable import DurableGeneration
from src.decoding.generator import TargetGenerator
from src.devices import memory as machine
from src.distillation.teachers import LiveTeacher
from src.preflight.estimates import Memory, Needs
from src.tokens.batch import collate
from src.tokens.order import chunks, epoch_order, longest_first
from src.tokens.tokenized import TokenizedDatasets, TokenizedSplit
from src.training.engine import Trainer
from src.training.optimizers import state_bytes
from src.training.phase import Phase

ROWS = 20_000  # of a split, at most, that are tokenized
MOST_STEPS, ENOUGH = 20, 1.0  # steps are timed until there are so many, or until they took so many seconds together


def time_training(
    trainer: Trainer, phases: Sequence[tuple[Phase, str]], evaluated: str | None
) -> tuple[tuple[list[float], float] | None, Memory]:
    """Time updates of each phase on its next split, and evaluation batches; None if there is not enough memory.

    Returns the seconds of a mean update of each phase, and of the evaluation of a row without the metrics.
    """
    splits = {name: trainer.data.glimpse(name, ROWS) for name in (*(name for _, name in phases), evaluated) if name}

    def steps(bar: Any) -> tuple[list[float], float]:
        updates = [_time_phase(trainer, phase, splits[name], bar) for phase, name in phases]
        return updates, _time_evaluation(trainer, splits[evaluated], bar) if evaluated else 0.0

    n_parts = sum(len(phase.losses) for phase, _ in phases) + (evaluated is not None)
    needs = training_needs(trainer, [phase for phase, _ in phases])
    to_come = needs.gradients + (0 if trainer.training.optimizer.state else needs.optimizer)  # loaded, if resumed
    # Compiling would take minutes and write files.
    with torch.compiler.set_stance("force_eager") if trainer.config.compile else nullcontext():
        return _measure(steps, needs, to_come, trainer.accelerator.device, n_parts)


def time_generation(
    generation: DurableGeneration, generator: TargetGenerator, data: TokenizedDatasets
) -> tuple[float | None, Memory]:
    """Seconds per target, from a few batches after the longest one; None if there is not enough memory."""
    preprocessor, device = generator.preprocessor, generator.device
    k_of, splits = generation.k_of, {name: data.glimpse(name, ROWS) for name in generation.datasets}
    batches = [
        (name, rows)
        for name, split in splits.items()
        for rows in chunks(longest_first(split.input_lengths), generation.config.batch_size)
    ]
    sizes = [k_of[name] * _padded_tokens(splits[name].input_lengths, rows) for name, rows in batches]

    def generate(i: int) -> None:
        name, rows = batches[i]
        generation.generate_batch(collate(preprocessor, splits[name], rows).to(device), k_of[name])

    def steps(bar: Any) -> float:
        times = _time_typical(generate, sizes, device)
        bar.update()
        return sum(times.values()) / sum(k_of[name] * len(rows) for name, rows in map(batches.__getitem__, times))

    return _measure(steps, Needs(_bytes_of(generator.model.parameters())), 0, device, 1)


def training_needs(trainer: Trainer, phases: Sequence[Phase]) -> Needs:
    """The memory that is known beforehand; without phases nothing is trained."""
    model = trainer.training.model
    trained = [each for each in model.parameters() if each.requires_grad and phases]
    teachers = [phase.teacher.model for phase in phases if isinstance(phase.teacher, LiveTeacher)]
    teachers = [teacher for teacher in teachers if teacher.device == model.device]
    return Needs(
        weights=_bytes_of(model.parameters()),
        gradients=_bytes_of(trained),
        optimizer=state_bytes(trainer.config.optimizer, trained),
        teacher=_bytes_of(teachers[0].parameters()) if teachers else 0,
    )


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _measure(
    steps: Callable[[Any], Any], needs: Needs, to_come: int, device: torch.device, n_parts: int
) -> tuple[Any, Memory]:
    """What steps(bar) returns, None where memory ran out; and the memory that it took.

    to_come: bytes that the first step adds and that stay; if there is no room for them, no step is tried.
    """
    machine.reset_peak(device)
    available, least = machine.within_reach(device), machine.held(device) + to_come
    if least <= available:
        with progress_bar(n_parts, "dry run: time steps", "parts") as bar:
            try:
                return steps(bar), Memory(needs, machine.peak(device), available)
            except (RuntimeError, MemoryError) as error:
                if not machine.is_out_of_memory(error):
                    raise
    return None, Memory(needs, least, available, ran_out=True)


def _time_phase(trainer: Trainer, phase: Phase, split: TokenizedSplit, bar: Any) -> float:
    """Seconds of a mean update: each loss counts equally, with and without labels of the student by their share.

    Which loss is learned for how long may depend on the scores.
    """
    seconds = 0.0
    for entry in phase.losses:
        for writes, share in ((0.0, 1 - entry.generate_labels_weight), (1.0, entry.generate_labels_weight)):
            if share > 0:
                alone = replace(phase, losses=(replace(entry, generate_labels_weight=writes),))
                seconds += share * _time_update(trainer, alone, split) / len(phase.losses)
        bar.update()
    return seconds


def _time_update(trainer: Trainer, phase: Phase, split: TokenizedSplit) -> float:
    order = epoch_order(len(split), seed=trainer.config.seed, epoch=trainer.state.epoch)
    updates = list(chunks(order, trainer.config.batch_size))
    sizes = [_padded_tokens(split.lengths, rows) for rows in updates]
    times = _time_typical(lambda i: trainer.try_update(phase, split, updates[i]), sizes, trainer.accelerator.device)
    return sum(times.values()) / len(times)


def _time_evaluation(trainer: Trainer, split: TokenizedSplit, bar: Any) -> float:
    """Seconds that the evaluation of a row takes, without the metrics."""
    evaluator, model = trainer.evaluator, trainer.training.model
    batches = list(chunks(longest_first(split.input_lengths), evaluator.batch_size))
    sizes = [_padded_tokens(split.input_lengths, rows) for rows in batches]

    def evaluate(i: int) -> None:
        evaluator.write(model, split, batches[i])
        deque(evaluator.token_losses(model, split, batches[i]), maxlen=0)

    model.eval()
    times = _time_typical(evaluate, sizes, trainer.accelerator.device)
    bar.update()
    return sum(times.values()) / sum(len(batches[i]) for i in times)


def _time_typical(step: Callable[[int], None], sizes: Sequence[int], device: torch.device) -> dict[int, float]:
    """Seconds of steps by their number, those nearest to the mean size first.

    The largest step comes before them, untimed: it takes the most memory, and a first step takes longer than others.
    """
    step(int(np.argmax(sizes)))
    times: dict[int, float] = {}
    for i in np.argsort(np.abs(np.asarray(sizes) - np.mean(sizes)), kind="stable")[:MOST_STEPS].tolist():
        times[i] = _seconds(partial(step, i), device)
        if sum(times.values()) > ENOUGH:
            break
    return times


def _padded_tokens(lengths: np.ndarray, rows: np.ndarray) -> int:
    """Tokens of a batch of rows, padding included."""
    return len(rows) * int(lengths[rows].max())


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    machine.wait_for(device)
    start = time.perf_counter()
    step()
    machine.wait_for(device)
    return time.perf_counter() - start
