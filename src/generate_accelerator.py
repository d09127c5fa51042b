"""Stage: write pseudo-targets, K for each input of the chosen splits; a killed run continues where it stopped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.config.arguments import GenerateArguments
from src.config.console import progress_bar, say
from src.config.constants import DEV_PPL, FT, GENERATED, TEXT
from src.config.errors import UserError
from src.config.values import nearest
from src.data.batches import Tokenization, TokenizedDatasets, chunks, longest_first
from src.data.files import Columns, Datasets, append_json_line, check_datasets, read_json_lines, write_datasets
from src.models.decoding import decoding_of, to_texts, write_tokens
from src.models.loading import (
    check_lengths,
    check_model_files,
    is_encoder_decoder,
    load_config,
    load_model,
    load_tokenizer,
    write_known_tokens_only,
)
from src.training.interrupts import Interrupted, StopRequests
from src.training.session import make_accelerator
from src.training.tracking import FINISHED, PARTIAL, UNFINISHED, RunFolder, data_fingerprint, open_run

RESULT = "generated_datasets.json"


@dataclass(frozen=True)
class Piece:
    """A batch of one split: its number in the split (for the seed and the progress file) and its rows."""

    split: str
    number: int
    rows: np.ndarray


def generate(config: GenerateArguments, datasets: Datasets) -> Path:
    """Generate K = `config.num_return_sequences` targets for every row; returns the path of generated_datasets.json.

    The K targets of a row are adjacent, rows keep their order, whatever the order in which batches are generated
    (longest first). Each batch is seeded by (seed, split, number): a continued run ends with the same file.
    Raises UserError for what is wrong with flags, data or model.
    """
    splits = _chosen_splits(config, datasets)
    check_datasets({split: datasets[split] for split in splits}, config.dataset_path, need_target=False)
    run = open_run(config, {"dataset_path": data_fingerprint(config.dataset_path, datasets)})
    path = run.path / RESULT
    if run.status == FINISHED and path.is_file():
        run.tidy()
        say(f"already generated: {path}")
        return path
    check_model_files(config.model_name, state_dict_path=config.checkpoint_path)
    check_lengths(config.model_name, config.max_input_length, config.max_labels_length)
    generated = _generate_all(config, run, {split: {TEXT: datasets[split][TEXT]} for split in splits})
    write_datasets(path, {split: _columns(config, datasets[split], generated[split]) for split in splits})
    run.finish({})
    run.tidy()
    say(f"{sum(map(len, generated.values()))} pseudo-targets: {path}")
    return path


def _chosen_splits(config: GenerateArguments, datasets: Datasets) -> tuple[str, ...]:
    if config.split_for_generation is None:
        return tuple(split for split in datasets if split not in (FT, DEV_PPL))
    for split in config.split_for_generation:
        if split not in datasets:
            raise UserError(
                f"--split_for_generation: {config.dataset_path} has no split {split!r}; nearest: "
                f"{nearest(split, datasets)!r}"
            )
    return config.split_for_generation


def _generate_all(config: GenerateArguments, run: RunFolder, inputs: Datasets) -> dict[str, list[str]]:
    """All targets by split, those of earlier, interrupted runs included."""
    accelerator = make_accelerator(config)
    tokenizer = load_tokenizer(config.model_name)
    kind = is_encoder_decoder(load_config(config.model_name))
    tokenization = Tokenization.of(config, tokenizer, is_encoder_decoder=kind)
    model = load_model(config.model_name, state_dict_path=config.checkpoint_path).to(accelerator.device)
    write_known_tokens_only(model, tokenizer)
    k = config.num_return_sequences
    decoding = decoding_of(
        config.generation_type, num_beams=config.num_beams, targets_per_input=k, max_new_tokens=config.max_labels_length
    )
    data = TokenizedDatasets(inputs, tokenization)
    progress = run.path / PARTIAL
    run.begin(anew=run.status != UNFINISHED)

    generated = {split: [""] * (k * data.rows(split)) for split in inputs}
    done = set()
    for line in read_json_lines(progress):
        _put(generated[line["split"]], line["rows"], line["targets"], k)
        done.add((line["split"], line["batch"]))
    pieces = [piece for piece in _pieces(data, inputs, config.batch_size) if (piece.split, piece.number) not in done]
    total, left = sum(map(len, generated.values())), k * sum(len(piece.rows) for piece in pieces)
    if left < total:
        say(f"continuing: {total - left} of {total} targets are there")
    with StopRequests() as stop, progress_bar(total, "generate", "targets", initial=total - left) as bar:
        for piece in pieces:
            _check_stop(stop, progress)
            torch.manual_seed(_seed(config.seed, piece))
            batch = tokenization.collate(data.split(piece.split), piece.rows).to(accelerator.device)
            with accelerator.autocast():
                targets = to_texts(tokenizer, write_tokens(model, batch, decoding))
            rows = [int(row) for row in piece.rows]
            append_json_line(progress, {"split": piece.split, "batch": piece.number, "rows": rows, "targets": targets})
            _put(generated[piece.split], rows, targets, k)
            bar.update(len(targets))
    return generated


def _pieces(data: TokenizedDatasets, splits: Datasets, batch_size: int) -> Iterator[Piece]:
    """Batches of every split, longest inputs first."""
    for split in splits:
        order = longest_first(data.split(split).input_lengths)
        for number, rows in enumerate(chunks(order, batch_size)):
            yield Piece(split, number, np.asarray(rows))


def _put(generated: list[str], rows: list[int], targets: list[str], k: int) -> None:
    """Place the targets of a batch (K adjacent per row) where their rows belong."""
    for i, row in enumerate(rows):
        generated[k * row : k * (row + 1)] = targets[k * i : k * (i + 1)]


def _seed(seed: int, piece: Piece) -> int:
    entropy = [seed, piece.number, *piece.split.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def _check_stop(stop: StopRequests, progress: Path) -> None:
    try:
        stop.check()
    except Interrupted:
        say(f"stopped; the same command continues from {progress}")
        raise


def _columns(config: GenerateArguments, original: Columns, generated: list[str]) -> Columns:
    """`generated`, and with --add_original_data every original column with each row repeated K times."""
    if not config.add_original_data:
        return {GENERATED: generated}
    k = config.num_return_sequences
    return {name: [value for value in values for _ in range(k)] for name, values in original.items()} | {
        GENERATED: generated
    }
