"""Size and speed of a run's model: parameters from its weight files, speed and memory from profile_main.py."""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config.errors import UserError
from src.reports.collect import Run
from src.runs.records import MODEL_FOLDER
from src.storage.json_files import opened, read_json

Profile = Mapping[str, Any]  # a record of profile_main.py
NUMBERS = {"latency_ms_median": "latency", "peak_memory_mb": "memory", "sentences_per_second": "speed"}


@dataclass(frozen=True)
class Size:
    """None where it is not known. latency: ms for one input. memory: MB. speed: sentences/s. conditions: of these."""

    parameters: int | None = None
    latency: float | None = None
    memory: float | None = None
    speed: float | None = None
    conditions: str = ""


def read_profiles(files: Iterable[str | Path]) -> list[Profile]:
    """The records of profile_main.py in JSON files. Raises UserError for other content."""
    records: list[Profile] = []
    for file in files:
        content = read_json(file)
        if not isinstance(content, list) or not all(
            isinstance(each, dict) and "model_name" in each for each in content
        ):
            raise UserError(f"{file}: expected a list of objects with 'model_name', as profile_main.py writes it")
        records += content
    return records


def size_of(run: Run, profiles: Iterable[Profile]) -> Size:
    """The size and speed of a run's model: latency at batch size 1, speed at the largest batch, memory at the smallest.

    Of a model measured several times, the first device, lengths, beams and layers count.
    """
    folders = {
        os.path.realpath(run.folder / MODEL_FOLDER),
        os.path.normpath(f"{run.flags['output_dir']}/{MODEL_FOLDER}"),
    }
    own = [
        each
        for each in profiles
        if {os.path.normpath(each["model_name"]), os.path.realpath(each["model_name"])} & folders
    ]
    start = run.flags.get("student_name") or run.flags.get("model_name")  # training does not change size and speed
    own = own or [each for each in profiles if each["model_name"] == start]
    parameters = count_parameters(run.folder / MODEL_FOLDER)
    if not own:
        return Size(parameters)
    keys = ("device", "input_length", "target_length", "num_beams", "enc_layers_to_keep", "dec_layers_to_keep")
    own = [each for each in own if all(each.get(key) == own[0].get(key) for key in keys)]
    own.sort(key=lambda each: each.get("batch_size") or 1)
    single, largest = own[0], own[-1]
    return Size(
        parameters or single.get("parameters"),
        single.get("latency_ms_median") if (single.get("batch_size") or 1) == 1 else None,
        single.get("peak_memory_mb"),
        largest.get("sentences_per_second"),
        _conditions(single, largest),
    )


def _conditions(single: Profile, largest: Profile) -> str:
    """Device, lengths, beams and batch sizes of a measurement, for a note."""
    names = {
        "device": "{}",
        "input_length": "input {} tokens",
        "target_length": "output {} tokens",
        "num_beams": "beams {}",
    }
    told = [text.format(single[key]) for key, text in names.items() if single.get(key) is not None]
    batches = dict.fromkeys(each.get("batch_size") or 1 for each in (single, largest))
    return ", ".join([*told, f"batch {' and '.join(map(str, batches))}"])


def count_parameters(folder: Path) -> int | None:
    """The number of weights in a folder's safetensors files, by their headers; None if there are none.

    Raises UserError for a damaged file.
    """
    files = sorted(folder.glob("*.safetensors"))
    return sum(map(_count_in_file, files)) if files else None


def _count_in_file(path: Path) -> int:
    """A file begins with the length of its header (8 bytes, little-endian) and the header (JSON)."""
    with opened(path) as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
            return sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a safetensors file: {error}") from None
