"""The report of a dry run: what a run that is ready to begin would do, on what, and what it would take."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.console import say
from src.config.constants import DEV, DEV_PPL, TARGET, TEST
from src.config.errors import UserError
from src.config.flags.shared import SharedArguments, TrainingArguments
from src.decoding.durable import DurableGeneration
from src.devices import memory as machine
from src.devices.processes import Accelerator
from src.distillation.teachers import LiveTeacher, StoredTeacher
from src.models.families import family_of, layer_counts
from src.models.forward import unwrapped
from src.preflight.estimates import (
    Looked,
    Memory,
    Part,
    Section,
    Work,
    disk_at_peak,
    disk_lines,
    disk_of_evaluations,
    kinds_text,
    listed,
    mean_seconds,
    memory_lines,
    plural,
    render,
    smaller_micro_batch,
    span,
    table_of_splits,
    time_lines,
    work_of_phases,
)
from src.preflight.measure import ROWS, Trained, needs_of_training, try_generation, try_training
from src.runs.description import UNFINISHED
from src.runs.folder import RunFolder
from src.tokens.tokenized import TokenizedDatasets
from src.training import rhythm
from src.training.engine import Trainer
from src.training.phase import Phase
from src.training.setup import PreparedTraining

NOT_TIMED = ["not known: there is not enough memory for a step"]


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
        ("run", [_beginning_of_training(trainer)]),
        ("models", _models(prepared)),
        ("data", _data(trainer.data, [*rotations, *((split,) for split in evaluated)], trainer.config)),
        ("work", _work(prepared, works)),
        ("disk", _disk(trainer, prepared.phases, works)),
    ]
    at_hand = [(phase, rotation[0]) for phase, rotation in zip(left, rotations, strict=True)]
    times, memory = try_training(trainer, at_hand, next(iter(evaluated), None))
    sections.append(
        ("memory", memory_lines(memory, str(trainer.device), _to_try(trainer.config, memory, trainer.device)))
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
        ("run", [_beginning(generation.run, f"continues: {n_done:,} of {n_targets:,} targets are there")]),
        (
            "model",
            [
                f"{config.model_name}: {_described(generator.model)}",
                *_tools(generator.tokenizer, generator.accelerator),
            ],
        ),
        ("data", _data(data, [(split,) for split in data.datasets], config)),
        ("work", [f"{plural(left, 'target')}, {k} of an input, by {config.generation_type}; {_batches(generation)}"]),
    ]
    device = generator.accelerator.device
    seconds, memory = try_generation(generation, data)
    sections.append(("memory", memory_lines(memory, str(device), _to_try(config, memory, device))))
    sections.append(("time", NOT_TIMED if seconds is None else time_lines([Part("target", left, seconds)])))
    _print(sections)


def _print(sections: Sequence[Section]) -> None:
    say("\n" + render(sections))


# ------------------------------------------------------------------------------------------------------------- sections


def _beginning_of_training(trainer: Trainer) -> str:
    run, resumed = trainer.run, trainer.resumed
    if resumed is None:
        return _beginning(run, "an unfinished run, which has no state yet: it begins again")
    at = f"epoch {trainer.state.epoch}, step {trainer.state.steps_done}"
    return _beginning(run, f"continues at {at}") if run.holds(resumed) else f"{run.path}: goes on from {resumed}, {at}"


def _beginning(run: RunFolder, of_unfinished: str) -> str:
    """Whether the run is new, goes on, or replaces another one."""
    if run.status == UNFINISHED:
        return f"{run.path}: {of_unfinished}"
    if run.former is not None or run.files():
        return f"{run.path}: a new run; what an earlier one has left there is removed (--overwrite True)"
    return f"{run.path}: a new run" + ("" if run.path.is_dir() else ", in a folder that will be made")


def _models(prepared: PreparedTraining) -> list[str]:
    trainer, phases = prepared.trainer, prepared.phases
    teacher = next((phase.teacher for phase in phases if any(entry.needs_teacher for entry in phase.losses)), None)
    ours = f"{prepared.model_name}: {_described(unwrapped(trainer.training.model))}"
    tools = _tools(trainer.training.tokenizer, trainer.accelerator)
    if isinstance(teacher, LiveTeacher):
        theirs = f"teacher {teacher.model.name_or_path}: {_described(teacher.model)}"
        return [f"student {ours}", theirs, f"one {tools[0]} for both", *tools[1:]]
    if isinstance(teacher, StoredTeacher):
        return [f"student {ours}", f"{tools[0]}, which the stored log-probabilities are for", *tools[1:]]
    return [ours, *tools]


def _described(model: PreTrainedModel) -> str:
    """Family, size, layers, vocabulary and number format."""
    config = model.config
    n = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    try:
        family, counts = family_of(config).name, layer_counts(config)
        layers = " + ".join(str(count) for count in counts.values() if count)
    except UserError:  # one whose layers nobody has described here
        family, layers = config.model_type, str(getattr(config.get_text_config(), "num_hidden_layers", "unknown"))
    vocabulary = f"vocabulary of {config.get_text_config().vocab_size:,}"
    return f"{family}, {n:.2f} M parameters, {layers} layers, {vocabulary}, {str(model.dtype).removeprefix('torch.')}"


def _tools(tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> list[str]:
    passes = f", forward passes in {accelerator.mixed_precision}" if accelerator.native_amp else ""
    return [f"tokenizer of {len(tokenizer):,} tokens", f"on {machine.name_of(accelerator.device)}{passes}"]


def _rotations(phases: Sequence[Phase], done: int) -> list[tuple[str, ...]]:
    """The splits of each phase, that of its next epoch first; `done` epochs of the first phase are over."""
    rotations = []
    for phase in phases:
        first = rhythm.rotated(phase.splits, done)
        rotations.append((first, *(split for split in phase.splits if split != first)))
        done = 0
    return rotations


def _data(data: TokenizedDatasets, rotations: Sequence[tuple[str, ...]], config: SharedArguments) -> list[str]:
    """A table of the first split of each rotation, and a line on all others."""
    firsts = list(dict.fromkeys(first for first, *_ in rotations))
    looked = [Looked(first, data.rows(first), data.glimpse(first, ROWS).cuts) for first in firsts]
    lines = table_of_splits(looked)
    for _, *others in rotations:
        if others:
            rows = span([data.rows(split) for split in others])
            lines.append(f"not looked at: {listed(others)}, {rows} rows{' each' if len(others) > 1 else ''}")
    unused = [split for split in data.datasets if not any(split in rotation for rotation in rotations)]
    lines += [f"not used: {', '.join(unused)}"] if unused else []
    legend = f"lengths in tokens, before they are cut to --max_input_length {config.max_input_length}"
    if any(each.cuts.targets for each in looked):
        legend += f" and --max_labels_length {config.max_labels_length}"
    empty = any(each.cuts.n_empty for each in looked)
    return [*lines, legend, *(["empty: targets of which nothing but EOS is left"] if empty else [])]


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
    needs, run = needs_of_training(trainer, phases), trainer.run
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


def _to_try(config: SharedArguments, memory: Memory, device: torch.device) -> list[str]:
    """What takes less memory, by the flags that can still be changed."""
    flags = []
    if isinstance(config, TrainingArguments):
        micro = smaller_micro_batch(config.batch_size, config.micro_batch_size)
        flags += [f"--max_gpu_batch_size {micro}"] if micro else []
    elif config.batch_size > 1:
        flags.append(f"--batch_size {config.batch_size // 2}")
    if memory.needs.teacher and getattr(config, "teacher_dtype", "") == "fp32":
        flags.append("--teacher_dtype bf16")
    if config.mixed_precision == "no" and device.type == "cuda":
        flags.append("--mixed_precision bf16")
    return [*flags, "a smaller model"]


def _time_of_training(trainer: Trainer, phases: Sequence[Phase], works: Sequence[Work], times: Trained) -> list[str]:
    parts = [
        Part(f"{phase.name} update", work.updates, mean_seconds(kinds), kinds_text(kinds))
        for phase, work, kinds in zip(phases, works, times.kinds, strict=True)
    ]
    for split, count in _evaluations(trainer, works).items():
        parts.append(Part(f"{split} evaluation", count, trainer.data.rows(split) * times.evaluation))
    measures = any(entry.loss_scale for phase in phases for entry in phase.losses)
    left_out = ["loading", "saving", *(["measuring scales"] if measures else []), "the metrics' own time"]
    compiled = ["timed without --compile True, whose steps are faster"] if trainer.config.compile else []
    return [*time_lines(parts), f"not counted: {', '.join(left_out)}", *compiled]


def _batches(generation: DurableGeneration) -> str:
    size = generation.config.batch_size
    n = sum(rhythm.steps_in_epoch(len(columns["text"]), size) for columns in generation.datasets.values())
    return f"{plural(n, 'batch', 'batches')} of up to {plural(size, 'input')}"
