"""Finish a training run: test the best weights, write the model folder, tidy up."""

from contextlib import closing
from pathlib import Path

from src.config.console import say
from src.config.constants import TARGET, TEST
from src.config.flags.shared import TrainingArguments
from src.data.schema import (
    Datasets,
)
from src.runs.description import FINISHED
from src.runs.folder import RunFolder
from src.runs.records import write_predictions
from src.training import checkpoints
from src.training.engine import Trainer
from src.training.log import FINAL
from src.training.setup import Prepared, Task, open_training_run, prepare_training

MODEL_FOLDER = "model"


def train(config: TrainingArguments, datasets: Datasets, task: Task) -> dict[str, float]:
    """Train the task's model through its phases, test its best checkpoint, and return the test's scores.

    All that can be wrong is found before weights are read, and before anything is written.
    """
    run = open_training_run(config, datasets, task)
    with run.held():
        if run.status != FINISHED:
            return _train(prepare_training(config, datasets, task, run), datasets)
        _tidy(run, keep=config.keep_checkpoint_after_test)
        _print_scores(run)
        return run.scores


def _train(prepared: Prepared, datasets: Datasets) -> dict[str, float]:
    trainer = prepared.trainer
    with trainer.stop, closing(trainer.data):
        trainer.begin()
        trainer.fit(prepared.phases)
        return _finish(trainer, datasets)


def _finish(trainer: Trainer, datasets: Datasets) -> dict[str, float]:
    """Score the best weights on test, write the portable folder and what people read, and tidy up."""
    run, config = trainer.run, trainer.config
    scores: dict[str, float] = {}
    if TEST in datasets:
        result = trainer.evaluate(TEST, final=True)
        trainer.log.evaluation(trainer.state, TEST, FINAL, FINAL, result)
        scores = result.scores
    write_predictions(run.path, {split: columns.get(TARGET, []) for split, columns in datasets.items()})
    checkpoints.save_portable(
        run.path / MODEL_FOLDER,
        trainer.training.model,
        trainer.training.tokenizer,
        _card(trainer, scores),
        config.task_prompt,
    )
    run.finish(scores)
    _tidy(run, keep=config.keep_checkpoint_after_test)
    _print_scores(run)
    return scores


def _tidy(run: RunFolder, *, keep: bool) -> None:
    """Remove what only an unfinished run needs; without `keep`, checkpoints become bare state dicts."""
    checkpoints.StateFolder(run.path).clear()
    if not keep:
        for folder in checkpoints.checkpoint_folders(run.path):
            checkpoints.reduce_to_state_dict(folder)
    run.tidy()


def _print_scores(run: RunFolder) -> None:
    if run.scores:
        say("test: " + "  ".join(f"{name} {value:.2f}" for name, value in run.scores.items()))
    say(f"model: {run.path / MODEL_FOLDER}   scores: {run.path / 'eval_scores.csv'}")


def _card(trainer: Trainer, scores: dict[str, float]) -> str:
    """The model card of a run: what was trained on what, how, and how well it does."""
    config, best = trainer.config, trainer.state.best
    flags = "\n".join(f"  {name}: {value}" for name, value in trainer.run.flags.items())
    table = "\n".join(f"| {name} | {value:.3f} |" for name, value in scores.items())
    chosen = f"best {config.metric_for_best_model} on dev ({best.score:.3f}, epoch {best.epoch})" if best else "last"
    return (
        f"# {config.script}: {Path(config.output_dir).name}\n\n"
        f"Weights: {chosen}. Data: `{config.dataset_path}`. "
        f"Input: {'prefix' if trainer.evaluator.preprocessor.is_encoder_decoder else 'suffix'} "
        f"`{trainer.evaluator.preprocessor.prompt}`.\n\n"
        f"| test | score |\n|---|---|\n{table}\n\n```yaml\n{flags}\n```\n"
    )
