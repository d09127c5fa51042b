"""Run a stage, or with --dry_run True report what it would do and take."""

from pathlib import Path

from src.config.console import say
from src.config.flags.shared import SharedArguments, TrainingArguments, WritingArguments
from src.data.schema import Datasets
from src.decoding.durable import Job, is_written, open_writing_run, prepare_writing, splits_to_generate, write_file
from src.preflight.report import report_finished, report_training, report_writing
from src.runs.description import FINISHED
from src.training.finish import train
from src.training.setup import Task, open_training_run, prepare_training


def train_or_report(config: TrainingArguments, datasets: Datasets, task: Task) -> dict[str, float]:
    """The test's scores of `train`; none after a report. Raises what `train` raises before it writes anything."""
    if not config.dry_run:
        return train(config, datasets, task)
    run = open_training_run(config, datasets, task)
    run.check_free()
    _announce(config)
    if run.status == FINISHED:
        report_finished(run)
    else:
        report_training(prepare_training(config, datasets, task, run))
    return {}


def write_or_report(config: WritingArguments, datasets: Datasets, job: Job) -> Path:
    """The path of the file that `write_file` writes. Raises what it raises before it writes anything."""
    if not config.dry_run:
        return write_file(config, datasets, job)
    chosen = splits_to_generate(config, datasets, left_out=job.left_out)
    run = open_writing_run(config, datasets)
    run.check_free()
    _announce(config)
    if is_written(run, job):
        report_finished(run)
    else:
        report_writing(prepare_writing(config, job, run, chosen))
    return run.path / job.file


def _announce(config: SharedArguments) -> None:
    say(f"dry run of {config.script}: checks, loads and times a few steps; nothing is written")
