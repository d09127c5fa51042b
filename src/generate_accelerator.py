"""Stage: generate pseudo-targets, K for each input of the chosen splits; a killed run continues where it stopped."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from src.api.simulated import RESULTS, api_columns, response_line
from src.config.console import say
from src.config.constants import DEV_PPL, FINISH_REASON, FT, GENERATED, ID, INPUT_HASH, LENGTH, TEXT, UNLABELED
from src.config.errors import UserError
from src.config.flags.generate import GenerateArguments, generated_file
from src.data.arrow_columns import text_column
from src.data.pseudo_targets import input_hash
from src.data.schema import Columns, Datasets, is_training_split
from src.data.splits import n_rows, take_rows
from src.data.spool import Spool
from src.data.writers import write_datasets
from src.decoding.ctranslate2_engine import CTranslate2Engine, check_settings, is_converted, is_installed
from src.decoding.durable import DurableGeneration
from src.decoding.generate import finish_reasons, to_texts
from src.decoding.generator import TargetGenerator, load_generator
from src.decoding.served_model import load_server_engine
from src.decoding.server_engine import ServerEngine
from src.decoding.settings import LENGTH_PENALTIES, decoding_of
from src.devices import processes
from src.preflight.report import write_or_report
from src.runs.description import UNFINISHED, read_description
from src.runs.folder import RunFolder
from src.storage.atomic import atomic_write
from src.tokens.batch import Batch

LOGPROBS = RESULTS["jsonl"]


class _SavedTarget(msgspec.Struct, array_like=True):
    """A target in the progress file. logprobs: a server's, with --top_logprobs."""

    text: str
    finish_reason: str | None
    logprobs: Any = None


def generate(config: GenerateArguments, datasets: Datasets) -> Path:
    """Generate K = `config.num_return_sequences` targets for every row; returns the path of the file.

    The K targets of a row are adjacent and rows keep their order. `finish_reason` says of each target whether it ended
    by itself ("stop") or at --max_labels_length ("length"). With --top_logprobs a server's answers are also written as
    lines of api_completions.jsonl. With --dry_run True only a report is printed.
    Raises UserError for what is wrong with flags, data or model.
    """
    return write_or_report(config, datasets, generated_file(config.dataset_path), (FT, DEV_PPL), _prepare, _write)


def _prepare(config: GenerateArguments, run: RunFolder, datasets: Datasets) -> DurableGeneration:
    """Check and load the model, and CTranslate2's if it is to be used."""
    decoding = decoding_of(
        config.generation_type,
        num_beams=config.num_beams,
        targets_per_input=config.num_return_sequences,
        max_new_tokens=config.max_labels_length,
        nucleus=config.nucleus,
    )
    k_of = dict.fromkeys(datasets, config.num_return_sequences)
    if config.generation_engine == "server":
        if processes.count() > 1:
            raise UserError("--generation_engine server: start one process; the server does the work")
        server = load_server_engine(config, decoding, datasets)
        _check_same_model(run, server)
        return DurableGeneration(config, run, datasets, k_of, server, server.write, list[_SavedTarget])
    generator = load_generator(config, decoding, datasets)
    engine = _engine(config, generator)

    def generate_batch(batch: Batch, k: int) -> list[tuple[str, str]]:
        tokens = generator.generate(batch, k) if engine is None else engine.write(batch, decoding)
        reasons = finish_reasons(tokens, generator.model.generation_config, decoding.max_new_tokens)
        return list(zip(to_texts(generator.tokenizer, tokens), reasons, strict=True))

    return DurableGeneration(config, run, datasets, k_of, generator, generate_batch, list[str | _SavedTarget])


def _write(config: GenerateArguments, generation: DurableGeneration, path: Path) -> str:
    """Generate all targets and write the file; returns a line on what it holds."""
    k, datasets, n_cut = config.num_return_sequences, generation.datasets, 0
    number_of = {split: np.zeros(k * n_rows(columns), dtype=np.int64) for split, columns in datasets.items()}
    known = api_columns(datasets, with_ids=config.id_column is not None)
    all_results = generation.results()  # first: it tidies the folder
    with (
        atomic_write(path.with_name(LOGPROBS)) if config.top_logprobs else nullcontext() as answers,
        Spool(path.parent, (GENERATED, FINISH_REASON)) as spool,
    ):
        for split, row, results in all_results:
            # A progress file of an earlier version holds texts without reasons.
            pairs = [(each, None) if isinstance(each, str) else each[:2] for each in results]
            number_of[split][k * row : k * (row + 1)] = spool.add(pairs)
            n_cut += sum(reason == LENGTH for _, reason in pairs)
            if answers is not None:
                answers.write(_answer_line(known[split], row, split, results))
        written = spool.columns()
        columns_of = {
            split: _columns(config, columns) | take_rows(written, number_of[split])
            for split, columns in datasets.items()
        }
        write_datasets(path, columns_of)
    cut = f" ({n_cut} stopped by --max_labels_length {config.max_labels_length})" if n_cut else ""
    return f"{generation.n_targets} pseudo-targets{cut}"


def _answer_line(columns: Columns, row: int, split: str, results: list) -> str:
    """A server's answer as a line of an API file. Splits that are not trained on take one completion of an input."""
    wanted = results if split == UNLABELED or is_training_split(split) else results[:1]
    choices = [dict(zip((TEXT, FINISH_REASON, "logprobs"), each, strict=True)) for each in wanted]
    return response_line(columns, row, split, choices)


def _check_same_model(run: RunFolder, server: ServerEngine) -> None:
    """Write down the server's model. Raises UserError if an interrupted run had another one."""
    former = read_description(run.path) if run.status == UNFINISHED else None
    was = former.data.get("server_model", server.model) if former else server.model
    if was != server.model:
        raise UserError(f"{run.path}: holds a run of the server's model {was}, not of {server.model}")
    run.inputs = {**run.inputs, "server_model": server.model}


def _engine(config: GenerateArguments, generator: TargetGenerator) -> CTranslate2Engine | None:
    """CTranslate2 with the converted model, or None. `auto` uses it for beams only: our own sampling is faster."""
    if config.generation_engine == "hf":
        return None
    is_wanted = config.generation_engine == "ctranslate2"
    if not is_wanted and not (config.generation_type in LENGTH_PENALTIES and is_installed()):
        return None
    try:
        if config.dry_run and not is_converted(generator.model, generator.tokenizer):
            check_settings(generator.model)
            say("the model is not converted for CTranslate2 yet; this dry run times --generation_engine hf instead")
            return None
        return CTranslate2Engine(generator.model, generator.tokenizer, config.mixed_precision)
    except UserError as error:
        if is_wanted:
            raise
        say(f"{error}; --generation_engine auto: hf is used")
        return None


def _columns(config: GenerateArguments, original: Columns) -> Columns:
    """Ids and hashes of the inputs; with --add_original_data all original columns. Each row K times."""
    columns, rows = original, np.arange(n_rows(original)).repeat(config.num_return_sequences)
    if not config.add_original_data:
        columns = {ID: original[ID]} if config.id_column is not None and ID in original else {}
        columns |= {INPUT_HASH: text_column(map(input_hash, original[TEXT]))}
    return take_rows(columns, rows)
