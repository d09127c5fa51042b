"""Stage: write pseudo-targets, K for each input of the chosen splits; a killed run continues where it stopped."""

from pathlib import Path

from src.config.arguments import GenerateArguments
from src.config.console import say
from src.config.constants import DEV_PPL, FT, GENERATED, TEXT
from src.data.batches import Batch
from src.data.files import Columns, Datasets, write_datasets
from src.models.decoding import decoding_of, to_texts
from src.models.loading import check_lengths, check_model_files
from src.training.tracking import FINISHED, RunFolder, data_fingerprint, open_run
from src.training.writing import Writer, chosen_splits, written_rows

RESULT = "generated_datasets.json"


def generate(config: GenerateArguments, datasets: Datasets) -> Path:
    """Generate K = `config.num_return_sequences` targets for every row; returns the path of generated_datasets.json.

    The K targets of a row are adjacent, rows keep their order, whatever the order in which batches are generated.
    Raises UserError for what is wrong with flags, data or model.
    """
    chosen = chosen_splits(config, datasets, left_out=(FT, DEV_PPL))
    run = open_run(config, {"dataset_path": data_fingerprint(config.dataset_path, datasets)})
    path = run.path / RESULT
    if run.status == FINISHED and path.is_file():
        run.tidy()
        say(f"already generated: {path}")
        return path
    check_model_files(config.model_name, state_dict_path=config.checkpoint_path)
    check_lengths(config.model_name, config.max_input_length, config.max_labels_length)
    generated = _generate_all(config, run, chosen)
    write_datasets(path, {split: _columns(config, columns, generated[split]) for split, columns in chosen.items()})
    run.finish({})
    run.tidy()
    say(f"{sum(map(len, generated.values()))} pseudo-targets: {path}")
    return path


def _generate_all(config: GenerateArguments, run: RunFolder, datasets: Datasets) -> dict[str, list[str]]:
    """All targets by split, the K of a row adjacent."""
    k = config.num_return_sequences
    decoding = decoding_of(
        config.generation_type, num_beams=config.num_beams, targets_per_input=k, max_new_tokens=config.max_labels_length
    )
    writer = Writer.of(config, decoding)

    def write(batch: Batch, k: int) -> list[str]:
        return to_texts(writer.tokenizer, writer.write(batch, k))

    generated = {split: [""] * (k * len(columns[TEXT])) for split, columns in datasets.items()}
    for split, row, targets in written_rows(config, run, datasets, writer, write, dict.fromkeys(datasets, k)):
        generated[split][k * row : k * (row + 1)] = targets
    return generated


def _columns(config: GenerateArguments, original: Columns, generated: list[str]) -> Columns:
    """`generated`, and with --add_original_data every original column with each row repeated K times."""
    if not config.add_original_data:
        return {GENERATED: generated}
    k = config.num_return_sequences
    return {name: [value for value in values for _ in range(k)] for name, values in original.items()} | {
        GENERATED: generated
    }
