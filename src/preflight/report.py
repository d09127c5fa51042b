"""Dry runs: reports on a prepared run (models, data, work, disk, memory, time); and `write_or_report`."""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from src.config.console import say
from src.config.constants import DEV, DEV_PPL, TEST
from src.config.flags.generate import WritingArguments
from src.data.schema import Datasets
from src.decoding.durable import DurableGeneration, select_splits
from src.decoding.server_engine import ServerEngine
from src.devices import memory as machine
from src.devices import processes
from src.distillation.teachers import LiveTeacher
from src.models.adapters import has_lora
from src.preflight.estimates import Work, disk_at_peak, work_of_phases
from src.preflight.measure import time_generation, time_training, training_needs
from src.preflight.sections import (
    data_lines,
    describe_model,
    memory_lines,
    plural,
    print_report,
    size,
    span,
    state_of_folder,
    time_lines,
    tokenizer_and_device,
)
from src.preflight.server_report import describe_server, server_time_lines
from src.runs.description import FINISHED, data_fingerprint
from src.runs.folder import RunFolder, open_run
from src.training import rhythm
from src.training.engine import Trainer
from src.training.phase import Phase

Config = TypeVar("Config", bound=WritingArguments)
NOT_TIMED = ["not known: there is not enough memory for a step"]


def report_training(trainer: Trainer) -> dict[str, float]:
    """Time a few steps of a training run and print what the run would do and take; returns no scores."""
    config, data = trainer.config, trainer.data
    left = trainer.phases[trainer.state.phase :]
    works = work_of_phases(config, trainer.phases, data, trainer.state)
    counts = {DEV: sum(work.dev for work in works), TEST: sum(work.test for work in works) + 1}  # the closing test
    evaluations = {split: count for split, count in counts.items() if split in data and count}
    rotations = _rotations(left, trainer.state.epoch - trainer.state.phase_start)
    evaluated = [split for split in (DEV, DEV_PPL, TEST) if split in data and (left or split == TEST)]
    sections = {
        "run": [_state_of_training(trainer)],
        "models": _models(trainer),
        "data": data_lines(data, [*rotations, *((split,) for split in evaluated)]),
        "work": _work(trainer, works, evaluations),
        "disk": [_disk(trainer)],
    }
    next_splits = [(phase, first) for phase, (first, *_) in zip(left, rotations, strict=True)]
    times, memory = time_training(trainer, next_splits, next(iter(evaluated), None))
    sections["memory"] = memory_lines(memory, config, trainer.accelerator.device)
    sections["time"] = NOT_TIMED
    if times is not None:
        parts = [
            (sum(work.updates), f"{phase.name} update", seconds)
            for phase, work, seconds in zip(left, works, times[0], strict=True)
        ]
        parts += [(n, f"{split} evaluation", data.rows(split) * times[1]) for split, n in evaluations.items()]
        compiled = ["timed without --compile True, whose steps are faster"] if config.compile else []
        sections["time"] = [*time_lines(parts), "not counted: loading, saving, measuring scales, metrics", *compiled]
    print_report(sections)
    return {}


def report_generation(generation: DurableGeneration) -> None:
    """Time a few batches of a generation run and print what the run would do and take."""
    config, generator, data = generation.config, generation.generator, generation.tokenized()
    n_targets = generation.n_targets
    n_done = sum(len(line["targets"]) for _, line in generation.progress(repair=False))
    work = f"{plural(n_targets - n_done, 'target')}, {span(list(generation.k_of.values()))} of an input, by "
    n_batches = sum(rhythm.steps_in_epoch(data.rows(split), config.batch_size) for split in data.datasets)
    batches = f"{plural(n_batches, 'batch', 'batches')} of up to {plural(config.batch_size, 'input')}"
    sections = {
        "run": [state_of_folder(generation.run, f"continues: {n_done:,} of {n_targets:,} targets are there")],
        "model": _writer(generation),
        "data": data_lines(data, [(split,) for split in data.datasets]),
        "work": [f"{work}{config.generation_type}; {batches}"],
    }
    if isinstance(generator, ServerEngine):
        with closing(generator.client):
            sections["time"] = server_time_lines(generation, data, n_targets - n_done)
    else:
        seconds, memory = time_generation(generation, generator, data)
        sections["memory"] = memory_lines(memory, config, generator.device)
        sections["time"] = NOT_TIMED if seconds is None else time_lines([(n_targets - n_done, "target", seconds)])
    print_report(sections)


