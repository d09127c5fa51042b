"""Dry runs: reports on a prepared run (models, data, work, disk, memory, time); and `write_or_report`."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from src.config.console import say
from src.config.constants import DEV, DEV_PPL, TARGET, TEST
from src.config.flags.generate import WritingArguments
from src.config.flags.shared import SharedArguments
from src.data.schema import Datasets
from src.decoding.durable import DurableGeneration, select_splits
from src.devices import memory as machine
from src.distillation.teachers import LiveTeacher, StoredTeacher
from src.models.forward import unwrapped
from src.preflight.estimates import Work, disk_at_peak, disk_of_evaluations, work_of_phases
from src.preflight.measure import TrainingTimes, time_generation, time_training, training_needs
from src.preflight.sections import data_lines, describe_model, smaller_flags, state_of_folder, tokenizer_and_device
from src.preflight.words import Part, Section, disk_lines, memory_lines, plural, render, span, time_lines
from src.runs.description import FINISHED, data_fingerprint
from src.runs.folder import RunFolder, open_run
from src.training import rhythm
from src.training.engine import Trainer
from src.training.phase import Phase
from src.training.setup import PreparedTraining

NOT_TIMED = ["not known: there is not enough memory for a step"]
Config = TypeVar("Config", bound=WritingArguments)


@contextmanager
def hold_folder(run: RunFolder, config: SharedArguments) -> Iterator[None]:
    """Within: no other run can work in the folder; a dry run only checks that it is free, and changes nothing.

    Raises UserError if another run is at work there, or if the folder cannot be written.
    """
    if config.dry_run:
        run.check_free()
        say(f"dry run of {config.script}: checks, loads and times a few steps; nothing is written")
        yield
    else:
        with run.held():
            yield


def report_finished(run: RunFolder) -> dict[str, float]:
    """Print that the run is finished, and its scores; returns them."""
    scores = "  ".join(f"{name} {value:.2f}" for name, value in run.scores.items())
    _print([("run", [f"{run.path}: finished already, nothing is left to do", *([scores] if scores else [])])])
    return run.scores


def report_training(prepared: PreparedTraining) -> dict[str, float]:
    """Time a few steps of a training run and print what the run would do and take; returns no scores."""
    trainer, state = prepared.trainer, prepared.trainer.state
    left = prepared.phases[state.phase :]
    works = work_of_phases(trainer.config, prepared.phases, trainer.data, state)
    rotations = _rotations(left, state.epoch - state.phase_start)
    evaluated = [split for split in (DEV, DEV_PPL, TEST) if split in trainer.data and (left or split == TEST)]
    sections: list[Section] = [
        ("run", [_state_of_training(trainer)]),
        ("models", _models(prepared)),
        ("data", data_lines(trainer.data, [*rotations, *((split,) for split in evaluated)], trainer.config)),
        ("work", _work(prepared, works)),
        ("disk", _disk(trainer, prepared.phases, works)),
    ]
    next_splits = [(phase, rotation[0]) for phase, rotation in zip(left, rotations, strict=True)]
    times, memory = time_training(trainer, next_splits, next(iter(evaluated), None))
    sections.append(
        ("memory", memory_lines(memory, str(trainer.device), smaller_flags(trainer.config, memory, trainer.device)))
    )
    sections.append(("time", NOT_TIMED if times is None else _time_of_training(trainer, left, works, times)))
    _print(sections)
    return {}


def report_generation(generation: DurableGeneration) -> None:
    """Time a few batches of a generation run and print what the run would do and take."""
    config, generator, data = generation.config, generation.generator, generation.tokenized()
    n_targets = generation.n_targets
    n_done = sum(len(line["targets"]) for line in generation.progress(repair=False))
    left = n_targets - n_done
    k = span(list(generation.k_of.values()))
    sections: list[Section] = [
        ("run", [state_of_folder(generation.run, f"continues: {n_done:,} of {n_targets:,} targets are there")]),
        (
            "model",
            [
                f"{config.model_name}: {describe_model(generator.model)}",
                *tokenizer_and_device(generator.tokenizer, generator.accelerator),
            ],
        ),
        ("data", data_lines(data, [(split,) for split in data.datasets], config)),
        ("work", [f"{plural(left, 'target')}, {k} of an input, by {config.generation_type}; {_batches(generation)}"]),
    ]
    device = generator.accelerator.device
    seconds, memory = time_generation(generation, data)
    sections.append(("memory", memory_lines(memory, str(device), smaller_flags(config, memory, device))))
    sections.append(("time", NOT_TIMED if seconds is None else time_lines([Part("target", left, seconds)])))
    _print(sections)


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
    with hold_folder(run, config):
        is_finished = run.status == FINISHED and path.is_file()
        if config.dry_run:
            if is_finished:
                report_finished(run)
            else:
                report_generation(prepare(config, run, chosen))
            return path
        what = "written already" if is_finished else write(config, prepare(config, run, chosen), path)
        if not is_finished:
            run.finish({})
        run.tidy()
        say(f"{what}: {path}")
    return path


def _print(sections: Sequence[Section]) -> None:
    say("\n" + render(sections))


def _state_of_training(trainer: Trainer) -> str:
    run, resumed = trainer.run, trainer.resumed
    if resumed is None:
        return state_of_folder(run, "an unfinished run, which has no state yet: it begins again")
    at = f"epoch {trainer.state.epoch}, step {trainer.state.steps_done}"
    return (
        state_of_folder(run, f"continues at {at}")
        if run.holds(resumed)
        else f"{run.path}: goes on from {resumed}, {at}"
    )


def _models(prepared: PreparedTraining) -> list[str]:
    trainer, phases = prepared.trainer, prepared.phases
    teacher = next((phase.teacher for phase in phases if any(entry.needs_teacher for entry in phase.losses)), None)
    ours = f"{prepared.model_name}: {describe_model(unwrapped(trainer.training.model))}"
    tools = tokenizer_and_device(trainer.training.tokenizer, trainer.accelerator)
    if isinstance(teacher, LiveTeacher):
        theirs = f"teacher {teacher.model.name_or_path}: {describe_model(teacher.model)}"
        return [f"student {ours}", theirs, f"one {tools[0]} for both", *tools[1:]]
    if isinstance(teacher, StoredTeacher):
        return [f"student {ours}", f"{tools[0]}, which the stored log-probabilities are for", *tools[1:]]
    return [ours, *tools]


def _rotations(phases: Sequence[Phase], done: int) -> list[tuple[str, ...]]:
    """The splits of each phase, its next one first; `done` epochs of the first phase are over."""
    rotations = []
    for phase in phases:
        first = rhythm.rotated(phase.splits, done)
        rotations.append((first, *(split for split in phase.splits if split != first)))
        done = 0
    return rotations


def _work(prepared: PreparedTraining, works: Sequence[Work]) -> list[str]:
    trainer, state = prepared.trainer, prepared.trainer.state
    left = prepared.phases[state.phase :]
    lines = []
    for phase, work in zip(left, works, strict=True):
        each = f" of {span(work.by_epoch)}" if work.epochs else " left,"
        lines.append(f"{phase.name}: {plural(work.epochs, 'epoch')}{each} updates, {work.updates:,} in all")
    counts = (f"{count:,} of {split}" for split, count in _evaluations(trainer, works).items())
    lines.append(f"evaluations: {', '.join(counts) or 'none'}")
    if left:
        rise = f"warm-up over {plural(prepared.warmup, 'update')}" if prepared.warmup else "no warm-up"
        lines.append(f"learning rate: {rise}, falls to 0 at update {prepared.updates:,}")
        patience = trainer.config.n_patience_epochs
        lines += [f"less where {plural(patience, 'epoch')} bring no better score on dev"] if patience else []
    return lines


def _evaluations(trainer: Trainer, works: Sequence[Work]) -> dict[str, int]:
    """By split; the closing test is one of test."""
    counts = {DEV: sum(work.dev for work in works), TEST: sum(work.test for work in works) + 1}
    return {split: count for split, count in counts.items() if split in trainer.data and count}


def _disk(trainer: Trainer, phases: Sequence[Phase], works: Sequence[Work]) -> list[str]:
    needs, run = training_needs(trainer, phases), trainer.run
    needed = disk_at_peak(needs.weights, needs.optimizer, has_dev=DEV in trainer.data, n_phases=len(phases))
    evaluations = _evaluations(trainer, works)
    for split in list(evaluations)[:1]:  # those of before are nearly all of dev
        evaluations[split] += trainer.state.n_rows
    targets = {split: trainer.data.datasets[split][TARGET] for split in evaluations}
    return disk_lines(
        needed,
        free=machine.free_disk(run.path),
        freed=machine.size_of(run.files()),
        evaluations=disk_of_evaluations(evaluations, targets),
    )


def _time_of_training(
    trainer: Trainer, phases: Sequence[Phase], works: Sequence[Work], times: TrainingTimes
) -> list[str]:
    parts = [
        Part(f"{phase.name} update", work.updates, seconds)
        for phase, work, seconds in zip(phases, works, times.updates, strict=True)
    ]
    for split, count in _evaluations(trainer, works).items():
        parts.append(Part(f"{split} evaluation", count, trainer.data.rows(split) * times.row))
    measures = any(entry.loss_scale for phase in phases for entry in phase.losses)
    left_out = ["loading", "saving", *(["measuring scales"] if measures else []), "the metrics' own time"]
    compiled = ["timed without --compile True, whose steps are faster"] if trainer.config.compile else []
    return [*time_lines(parts), f"not counted: {', '.join(left_out)}", *compiled]


def _batches(generation: DurableGeneration) -> str:
    size = generation.config.batch_size
    n = sum(rhythm.steps_in_epoch(len(columns["text"]), size) for columns in generation.datasets.values())
    return f"{plural(n, 'batch', 'batches')} of up to {plural(size, 'input')}"
