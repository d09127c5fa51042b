"""Stage: write pseudo-targets, K for each input of the chosen splits; a killed run continues where it stopped."""

from functools import partial
from pathlib import Path

from src.config.console import say
from src.config.constants import DEV_PPL, FINISH_REASON, FT, GENERATED, INPUT_HASH, LENGTH, TEXT
from src.config.errors import UserError
from src.config.flags.generate import GenerateArguments
from src.data.pseudo_targets import input_hash
from src.data.schema import Columns, Datasets
from src.data.writers import write_datasets
from src.decoding.ctranslate2_engine import CTranslate2Engine, check_settings, is_converted, is_installed
from src.decoding.durable import Job, WriteBatch, Writer, Writing
from src.decoding.generate import finish_reasons, to_texts
from src.decoding.settings import LENGTH_PENALTIES, decoding_of
from src.preflight.dry_run import write_or_report
from src.tokens.batch import Batch

RESULT = "generated_datasets.json"


def generate(config: GenerateArguments, datasets: Datasets) -> Path:
    """Generate K = `config.num_return_sequences` targets for every row; returns the path of generated_datasets.json.

    `finish_reason` says of each whether it ended by itself ("stop") or at --max_labels_length ("length").
    The K targets of a row are adjacent, rows keep their order, whatever the order in which batches are generated.
    Raises UserError for what is wrong with flags, data or model.
    """

    k = config.num_return_sequences

    def make(writing: Writing, path: Path) -> str:
        generated, reasons = (
            {split: [""] * (k * len(columns[TEXT])) for split, columns in writing.datasets.items()} for _ in range(2)
        )
        for split, row, results in writing.results():
            place = slice(k * row, k * (row + 1))
            pairs = [(each, None) if isinstance(each, str) else each for each in results]  # texts: of a former version
            generated[split][place], reasons[split][place] = map(list, zip(*pairs, strict=True))
        made = {
            split: _columns(config, columns, generated[split]) | {FINISH_REASON: reasons[split]}
            for split, columns in writing.datasets.items()
        }
        write_datasets(path, made)
        n_cut = sum(each.count(LENGTH) for each in reasons.values())
        cut = f" ({n_cut} stopped by --max_labels_length {config.max_labels_length})" if n_cut else ""
        return f"{writing.n_targets} pseudo-targets{cut}"

    job = Job(RESULT, (FT, DEV_PPL), lambda chosen: dict.fromkeys(chosen, k), partial(_load, config), make)
    return write_or_report(config, datasets, job)


def _load(config: GenerateArguments, datasets: Datasets) -> tuple[Writer, WriteBatch]:
    decoding = decoding_of(
        config.generation_type,
        num_beams=config.num_beams,
        targets_per_input=config.num_return_sequences,
        max_new_tokens=config.max_labels_length,
        nucleus=config.nucleus,
    )
    writer = Writer.of(config, decoding, datasets)
    engine = _engine(config, writer)

    def write(batch: Batch, k: int) -> list[tuple[str, str]]:
        tokens = writer.write(batch, k) if engine is None else engine.write(batch, decoding)
        reasons = finish_reasons(tokens, writer.model.generation_config, decoding.max_new_tokens)
        return list(zip(to_texts(writer.tokenizer, tokens), reasons, strict=True))

    return writer, write


def _engine(config: GenerateArguments, writer: Writer) -> CTranslate2Engine | None:
    """What writes instead of the model itself. `auto` takes CTranslate2 for beams alone: our own sampling is faster."""
    if config.generation_engine == "hf":
        return None
    is_wanted = config.generation_engine == "ctranslate2"
    if not is_wanted and not (config.generation_type in LENGTH_PENALTIES and is_installed()):
        return None
    try:
        if config.dry_run and not is_converted(writer.model, writer.tokenizer):
            check_settings(writer.model)
            say("the model is not converted for CTranslate2 yet, and is not now: hf is tried out in its place")
            return None
        return CTranslate2Engine(writer.model, writer.tokenizer, config.mixed_precision)
    except UserError as error:
        if is_wanted:
            raise
        say(f"{error}; --generation_engine auto: hf is used")
        return None


def _columns(config: GenerateArguments, original: Columns, generated: list[str]) -> Columns:
    """`generated` and hashes of the inputs, or with --add_original_data every original column, each row K times."""
    k = config.num_return_sequences
    if not config.add_original_data:
        hashes = [hashed for text in original[TEXT] for hashed in [input_hash(text)] * k]
        return {GENERATED: generated, INPUT_HASH: hashes}
    return {name: [value for value in values for _ in range(k)] for name, values in original.items()} | {
        GENERATED: generated
    }