def _writer(generation: DurableGeneration) -> list[str]:
    """The model that generates, or the server."""
    generator = generation.generator
    if isinstance(generator, ServerEngine):
        return describe_server(generator)
    return [
        f"{generation.config.model_name}: {describe_model(generator.model)}",
        *tokenizer_and_device(generator.tokenizer, generator.accelerator),
    ]


def _state_of_training(trainer: Trainer) -> str:
    if trainer.resumed is None:
        return state_of_folder(trainer.run, "an unfinished run, which has no state yet: it begins again")
    position = f"epoch {trainer.state.epoch}, step {trainer.state.steps_done}"
    return f"{trainer.run.path}: continues from {trainer.resumed}, {position}"


def _models(trainer: Trainer) -> list[str]:
    model = trainer.training.model
    lines = [f"{model.name_or_path}: {describe_model(model)}"]
    for phase in trainer.phases:
        if isinstance(phase.teacher, LiveTeacher):
            lines.append(f"teacher {phase.teacher.model.name_or_path}: {describe_model(phase.teacher.model)}")
    return [*lines, *tokenizer_and_device(trainer.training.tokenizer, trainer.accelerator)]


def write_or_report(
    config: Config,
    datasets: Datasets,
    result: str,
    left_out: Collection[str],
    prepare: Callable[[Config, RunFolder, Datasets], DurableGeneration],
    write: Callable[[Config, DurableGeneration, Path], str],
) -> Path:
    """Write the file `result` unless an earlier run did, or with --dry_run True report on it; returns its path.

    left_out: splits that --split_for_generation has to name; prepare: checks and loads the model; write: generates and
    writes the file, and returns a line on what it holds.
    """
    chosen = select_splits(config, datasets, left_out=left_out)
    run = open_run(config, {"dataset_path": data_fingerprint(config.dataset_path, datasets)})
    path = run.path / result
    with run.held():
        if run.status == FINISHED and path.exists():
            if not run.is_dry:
                run.tidy()
            say(f"written already: {path}")
            return path
        generation = prepare(config, run, chosen)
        if run.is_dry:
            report_generation(generation)
        elif processes.is_main():
            what = write(config, generation, path)
            run.finish({})
            run.tidy()
            say(f"{what}: {path}")
        else:
            deque(generation.results(), maxlen=0)
    return path


def _rotations(phases: Sequence[Phase], done: int) -> list[tuple[str, ...]]:
    """The splits of each phase, its next one first; `done` epochs of the first phase are over."""
    rotations = []
    for phase in phases:
        first = done % len(phase.splits)
        rotations.append(phase.splits[first:] + phase.splits[:first])
        done = 0
    return rotations


def _work(trainer: Trainer, works: Sequence[Work], evaluations: Mapping[str, int]) -> list[str]:
    left = trainer.phases[trainer.state.phase :]
    lines = []
    for phase, work in zip(left, works, strict=True):
        each = f" of {span(work.updates)}" if work.updates else " left,"
        epochs = plural(len(work.updates), "epoch")
        lines.append(f"{phase.name}: {epochs}{each} updates, {sum(work.updates):,} in all")
    counts = ", ".join(f"{count:,} of {split}" for split, count in evaluations.items())
    lines.append(f"evaluations: {counts or 'none'}")
    if left:
        lines.append(str(trainer.rate))
        patience = trainer.config.n_patience_epochs
        lines += [f"less where {plural(patience, 'epoch')} bring no better score on dev"] if patience else []
    return lines


def _disk(trainer: Trainer) -> str:
    """The disk space of checkpoints, and whether it is there; the run's earlier files are replaced."""
    needs, run, n_phases = training_needs(trainer, trainer.phases), trainer.run, len(trainer.phases)
    adapter = needs.gradients if has_lora(trainer.training.model) else None
    needed = disk_at_peak(
        needs.weights, needs.optimizer, has_dev=DEV in trainer.data, n_phases=n_phases, adapter=adapter
    )
    free, freed = machine.free_disk(run.path), machine.size_of(run.files())
    line = f"checkpoints take up to {size(needed)}; {size(free)} are free"
    line += f", and {size(freed)} are this folder's already" if freed else ""
    return line if needed <= free + freed else f"does not fit: {line}; try another --output_dir"
