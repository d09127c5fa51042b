"""Find, read and check files of weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors.torch import load_file

from src.config.errors import UserError
from src.models.library_errors import in_one_line, read_json_object
from src.models.names import WEIGHT_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARD_SUFFIXES = (".safetensors", ".bin", ".pt")


def find_weights(path: Path) -> Path:
    """The file of weights: `path` itself, or the one in that folder. Raises UserError if there is none."""
    for file in (path, *(path / name for name in WEIGHT_FILES)):
        if file.is_file():
            return file
    raise UserError(f"{path}: no weights there; give a .pt or .safetensors file, or a folder with model.safetensors")


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors (name → tensor, on CPU) of a bare state dict, a .safetensors file or a folder of them.

    Nothing in the files is executed. Raises UserError for files that are missing, unreadable or not a state dict.
    """
    file = find_weights(Path(path))
    with in_one_line(str(file), "weights cannot be read"):
        if file.name.endswith(".index.json"):
            shards = shard_files(file)
            return {key: tensor for shard in shards for key, tensor in read_state_dict(shard).items()}
        weights = load_file(file) if file.suffix == ".safetensors" else read_tensors(file)
    if not isinstance(weights, dict) or not weights:
        kind = type(weights).__name__.removesuffix("Type")
        raise UserError(f"{file}: holds a {kind}, not a state dict (name → tensor)")
    for key, tensor in weights.items():
        if not isinstance(key, str):
            raise UserError(f"{file}: {key!r} is not the name of a tensor; give the bare state dict")
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{file}: '{key}' is a {type(tensor).__name__}, not a tensor; give the bare state dict")
    return weights


def read_tensors(file: Path) -> Any:
    """The object in a file of `torch.save`, on CPU; nothing in it is executed.

    Raises ValueError for compressed parts, which could unpack to any size, and whatever `torch.load` raises.
    """
    if is_zipfile(file):
        with ZipFile(file) as archive:
            if any(part.compress_type != ZIP_STORED for part in archive.infolist()):
                raise ValueError("its parts are compressed, which torch.save does not do")
    return torch.load(file, map_location="cpu", weights_only=True)


def shard_files(index: Path) -> list[Path]:
    """The files of weights in an index, in its folder. Raises UserError for an index that names other places."""
    content = read_json_object(str(index.parent), str(index.parent), index.name)
    names = content.get("weight_map")
    files = set(map(str, names.values())) if isinstance(names, dict) else set()
    if not files or any(Path(file).name != file or Path(file).suffix not in SHARD_SUFFIXES for file in files):
        raise UserError(f"{index}: 'weight_map' must give for each tensor the name of a file beside it")
    return [index.parent / file for file in sorted(files)]


def check_finite(model: "PreTrainedModel", place: str) -> None:
    """Raise UserError, which begins with `place`, if a weight is NaN or infinite."""
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise UserError(f"{place}: '{name}' contains NaN or infinity; the file is corrupt or training diverged")


def check_keys(place: str, report: dict) -> None:
    """Raise UserError that names the first tensor that is missing, not in the model, or of another shape.

    report: the loading information of `from_pretrained`.
    """
    misfits = [
        *(f"'{key}' is missing" for key in sorted(report["missing_keys"])),
        *(f"'{key}' is not in the model" for key in sorted(report["unexpected_keys"])),
        *(
            f"'{key}' is {tuple(found)}, the model's is {tuple(expected)}"
            for key, found, expected in sorted(report["mismatched_keys"])
        ),
    ]
    if misfits:
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise UserError(f"{place}: {misfits[0]}{more}; the weights must be of the architecture in config.json")
