"""Read a dataset of any supported format: `{split: {column: [value per row]}}`."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from src.config.constants import DEV, GENERATED, TEXT, TRAIN
from src.config.errors import UserError, one_line
from src.data.arrow_columns import concatenated
from src.data.columnar_files import is_saved_folder, read_arrow, read_parquet, read_saved_folder
from src.data.columns import rename_columns
from src.data.hub import HUB_PREFIX, load_hub
from src.data.json_values import with_json_values
from src.data.message_columns import with_texts
from src.data.schema import Columns, Datasets, check_shape, check_strings, check_unique_names, kind
from src.data.splits import first_rows
from src.storage.json_files import COMPRESSED, opened_text, parse_json, read_bytes, read_json

SPLIT_ALIASES = {"validation": DEV, "valid": DEV, "val": DEV}


def read_datasets(
    path: str | Path, *, columns: Mapping[str, str] | None = None, max_rows: int | None = None
) -> Datasets:
    """Read a dataset of any supported format; keep the first `max_rows` rows of each split, or all of them.

    `columns` gives its names of columns by ours (see `rename_columns`).

    `path` is one of: a dataset file (JSON); a `.jsonl`, `.parquet` or `.csv` file, which becomes the split `train`; a
    folder with one such file (or `.json`), or one folder of them, per split; a folder saved by `datasets`;
    `hf:<hub name>` or `hf:<hub name>:<configuration>`. The split names `validation`, `valid` and `val` become `dev`.

    Only the shape is checked (splits of named columns of equal length); see `check_datasets` and `check_trainable`.
    Values that JSON cannot represent are converted (`with_json_values`).
    Raises UserError with the file and the place.
    """
    source = str(path)
    try:
        datasets = _read_any(source)
    except OverflowError:
        raise UserError(f"{source}: contains a time outside of the years 1 to 9999; remove its column") from None
    check_shape(datasets, source)
    datasets = first_rows(rename_columns(rename_splits(datasets, source), columns or {}, source), max_rows)
    datasets = with_texts(datasets, source)
    is_json = Path(source).suffix in (".json", ".jsonl") and Path(source).is_file()
    return datasets if is_json else with_json_values(datasets, source)


def _read_any(source: str) -> Datasets:
    if source.startswith(HUB_PREFIX):
        name, _, config = source.removeprefix(HUB_PREFIX).partition(":")
        if not name:
            raise UserError(f"{source}: the name of the dataset is missing; write {HUB_PREFIX}<hub name>")
        return load_hub(name, config=config or None)
    if Path(source).is_dir():
        return read_folder(Path(source))
    if Path(source).suffix in ROW_READERS:
        return {TRAIN: ROW_READERS[Path(source).suffix](Path(source))}
    return read_json(source)


def read_generations(path: str | Path) -> Datasets:
    """Read a file of pseudo-targets. Raises UserError unless every split has a column `generated` of texts."""
    generations = read_datasets(path)
    for split, columns in generations.items():
        check_strings(columns, GENERATED, f"{path}: split '{split}'")
        if TEXT in columns:
            check_strings(columns, TEXT, f"{path}: split '{split}'")
    return generations


def rename_splits(datasets: Datasets, source: str) -> Datasets:
    """Rename the development split, for which the hub has several names, to `dev`."""
    renamed: Datasets = {}
    for split, columns in datasets.items():
        name = SPLIT_ALIASES.get(split, split)
        if name in renamed:
            raise UserError(f"{source}: two splits mean '{name}' ('{split}' is one of them); keep one")
        renamed[name] = columns
    return renamed


SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")  # as the hub and `datasets` name them


def read_folder(folder: Path) -> Datasets:
    """Read a folder with a file, or a folder of files, per split; or one that `datasets` saved; or the hub's layout.

    In the hub's layout, files are named SPLIT-00000-of-00002 and so on, often in a folder `data`.
    Raises UserError if there is no split, or one that cannot be read.
    """
    if is_saved_folder(folder):
        return read_saved_folder(folder)
    datasets: Datasets = {}
    for entry in _visible(folder):
        files = list(filter(_holds_rows, _visible(entry) if entry.is_dir() else [entry]))
        for split, parts in _by_split(entry, files).items():
            if split in datasets:
                raise UserError(f"{folder}: split '{split}' is there twice ({entry.name} is one); keep one")
            datasets[split] = _concatenate([(file, SPLIT_READERS[file.suffix](file)) for file in parts])
    if not datasets:
        raise UserError(f"{folder}: no split found; expected train, dev, test … as {', '.join(SPLIT_READERS)}")
    return datasets


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder, without hidden ones of editors and systems (.ipynb_checkpoints, ._x.jsonl, __MACOSX)."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))


def _by_split(entry: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Group the files of a folder's entry by split: shards by their own names, other files by the entry's name.

    Raises UserError if a shard is missing.
    """
    shards = [SHARD.fullmatch(file.stem) for file in files]
    if not entry.is_dir() or not all(shards):
        return {entry.name if entry.is_dir() else entry.stem: files} if files else {}
    splits: dict[str, list[Path]] = {}
    for file, shard in zip(files, shards, strict=True):
        assert shard is not None
        splits.setdefault(shard["split"], []).append(file)
    for split, parts in splits.items():
        named = [SHARD.fullmatch(file.stem) for file in parts]
        numbers, counts = ([int(shard[key]) for shard in named if shard] for key in ("number", "count"))
        if numbers != list(range(counts[0])):
            missing = sorted(set(range(counts[0])) - set(numbers))
            raise UserError(f"{entry}: split '{split}' has {counts[0]} shards, of which {missing} are not there")
    return splits


