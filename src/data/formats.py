"""Dataset files: read in every supported form, written whole.

A dataset is `{split: {column: [value per row]}}` (SPEC §1).
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from src.config.constants import DEV, GENERATED, TEXT, TRAIN
from src.config.errors import UserError, one_line
from src.data import unpacked
from src.data.hub import HUB_PREFIX, load_hub
from src.data.json_values import with_json_values
from src.data.schema import Columns, Datasets, check_shape, check_strings, kind
from src.data.soft_targets import NestedColumn
from src.storage.json_files import COMPRESSED, opened_text, parse_json, read_bytes, read_json

SPLIT_ALIASES = {"validation": DEV, "valid": DEV, "val": DEV}


def read_datasets(path: str | Path, *, max_rows: int | None = None) -> Datasets:
    """Read a dataset of any supported form, cut to the first `max_rows` rows of each split.

    `path` is one of: a dataset file (JSON); a `.jsonl`, `.parquet` or `.csv` file, which becomes the split `train`; a
    folder with one such file (or `.json`), or one folder of them, per split; a folder saved by `datasets`;
    `hf:<hub name>` or `hf:<hub name>:<configuration>`. The split names `validation`, `valid` and `val` become `dev`.

    Checks the shape alone (splits of named columns of one length); see `check_datasets` and `check_trainable`. Values
    that JSON has no form for get one (`with_json_values`).
    Raises UserError naming the file and the place.
    """
    source = str(path)
    try:
        datasets = _read_any(source)
    except OverflowError:
        raise UserError(f"{source}: holds a time outside of the years 1 to 9999; leave its column out") from None
    check_shape(datasets, source)
    datasets = rename_splits(datasets, source)
    if max_rows is not None:
        datasets = {split: {name: c[:max_rows] for name, c in columns.items()} for split, columns in datasets.items()}
    is_json = Path(source).suffix in (".json", ".jsonl") and Path(source).is_file()
    return datasets if is_json else with_json_values(datasets, source)


def _read_any(source: str) -> Datasets:
    if source.startswith(HUB_PREFIX):
        name, _, config = source.removeprefix(HUB_PREFIX).partition(":")
        if not name:
            raise UserError(f"{source}: names no data set; write {HUB_PREFIX}<hub name>")
        return load_hub(name, config=config or None)
    if Path(source).is_dir():
        return read_folder(Path(source))
    if Path(source).suffix in ROW_READERS:
        return {TRAIN: ROW_READERS[Path(source).suffix](Path(source))}
    return read_json(source)


def read_generations(path: str | Path) -> Datasets:
    """Read a file of pseudo-targets: every split has `generated`, its other columns are as long as it."""
    generations = read_datasets(path)
    for split, columns in generations.items():
        check_strings(columns, GENERATED, f"{path}: split '{split}'")
        if TEXT in columns:
            check_strings(columns, TEXT, f"{path}: split '{split}'")
    return generations


def rename_splits(datasets: Datasets, source: str) -> Datasets:
    """Give the hub's names of the development split ours."""
    renamed: Datasets = {}
    for split, columns in datasets.items():
        name = SPLIT_ALIASES.get(split, split)
        if name in renamed:
            raise UserError(f"{source}: two splits mean '{name}' ('{split}' is one of them); keep one")
        renamed[name] = columns
    return renamed


SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")  # as the hub and `datasets` name them


LARGE, MOST_EXPANSION = 2**30, 1_000  # bytes in memory, and how many times a file's own, before it is refused


