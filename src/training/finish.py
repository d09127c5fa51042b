"""Finish a training run: test the best weights, write the model folder, tidy up."""

from contextlib import closing
from pathlib import Path

from src.config.console import say
from src.config.constants import TARGET, TEST
from src.config.flags.shared import TrainingArguments
from src.runs.folder import RunFolder
from src.runs.records import write_predictions
from src.training import checkpoints
from src.training.engine import Trainer
from src.training.log import FINAL
from src.training.setup import PreparedTraining

MODEL_FOLDER = "model"


def train(prepared: PreparedTraining) -> dict[str, float]:
    """Run the phases, test the best weights and write the model folder; returns the test scores."""
    trainer = prepared.trainer
    with trainer.stop, closing(trainer.data):
        trainer.begin()
        trainer.fit(prepared.phases)
        _write_results(trainer, _test(trainer))
        return tidy_and_show_scores(trainer.run, trainer.config)


def tidy_and_show_scores(run: RunFolder, config: TrainingArguments) -> dict[str, float]:
    """Remove what only an unfinished run needs and print the scores of a finished one; returns them."""
    if not run.is_dry:
        _tidy(run, keep=config.keep_checkpoint_after_test)
    if run.scores:
        say("test: " + "  ".join(f"{name} {value:.2f}" for name, value in run.scores.items()))
    say(f"model: {run.path / MODEL_FOLDER}   scores: {run.path / 'eval_scores.csv'}")
    return run.scores


def _test(trainer: Trainer) -> dict[str, float]:
    """The scores of the best weights on test, none without such a split."""
    if TEST not in trainer.data:
        return {}
    result = trainer.evaluate(TEST, final=True)
    trainer.log.evaluation(trainer.state, TEST, FINAL, FINAL, result)
    return result.scores


def _write_results(trainer: Trainer, scores: dict[str, float]) -> None:
    """Write the predictions, the model folder, and last that the run is finished."""
    run = trainer.run
    write_predictions(run.path, {split: columns.get(TARGET, []) for split, columns in trainer.data.datasets.items()})
    checkpoints.save_portable(
        run.path / MODEL_FOLDER,
        trainer.training.model,
        trainer.training.tokenizer,
        _card(trainer, scores),
        trainer.config.task_prompt,
    )
    run.finish(scores)


def _tidy(run: RunFolder, *, keep: bool) -> None:
    """Remove what only an unfinished run needs; without `keep`, checkpoints become bare state dicts."""
    checkpoints.StateFolder(run.path).clear()
    if not keep:
        for folder in checkpoints.checkpoint_folders(run.path):
            checkpoints.reduce_to_state_dict(folder)
    run.tidy()


def _card(trainer: Trainer, scores: dict[str, float]) -> str:
    """The model card (Markdown): data, test scores and flags of the run."""
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
