"""Stage: write pseudo-targets, K for each input of the chosen splits; a killed run continues where it stopped."""

from pathlib import Path

from src.config.arguments import GenerateArguments
from src.config.console import say
from src.config.constants import DEV_PPL, FT, GENERATED, TEXT
from src.config.errors import UserError
from src.data.batches import Batch
from src.data.files import Columns, Datasets, write_datasets
from src.models.ctranslate import CTranslate2Engine, is_installed
from src.models.decoding import LENGTH_PENALTIES, decoding_of, to_texts
from src.training.tracking import RunFolder
from src.training.writing import Writer, write_file, written_rows

RESULT = "generated_datasets.json"


def generate(config: GenerateArguments, datasets: Datasets) -> Path:
    """Generate K = `config.num_return_sequences` targets for every row; returns the path of generated_datasets.json.

    The K targets of a row are adjacent, rows keep their order, whatever the order in which batches are generated.
    Raises UserError for what is wrong with flags, data or model.
    """

    def make(run: RunFolder, chosen: Datasets, path: Path) -> str:
        generated = _generate_all(config, run, chosen)
        write_datasets(path, {split: _columns(config, columns, generated[split]) for split, columns in chosen.items()})
        return f"{sum(map(len, generated.values()))} pseudo-targets"

    return write_file(config, datasets, RESULT, left_out=(FT, DEV_PPL), make=make)


def _generate_all(config: GenerateArguments, run: RunFolder, datasets: Datasets) -> dict[str, list[str]]:
    """All targets by split, the K of a row adjacent."""
    k = config.num_return_sequences
    decoding = decoding_of(
        config.generation_type, num_beams=config.num_beams, targets_per_input=k, max_new_tokens=config.max_labels_length
    )
    writer = Writer.of(config, decoding)
    engine = _engine(config, writer)

    def write(batch: Batch, k: int) -> list[str]:
        return to_texts(writer.tokenizer, writer.write(batch, k) if engine is None else engine.write(batch, decoding))

    generated = {split: [""] * (k * len(columns[TEXT])) for split, columns in datasets.items()}
    for split, row, targets in written_rows(config, run, datasets, writer, write, dict.fromkeys(datasets, k)):
        generated[split][k * row : k * (row + 1)] = targets
    return generated


def _engine(config: GenerateArguments, writer: Writer) -> CTranslate2Engine | None:
    """What writes instead of the model itself. `auto` takes CTranslate2 for beams alone: our own sampling is faster."""
    if config.generation_engine == "hf":
        return None
    is_wanted = config.generation_engine == "ctranslate2"
    if not is_wanted and not (config.generation_type in LENGTH_PENALTIES and is_installed()):
        return None
    try:
        return CTranslate2Engine(writer.model, writer.tokenizer, config.mixed_precision)
    except UserError as error:
        if is_wanted:
            raise
        say(f"{error}; --generation_engine auto: hf is used")
        return None


def _columns(config: GenerateArguments, original: Columns, generated: list[str]) -> Columns:
    """`generated`, and with --add_original_data every original column with each row repeated K times."""
    if not config.add_original_data:
        return {GENERATED: generated}
    k = config.num_return_sequences
    return {name: [value for value in values for _ in range(k)] for name, values in original.items()} | {
        GENERATED: generated
    }