def _holds_rows(file: Path) -> bool:
    """Whether a file contains rows of a split, by its suffix. Raises UserError for a compressed one."""
    if file.suffix in COMPRESSED and Path(file.stem).suffix in SPLIT_READERS:
        raise UserError(f"{file}: is compressed; unpack it first")
    return file.suffix in SPLIT_READERS


def _concatenate(parts: list[tuple[Path, Columns]]) -> Columns:
    first_file, first = parts[0]
    for file, columns in parts[1:]:
        if set(columns) != set(first):
            raise UserError(f"{file}: columns {sorted(columns)} differ from {sorted(first)} in {first_file.name}")
    return {name: concatenated([columns[name] for _, columns in parts]) for name in first} if parts[1:] else first


def _read_split_json(path: Path) -> Columns:
    """Read one split from a `.json` file: an object of columns, a list of rows, or JSON Lines, as many tools write."""
    data = read_bytes(path)
    lines = data.split(b"\n", maxsplit=1)
    if lines[0].strip().endswith(b"}") and lines[1:] and lines[1].strip():
        return _read_json_rows(path)
    content = parse_json(data, str(path))
    if isinstance(content, dict) and all(isinstance(values, list) for values in content.values()):
        return content
    rows = content if isinstance(content, list) else [content]
    return _columns_of((f"{path}: row {i}", row) for i, row in enumerate(rows))


def _read_json_rows(path: Path) -> Columns:
    with opened_text(path) as lines:
        return _columns_of(
            (f"{path}: line {i}", parse_json(line, f"{path}: line {i}"))
            for i, line in enumerate(lines, start=1)
            if line.strip()
        )


def _read_csv(path: Path) -> Columns:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # documents are longer than the standard 128 KiB
    data, delimiter = read_bytes(path), "\t" if path.suffix == ".tsv" else ","
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True, delimiter=delimiter)
        check_unique_names(rows.fieldnames or (), path)
        return _columns_of((f"{path}: line {rows.line_num}", row) for row in rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a {path.suffix[1:].upper()} file in UTF-8: {one_line(error)}") from None


ROW_READERS = {".jsonl": _read_json_rows, ".parquet": read_parquet, ".csv": _read_csv, ".tsv": _read_csv}
SPLIT_READERS = {**ROW_READERS, ".json": _read_split_json, ".arrow": read_arrow}


def _columns_of(rows: Iterable[tuple[str, Any]]) -> Columns:
    """Turn (place, row) pairs into columns. A row that lacks a key gets null."""
    columns: Columns = {}
    for i, (place, row) in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected an object with named columns, found {kind(row)}")
        if None in row:  # csv.DictReader puts surplus values under the key None
            raise UserError(f"{place}: columns {list(map(str, row))} differ from the first row's {list(columns)}")
        for name in row:
            if name not in columns:
                columns[name] = [None] * i
        for name, values in columns.items():
            values.append(row.get(name))
    return columns
