"""A few real steps of a run that is ready to begin, timed and measured. The models are of no use afterwards."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from src.config.console import progress_bar
from src.config.flags.shared import TrainingArguments
from src.devices import memory as machine
from src.distillation.teachers import LiveTeacher
from src.preflight.estimates import Kind, Memory, Needs, memory_at_peak, nearest_to_mean
from src.tokens.collate import collate
from src.tokens.order import chunks, epoch_order, longest_first
from src.tokens.tokenized import TokenizedDatasets, TokenizedSplit
from src.training.engine import Trainer
from src.training.phase import Phase

if TYPE_CHECKING:
    from src.decoding.durable import DurableGeneration

ROWS = 20_000  # of a split, at most, that are looked at
TYPICAL, MOST = 2, 20  # steps of usual size that are timed: more than a few only while all together are quicker than
QUICK = 1.0  # seconds, and a single one where the longest took more than
LONG = 30.0  # seconds


@dataclass(frozen=True)
class Trained:
    """The kinds of updates of each phase, and the seconds that an evaluation takes for a row."""

    kinds: tuple[tuple[Kind, ...], ...]
    evaluation: float


def try_training(
    trainer: Trainer, phases: Sequence[tuple[Phase, str]], evaluated: str | None
) -> tuple[Trained | None, Memory]:
    """Updates of every kind, with the split that each phase goes on with, and batches of an evaluation.

    None where there is not enough memory.
    """
    variants = [[(*variant, split) for variant in _variants(phase)] for phase, split in phases]
    splits = {name: trainer.data.glimpse(name, ROWS) for name in (*(name for _, name in phases), evaluated) if name}

    def steps(bar: Any) -> Trained:
        kinds = tuple(
            tuple(_time_updates(trainer, kind, phase, splits[name], bar) for kind, phase, name in each)
            for each in variants
        )
        return Trained(kinds, _time_evaluation(trainer, splits[evaluated], bar) if evaluated else 0.0)

    with _not_compiled(trainer.config):
        n_kinds = sum(map(len, variants)) + (evaluated is not None)
        return _measured(steps, needs_of_training(trainer, [phase for phase, _ in phases]), trainer.device, n_kinds)


def try_generation(generation: "DurableGeneration", data: TokenizedDatasets) -> tuple[float | None, Memory]:
    """Seconds by target, from a few batches after the longest one; None where there is not enough memory."""
    preprocessor, device = generation.generator.preprocessor, generation.generator.accelerator.device
    splits = {name: data.glimpse(name, ROWS) for name in generation.datasets}
    batches = [
        (name, rows)
        for name, split in splits.items()
        for rows in chunks(longest_first(split.input_lengths), generation.config.batch_size)
    ]
    sizes = [generation.k_of[name] * _padded(splits[name].input_lengths, rows) for name, rows in batches]

    def write(place: int) -> None:
        name, rows = batches[place]
        generation.generate_batch(collate(preprocessor, splits[name], rows).to(device), generation.k_of[name])

    def steps(bar: Any) -> float:
        times = _time_typical(write, sizes, device, bar)
        n_targets = sum(len(batches[place][1]) * generation.k_of[batches[place][0]] for place in times)
        return sum(times.values()) / n_targets

    needs = Needs(_bytes_of(generation.generator.model.parameters()))
    return _measured(steps, needs, device, 1)


def needs_of_training(trainer: Trainer, phases: Sequence[Phase]) -> Needs:
    """What can be counted beforehand; without phases nothing is learned."""
    model, state = trainer.training.model, trainer.training.optimizer.state
    gradients = _bytes_of(each for each in model.parameters() if each.requires_grad) if phases else 0
    teachers = [phase.teacher.model for phase in phases if isinstance(phase.teacher, LiveTeacher)]
    return Needs(
        weights=_bytes_of(model.parameters()),
        gradients=gradients,
        optimizer=2 * gradients,  # AdamW's two moments, in the format of the weights
        teacher=_bytes_of(teachers[0].parameters()) if teachers else 0,
        optimizer_there=_bytes_of(
            value for held in state.values() for value in held.values() if torch.is_tensor(value)
        ),
    )


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _measured(steps: Callable[[Any], Any], needs: Needs, device: torch.device, n_kinds: int) -> tuple[Any, Memory]:
    """What steps(bar) returns, which makes `n_kinds` of them, and the memory that it took; None where that ran out."""
    before, available = machine.held(device), machine.within_reach(device)
    result = peak = None
    if before + needs.to_come <= available:
        with progress_bar(2 * n_kinds, "dry run: time steps", "parts") as bar, machine.Peak(device) as memory:
            try:
                result = steps(bar)
                peak = memory.bytes
            except (RuntimeError, MemoryError) as error:
                if not machine.is_lack_of_memory(error):
                    raise
    return result, memory_at_peak(needs, before=before, peak=peak, available=available)


def _not_compiled(config: TrainingArguments) -> AbstractContextManager:
    """Within: nothing is compiled, which would take minutes and write files."""
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()


def _variants(phase: Phase) -> list[tuple[Kind, Phase]]:
    """The kinds of updates that a phase has, each as a phase of its own: of every loss, with each writer of labels.

    How many updates learn which loss may depend on the scores: all are taken for equally many.
    """
    variants = []
    for entry in phase.losses:
        share = entry.generate_labels_weight
        for writes, part in ((0.0, 1 - share), (1.0, share)):
            if part > 0:
                what = f"{entry.name} on labels of the student" if writes else entry.name
                loss = replace(entry, generate_labels_weight=writes)
                variants.append((Kind(what, part / len(phase.losses), 0.0), replace(phase, losses=(loss,))))
    return variants


def _time_updates(trainer: Trainer, kind: Kind, phase: Phase, split: TokenizedSplit, bar: Any) -> Kind:
    """The kind with the time of an update."""
    size, seed = trainer.config.batch_size, trainer.config.seed
    updates = list(chunks(epoch_order(len(split), seed=seed, epoch=trainer.state.epoch), size))
    sizes = [_padded(split.lengths, rows) for rows in updates]

    def update(place: int) -> None:
        trainer.try_update(phase, split, updates[place])

    times = _time_typical(update, sizes, trainer.device, bar)
    return replace(kind, seconds=sum(times.values()) / len(times))


def _time_typical(
    step: Callable[[int], None], sizes: Sequence[int], device: torch.device, bar: Any
) -> dict[int, float]:
    """Seconds of some steps of usual size, by their place.

    The largest is made before them, for the memory it takes, and for the time that only a first step takes.
    """
    longest = _seconds(partial(step, int(np.argmax(sizes))), device)
    bar.update()
    times: dict[int, float] = {}
    for place in nearest_to_mean(sizes, MOST):
        times[place] = _seconds(partial(step, place), device)
        if longest > LONG or (len(times) >= TYPICAL and sum(times.values()) > QUICK):
            break
    bar.update()
    return times


def _time_evaluation(trainer: Trainer, split: TokenizedSplit, bar: Any) -> float:
    """Seconds that a row takes when it is evaluated; without the metrics."""
    evaluator, model = trainer.evaluator, trainer.training.model
    batches = list(chunks(longest_first(split.input_lengths), evaluator.batch_size))
    sizes = [_padded(split.input_lengths, rows) for rows in batches]

    def evaluate(place: int) -> None:
        evaluator.write(model, split, batches[place])
        deque(evaluator.token_losses(model, split, batches[place]), maxlen=0)

    model.eval()
    times = _time_typical(evaluate, sizes, trainer.device, bar)
    return sum(times.values()) / sum(len(batches[place]) for place in times)


def _padded(lengths: np.ndarray, rows: np.ndarray) -> int:
    """Tokens of a batch of rows, padding included."""
    return len(rows) * int(lengths[rows].max())


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    machine.wait_for(device)
    start = time.perf_counter()
    step()
    machine.wait_for(device)
    return time.perf_counter() - start
