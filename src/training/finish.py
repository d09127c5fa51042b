"""Finish a training run: test the best weights, write the model folder, tidy up."""

from contextlib import closing
from pathlib import Path

from src.config.console import say
from src.config.constants import ID, TARGET, TEST
from src.config.flags.shared import TrainingArguments
from src.devices import processes
from src.devices.data_parallel import whole
from src.models.adapters import has_lora, merge_lora
from src.models.folders import TrainedPrompt, write_model_folder
from src.runs.folder import RunFolder
from src.runs.records import MODEL_FOLDER, write_predictions
from src.training import checkpoints
from src.training.engine import Trainer
from src.training.resume import begin
from src.training.summary import show_summary


def train(trainer: Trainer) -> dict[str, float]:
    """Run the phases, test the best weights and write the model folder; returns the test scores, if there is a test."""
    run, training, datasets = trainer.run, trainer.training, trainer.data.datasets
    with trainer.stop, closing(trainer.data):
        begin(trainer)
        if trainer.phases:
            say(str(trainer.rate))
        trainer.fit()
        scores = {}
        if TEST in trainer.data:
            result = trainer.evaluate(TEST, final=True)
            trainer.log.evaluation(trainer.state, TEST, result, is_final=True)
            scores = result.scores
        references = {split: columns.get(TARGET, []) for split, columns in datasets.items()}
        has_ids = trainer.config.id_column is not None
        ids = {split: columns[ID] for split, columns in datasets.items() if has_ids and ID in columns}
        model, card, prompt = training.model, _card(trainer, scores), TrainedPrompt.of(trainer.config)
        with whole(model):
            if has_lora(model):
                model = merge_lora(model)
            if processes.is_main():
                write_predictions(run.path, references, ids)
                write_model_folder(run.path / MODEL_FOLDER, model, training.tokenizer, card, prompt)
        run.finish(scores)
        return tidy_and_show_scores(run, trainer.config)


def tidy_and_show_scores(run: RunFolder, config: TrainingArguments) -> dict[str, float]:
    """Remove what only an unfinished run needs and print the scores of a finished one; returns them.

    Without --keep_checkpoint_after_test, checkpoints become bare state dicts. A dry run changes nothing.
    """
    if processes.is_main() and not run.is_dry:
        checkpoints.StateFolder(run.path).clear()
        if not config.keep_checkpoint_after_test:
            for folder in checkpoints.checkpoint_folders(run.path):
                checkpoints.reduce_to_state_dict(folder)
        run.tidy()
    show_summary(run)
    return run.scores


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
        f"{_chat_example(trainer) if config.chat_template else ''}"
        f"| test | score |\n|---|---|\n{table}\n\n```yaml\n{flags}\n```\n"
    )


def _chat_example(trainer: Trainer) -> str:
    """The part of a model card that says how an instruct model was prompted, with code that does it."""
    config, prompt = trainer.config, trainer.evaluator.preprocessor.prompt
    system = f'{{"role": "system", "content": {config.system_prompt!r}}}, ' if config.system_prompt else ""
    content = f"text + {prompt!r}" if prompt else "text"
    return (
        "Chat template: the tokenizer's own, thinking off.\n\n```python\nfrom transformers import pipeline\n\n"
        f'writer = pipeline("text-generation", {str(trainer.run.path / MODEL_FOLDER)!r})\n\n\n'
        "def answer(text):\n"
        f'    messages = [{system}{{"role": "user", "content": {content}}}]\n'
        '    settings = {"return_full_text": False, "tokenizer_encode_kwargs": {"enable_thinking": False}}\n'
        f"    written = writer(messages, num_beams={config.num_beams}, do_sample=False, "
        f"max_new_tokens={config.max_labels_length}, **settings)\n"
        '    return written[0]["generated_text"].strip()\n```\n\n'
    )