def read_folder(folder: Path) -> Datasets:
    """The splits of a folder: a file or a folder of files for each, what `datasets` saved there, or the hub's layout.

    In the hub's layout, files are named SPLIT-00000-of-00002 and so on, often in a folder `data`.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _read_saved(folder)
    datasets: Datasets = {}
    for entry in _visible(folder):
        files = _files_of_rows(entry) if entry.is_dir() else [entry] * _holds_rows(entry)
        for split, parts in _by_split(entry, files).items():
            if split in datasets:
                raise UserError(f"{folder}: split '{split}' is there twice ({entry.name} is one); keep one")
            datasets[split] = _concatenate([(file, SPLIT_READERS[file.suffix](file)) for file in parts])
    if not datasets:
        raise UserError(f"{folder}: no split found; expected train, dev, test … as {', '.join(SPLIT_READERS)}")
    return datasets


def _read_saved(folder: Path) -> Datasets:
    from datasets import DatasetDict, load_from_disk

    try:
        _check_saved(folder)
        saved = load_from_disk(str(folder))
        saved = saved if isinstance(saved, DatasetDict) else {TRAIN: saved}
        for rows in saved.values():
            rows.data.validate(full=True)  # as in _read_arrow
        return {str(split): rows.to_dict() for split, rows in saved.items()}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a folder saved by `datasets`: {one_line(error)}") from None
    except (AttributeError, KeyError, TypeError):  # JSON of another shape
        raise UserError(f"{folder}: not a folder saved by `datasets`: its .json files hold something else") from None


def _check_saved(folder: Path) -> None:
    """Refuse files elsewhere, and such as would take far more room than they have."""
    import pyarrow

    for description in folder.rglob("*.json"):
        content = read_json(description)
        for entry in content["_data_files"] if description.name == "state.json" else ():
            if Path(entry["filename"]).name != entry["filename"]:
                raise UserError(f"{description}: '{entry['filename']}' is no name of a file beside it")
    for file in folder.rglob("*.arrow"):
        _check_arrow(pyarrow.memory_map(str(file)).read_buffer(), file)


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, without what editors and systems hide there (.ipynb_checkpoints, ._x.jsonl, __MACOSX)."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))


def _by_split(entry: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files of a folder's entry by split: shards by their names, other files by that of the entry.

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


def _files_of_rows(folder: Path) -> list[Path]:
    return list(filter(_holds_rows, _visible(folder)))


def _holds_rows(file: Path) -> bool:
    """Whether a file of a folder is (a part of) a split. Raises UserError for one that is compressed."""
    if file.suffix in COMPRESSED and Path(file.stem).suffix in SPLIT_READERS:
        raise UserError(f"{file}: is compressed; unpack it first")
    return file.suffix in SPLIT_READERS


def _concatenate(parts: list[tuple[Path, Columns]]) -> Columns:
    first_file, first = parts[0]
    for file, columns in parts[1:]:
        if set(columns) != set(first):
            raise UserError(f"{file}: columns {sorted(columns)} differ from {sorted(first)} in {first_file.name}")
    return {name: [value for _, columns in parts for value in columns[name]] for name in first} if parts[1:] else first


def _read_split_json(path: Path) -> Columns:
    """One split in a `.json` file: an object of columns, a list of rows, or (as many tools write it) JSON Lines."""
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


def _read_tsv(path: Path) -> Columns:
    return _read_csv(path, delimiter="\t")


def _read_csv(path: Path, delimiter: str = ",") -> Columns:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # documents are longer than the standard 128 KiB
    data = read_bytes(path)
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True, delimiter=delimiter)
        _check_unique(rows.fieldnames or (), path)
        return _columns_of((f"{path}: line {rows.line_num}", row) for row in rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a {path.suffix[1:].upper()} file in UTF-8: {one_line(error)}") from None


def _read_parquet(path: Path) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_unique(file.schema_arrow.names, path)
            metadata = file.metadata
            _check_expansion(unpacked.of_parquet(metadata), path)
        columns: Columns = {name: [] for name in file.schema_arrow.names}
        shared = unpacked.texts_to_share(metadata)
        with pyarrow.parquet.ParquetFile(path, read_dictionary=shared, page_checksum_verification=True) as file:
            size = 0
            for part in unpacked.parts(file, LARGE):
                size += part.nbytes
                _check_expansion(size, path)
                for name in part.column_names:
                    columns[name] += unpacked.as_list(part[name])
        return columns
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a Parquet file: {one_line(error)}") from None


def _check_expansion(needed: int, path: Path) -> None:
    """Refuse a file that is a bomb: tiny, and huge once it is read."""
    size = path.stat().st_size
    if needed > LARGE and needed > MOST_EXPANSION * size:
        raise UserError(
            f"{path}: {size:,} bytes would take {needed:,} in memory; a file that expands more than "
            f"{MOST_EXPANSION:,} times is refused"
        )


def _read_arrow(path: Path) -> Columns:
    """An Arrow file, memory-mapped: texts become lists, lists of lists of numbers stay in the file."""
    import pyarrow

    def column(values: pyarrow.ChunkedArray) -> Any:
        is_nested = pyarrow.types.is_list(values.type) and pyarrow.types.is_list(values.type.value_type)
        return NestedColumn(values) if is_nested else unpacked.as_list(values)

    try:
        content = pyarrow.memory_map(str(path)).read_buffer()
        file, stream = pyarrow.ipc.open_file(content), content.slice(unpacked.MAGIC)
        _check_arrow(stream, path)
        # In the order it lies in, which is what has been looked at, and not by the list at the file's end.
        batches = list(pyarrow.ipc.open_stream(stream))
        if len(batches) != file.num_record_batches:
            raise UserError(
                f"{path}: not an Arrow file: {len(batches)} batches of rows, {file.num_record_batches} listed"
            )
        table = pyarrow.Table.from_batches(batches, file.schema)
        _check_unique(table.column_names, path)
        table.validate(full=True)  # offsets that point anywhere would be followed
        for name in table.column_names:
            _check_expansion(unpacked.of_views(table[name]), path)
        return {name: column(table[name]) for name in table.column_names}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not an Arrow file: {one_line(error)}") from None


def _check_arrow(stream: Any, path: Path) -> None:
    """Refuse a stream of Arrow messages that would take far more room than it has, before anything is unpacked."""
    import pyarrow

    for field in pyarrow.ipc.open_stream(stream).schema:
        kind = unpacked.unreadable_type(field.type)
        if kind is not None:
            raise UserError(
                f"{path}: column '{field.name}': type {kind} is not read; write texts as string, lists as list"
            )
    _check_expansion(unpacked.of_arrow(stream), path)


ROW_READERS = {".jsonl": _read_json_rows, ".parquet": _read_parquet, ".csv": _read_csv, ".tsv": _read_tsv}


SPLIT_READERS = {**ROW_READERS, ".json": _read_split_json, ".arrow": _read_arrow}


def _check_unique(names: Sequence[str], path: Path) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path}: column '{name}' is there twice; keep one")


def _columns_of(rows: Iterable[tuple[str, Any]]) -> Columns:
    """Turn (place, row) pairs into columns; a key that a row lacks, as optional ones may be, is null there."""
    columns: Columns = {}
    for i, (place, row) in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected an object with named columns, found {kind(row)}")
        if None in row:  # csv.DictReader's key of too many values
            raise UserError(f"{place}: columns {list(map(str, row))} differ from the first row's {list(columns)}")
        for name in row:
            if name not in columns:
                columns[name] = [None] * i
        for name, values in columns.items():
            values.append(row.get(name))
    return columns
