"""Stage: measure the parameters, FLOPs, latency, memory and throughput of models, and write them as a table."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from src.config.console import progress_bar, say
from src.config.errors import UserError
from src.config.flags.profile import ProfileArguments
from src.devices import memory as machine
from src.models.checks_before_loading import beyond_positions, check_model_files
from src.models.families import family_of, has_family
from src.models.loading import load_config, load_model
from src.models.pruning import prune, pruned_config
from src.profiling.cells import CellProfile, line_of
from src.profiling.grid import LARGEST, Cell, Form, cells_of, forms_of
from src.profiling.measure import write_full_length
from src.profiling.results import Results

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def profile_models(config: ProfileArguments) -> Path:
    """Measure what --output_file_path does not hold yet; returns the path of the JSON file.

    Raises UserError before weights are read: a model, layer, length or device is wrong, or the file holds no profile.
    """
    results, device = Results.open(config), _device(config.device)
    forms, cells = forms_of(config), cells_of(config)
    for form in forms:
        _check(form, cells)
    sizes = [*([LARGEST] if config.find_maximal_batch_size else []), *dict.fromkeys(config.batch_size)]
    grid = [(form, cell, size) for form in forms for cell in cells for size in sizes]
    missing = [(form, cell, size) for form, cell, size in grid if not results.has(form.name, cell, size, str(device))]
    n_there = len(grid) - len(missing)
    if n_there:
        say(f"{results.path}: {n_there} of {len(grid)} entries are there and not measured again")
    with progress_bar(len(grid), "profile", "entries", initial=n_there) as bar:
        for form in dict.fromkeys(form for form, _, _ in missing):
            model = _load(form).to(device)  # type: ignore[arg-type]
            for cell in dict.fromkeys(cell for each, cell, _ in missing if each == form):
                profile = CellProfile(config, form, cell, model)
                for size in (size for *place, size in missing if place == [form, cell]):
                    if not results.has(form.name, cell, size, str(device)):  # the largest batch is one of the others
                        results.add(profile.measure(size))
                        say(line_of(results.records[-1]))
                    bar.update()
            del model, profile
            machine.free_unused(device)
    results.write()
    return results.path


def _device(name: str) -> torch.device:
    """The device of --device. Raises UserError if this machine does not have it."""
    device = torch.device(f"cuda:{name}" if name.isdigit() else name)
    if device.type == "cpu":
        return device
    number, n_there = device.index or 0, torch.cuda.device_count()
    if number >= n_there:
        raise UserError(f"--device {name}: torch finds {n_there or 'no'} GPUs here; use --device cpu or another number")
    return torch.device("cuda", number)


def _check(form: Form, cells: list[Cell]) -> None:
    """Raise UserError if a file of a model is wrong, a layer does not exist, or a length exceeds its positions."""
    check_model_files(form.base)
    config = load_config(form.base)
    try:
        if form.is_pruned:
            pruned_config(config, form.encoder_layers, form.decoder_layers)
    except UserError as error:
        raise UserError(f"{form.name}: {error}") from None
    if has_family(config) and family_of(config).has_position_table:
        flags = ("--input_length", "--target_length")
        for cell in cells:
            for what, length, limit in beyond_positions(config, cell.input_length, cell.target_length, flags):
                raise UserError(f"{what}: {length} tokens, but {form.name} has positions for {limit}")


def _load(form: Form) -> "PreTrainedModel":
    model = load_model(form.base)
    if form.is_pruned:
        model = prune(model, form.encoder_layers, form.decoder_layers)
    write_full_length(model)
    return model
