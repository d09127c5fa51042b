"""Dataset files: read them in every supported form, check them, and write files that are never seen half done.

A dataset is `{split: {column: [value per row]}}` (SPEC §1).
"""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from src.config.console import progress_bar
from src.config.constants import DEV, GENERATED, TARGET, TEXT, TRAIN, UNLABELED
from src.config.errors import UserError
from src.config.signals import signals_wait
from src.config.values import shown
from src.data import unpacked
from src.data.stored import NestedColumn

try:
    import fcntl
except ModuleNotFoundError:  # Windows: what a killed writer leaves there stays
    fcntl = None  # type: ignore[assignment]

try:
    import orjson
except ModuleNotFoundError:  # only faster: the standard library reads the same values
    orjson = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

Columns = dict[str, list]
Datasets = dict[str, Columns]

HUB_PREFIX = "hf:"
HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer
SPLIT_ALIASES = {"validation": DEV, "valid": DEV, "val": DEV}
TRAIN_I = re.compile(r"train_(\d+)")
ARROW = ".arrow"
NESTED = {"tokens": "i", "logits": "f"}  # columns of lists of lists of numbers, and what these are (int32, float32)
ROWS_PER_BATCH, NUMBERS_PER_BATCH = 1_000, 1_000_000  # a record batch ends when it has as many
LARGE, MOST_EXPANSION = 2**30, 1_000  # bytes in memory, and how many times a file's own, before it is refused
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00"}  # first bytes


# ------------------------------------------------------------------------------------------------------------ reading


def read_datasets(path: str | Path, *, max_rows: int | None = None) -> Datasets:
    """Read a dataset of any supported form, cut to the first `max_rows` rows of each split.

    `path` is one of: a dataset file (JSON); a `.jsonl`, `.parquet` or `.csv` file, which becomes the split `train`; a
    folder with one such file (or `.json`), or one folder of them, per split; a folder saved by `datasets`;
    `hf:<hub name>` or `hf:<hub name>:<configuration>`. The split names `validation`, `valid` and `val` become `dev`.

    Checks the shape alone (splits of named columns of one length); see `check_datasets` and `check_trainable`.
    Raises UserError naming the file and the place.
    """
    source = str(path)
    if source.startswith(HUB_PREFIX):
        name, _, config = source.removeprefix(HUB_PREFIX).partition(":")
        if not name:
            raise UserError(f"{source}: names no data set; write {HUB_PREFIX}<hub name>")
        datasets = load_hub(name, config=config or None)
    elif Path(source).is_dir():
        datasets = _read_folder(Path(source))
    elif Path(source).suffix in ROW_READERS:
        datasets = {TRAIN: ROW_READERS[Path(source).suffix](Path(source))}
    else:
        datasets = read_json(source)
    check_shape(datasets, source)
    datasets = rename_splits(datasets, source)
    if max_rows is None:
        return datasets
    return {split: {name: values[:max_rows] for name, values in columns.items()} for split, columns in datasets.items()}


def read_generations(path: str | Path) -> Datasets:
    """Read a file of pseudo-targets: every split has `generated`, its other columns are as long as it."""
    generations = read_datasets(path)
    for split, columns in generations.items():
        check_strings(columns, GENERATED, f"{path}: split '{split}'")
        if TEXT in columns:
            check_strings(columns, TEXT, f"{path}: split '{split}'")
    return generations


def read_json(path: str | Path) -> Any:
    """The value in a JSON file (UTF-8). Raises UserError with the line and column of the first mistake."""
    return _parse_json(_read_bytes(Path(path)), str(path))


def rename_splits(datasets: Datasets, source: str) -> Datasets:
    """Give the hub's names of the development split ours."""
    renamed: Datasets = {}
    for split, columns in datasets.items():
        name = SPLIT_ALIASES.get(split, split)
        if name in renamed:
            raise UserError(f"{source}: two splits mean '{name}' ('{split}' is one of them); keep one")
        renamed[name] = columns
    return renamed


def load_hub(name: str, *, config: str | None = None, splits: Iterable[str] = ()) -> Datasets:
    """A dataset of the hub, under its own names of splits and columns.

    Repositories that hold a script (`datasets` runs none) are read from their `refs/convert/parquet` revision if
    `splits` names what to look for there. With HF_HUB_OFFLINE=1 only the library's cache is read.
    Raises UserError, within seconds if the hub cannot be reached.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    # HfHubHTTPError's bases: the HTTP client's own error (requests, httpx, httpx2, as the version has it) and OSError.
    failures = (*HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    if not Path(name).exists():  # `datasets` reads local folders laid out like a repository too
        _check_hub_answers(name)
    try:
        loaded = datasets.load_dataset(name, config)
    except failures as error:
        loaded = None
        reason = one_line(error)
    if loaded is None and splits:
        root = f"hf://datasets/{name}@~parquet"
        try:
            loaded = datasets.load_dataset("parquet", data_files={s: f"{root}/*/{s}/*.parquet" for s in splits})
        except failures as error:
            reason += f"; its parquet revision: {one_line(error)}"
    if loaded is None:
        raise UserError(f"{HUB_PREFIX}{name}: not loaded from the hub: {reason}")
    return {str(split): rows.to_dict() for split, rows in loaded.items()}


def one_line(error: BaseException) -> str:
    """An error's message on a single line, without a library's names of errors."""
    return re.sub(r"\b[A-Z]\w*(Error|Exception): ", "", " ".join(str(error).split())) or type(error).__name__


def _check_hub_answers(name: str) -> None:
    """Fail in seconds where the libraries' own retries take minutes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        raise UserError(
            f"{HUB_PREFIX}{name}: the hub does not answer ({getattr(error, 'reason', error)}); give a local file or "
            "folder, or set HF_HUB_OFFLINE=1 to use a copy in the cache"
        ) from None


def _read_folder(folder: Path) -> Datasets:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _read_saved(folder)
    datasets: Datasets = {}
    for entry in sorted(folder.iterdir()):
        files = _files_of_rows(entry) if entry.is_dir() else [entry] * _holds_rows(entry)
        if not files:
            continue
        split = entry.name if entry.is_dir() else entry.stem
        if split in datasets:
            raise UserError(f"{folder}: split '{split}' is there twice ({entry.name} is one); keep one")
        datasets[split] = _concatenate([(file, SPLIT_READERS[file.suffix](file)) for file in files])
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


def _files_of_rows(folder: Path) -> list[Path]:
    return sorted(filter(_holds_rows, folder.iterdir()))


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
    data = _read_bytes(path)
    lines = data.split(b"\n", maxsplit=1)
    if lines[0].strip().endswith(b"}") and lines[1:] and lines[1].strip():
        return _read_json_rows(path)
    content = _parse_json(data, str(path))
    if isinstance(content, dict) and all(isinstance(values, list) for values in content.values()):
        return content
    rows = content if isinstance(content, list) else [content]
    return _columns_of((f"{path}: row {i}", row) for i, row in enumerate(rows))


def _read_json_rows(path: Path) -> Columns:
    with _opened_text(path) as lines:
        return _columns_of(
            (f"{path}: line {i}", _parse_json(line, f"{path}: line {i}"))
            for i, line in enumerate(lines, start=1)
            if line.strip()
        )


def _read_csv(path: Path) -> Columns:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # documents are longer than the standard 128 KiB
    data = _read_bytes(path)
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        _check_unique(rows.fieldnames or (), path)
        return _columns_of((f"{path}: line {rows.line_num}", row) for row in rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {one_line(error)}") from None


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
            f"{path}: {size:,} bytes that would take {needed:,} in memory: no data set is packed to less than "
            f"1/{MOST_EXPANSION:,}"
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


ROW_READERS = {".jsonl": _read_json_rows, ".parquet": _read_parquet, ".csv": _read_csv}
SPLIT_READERS = {**ROW_READERS, ".json": _read_split_json, ".arrow": _read_arrow}


def _check_unique(names: Sequence[str], path: Path) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path}: column '{name}' is there twice; keep one")


def _columns_of(rows: Iterable[tuple[str, Any]]) -> Columns:
    """Turn (place, row) pairs into columns; every row has the first row's keys, and a value for each."""
    columns: Columns = {}
    for i, (place, row) in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected an object with named columns, found {kind(row)}")
        if i == 0:
            columns = {name: [] for name in row}
        # csv.DictReader gives too many values the key None, and too few the value None
        if row.keys() != columns.keys() or None in row:
            raise UserError(f"{place}: columns {list(map(str, row))} differ from the first row's {list(columns)}")
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _read_bytes(path: Path) -> bytes:
    with _opened_text(path) as file:
        return file.read()


@contextlib.contextmanager
def _opened_text(path: Path) -> Iterator[io.BufferedReader]:
    with _opened(path) as file:
        if file.peek(6).startswith(tuple(COMPRESSED.values())):
            raise UserError(f"{path}: is compressed; unpack it first")
        yield file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    with file:
        yield file


def _parse_json(data: bytes, source: str) -> Any:
    data = data.removeprefix(BYTE_ORDER_MARK)
    try:
        return orjson.loads(data) if orjson else _parse_slowly(data)
    except json.JSONDecodeError as error:
        hint = "" if error.lineno == 1 or not _first_line_is_json(data) else " (one object per line? name it .jsonl)"
        raise UserError(f"{source}: not JSON: line {error.lineno}, column {error.colno}: {error.msg}{hint}") from None
    except ValueError as error:  # not UTF-8, NaN, or nested too deeply
        raise UserError(f"{source}: not JSON in UTF-8: {one_line(error)}") from None


def _parse_slowly(data: bytes) -> Any:
    """What orjson says of these data, by the standard library. Raises ValueError."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if b"\\ud" in data.lower():  # escapes of halves of characters
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _first_line_is_json(data: bytes) -> bool:
    try:
        json.loads(data.split(b"\n", maxsplit=1)[0])
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# ----------------------------------------------------------------------------------------------------------- checking


def check_shape(datasets: Any, source: str) -> None:
    """Refuse all but `{split: {column: [...]}}` with columns of one length in each split."""
    if not isinstance(datasets, dict) or not datasets:
        raise UserError(f"{source}: expected {{split: {{column: [...]}}}}, found {kind(datasets)}")
    for split, columns in datasets.items():
        if not isinstance(columns, dict) or not columns:
            raise UserError(f"{source}: split '{split}': expected an object of columns, found {kind(columns)}")
        for name, values in columns.items():
            if not isinstance(values, list | NestedColumn):
                raise UserError(f"{source}: split '{split}', column '{name}': expected a list, found {kind(values)}")
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            rows = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UserError(f"{source}: split '{split}': columns must be equally long, but rows are: {rows}")


def check_datasets(datasets: Datasets, source: str, *, need_target: bool = True) -> None:
    """Refuse what no stage can use: a split without rows or `text`, texts that are not strings, gaps in `train_<i>`.

    `target` is needed in every split but `unlabeled`, or in none with `need_target=False`.
    Raises UserError naming the file, the split, the column and the row (rows are counted from 0).
    """
    check_shape(datasets, source)
    for split, columns in datasets.items():
        place = f"{source}: split '{split}'"
        check_strings(columns, TEXT, place)
        if split != UNLABELED and (need_target or TARGET in columns):
            check_strings(columns, TARGET, place)
    rotation = _rotation(datasets)
    for i, split in enumerate(rotation):
        if split != f"{TRAIN}_{i}":
            raise UserError(
                f"{source}: split {shown(split)} where '{TRAIN}_{i}' should be: the splits {TRAIN}_0, {TRAIN}_1 … must "
                "be numbered without gaps"
            )


def check_trainable(datasets: Datasets, source: str) -> None:
    """As `check_datasets`, and there is `train` or `train_0 …` to train on."""
    check_shape(datasets, source)
    if TRAIN not in datasets and not _rotation(datasets):
        raise UserError(f"{source}: no training split ('{TRAIN}', or '{TRAIN}_0' …), only {list(datasets)}")
    check_datasets(datasets, source)


def training_splits(datasets: Datasets) -> list[str]:
    """The training splits in the order of rotation: `train_0 …` if there are any, otherwise `train` (or none)."""
    rotation = _rotation(datasets)
    if rotation and TRAIN in datasets:
        logger.warning("split '%s' is ignored: %s … %s are trained on", TRAIN, rotation[0], rotation[-1])
    return rotation or [split for split in datasets if split == TRAIN]


def is_training_split(split: str) -> bool:
    """Whether a split is `train` or `train_<i>`."""
    return split == TRAIN or TRAIN_I.fullmatch(split) is not None


def _rotation(datasets: Datasets) -> list[str]:
    return sorted(filter(TRAIN_I.fullmatch, datasets), key=lambda split: (len(split), split))


def check_strings(columns: Columns, name: str, place: str) -> None:
    """Refuse a split whose column `name` is missing, has no rows or a value that is no string; `place` names it."""
    if name not in columns:
        raise UserError(f"{place}: column '{name}' is missing; it has {list(columns)}")
    if not columns[name]:
        raise UserError(f"{place}: no rows")
    if set(map(type, columns[name])) != {str}:
        row = next(i for i, value in enumerate(columns[name]) if not isinstance(value, str))
        raise UserError(f"{place}, column '{name}', row {row}: expected text, found {kind(columns[name][row])}")


def kind(value: Any) -> str:
    """What a JSON value is, for a message."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
    empty = "an empty object" if value == {} else None
    return empty or names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


# ------------------------------------------------------------------------------------------------------------ writing


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[str]]:
    """Open a text file (UTF-8) that takes the name `path` only once it is complete and on disk.

    Written under a temporary name, synced and renamed: a reader sees the old file or the whole new one. If anything
    fails inside the block nothing is left of it and `path` stays as it was. Missing parents are made at the end.
    """
    path = Path(path)
    temporary = _beside(path, ".tmp")
    if path.is_dir():
        raise UserError(f"{path}: cannot be written: it is a folder")
    try:
        file = _open_new(temporary, path)
        with writing_to(path):
            with file:
                _lock(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
            with signals_wait(), _parents_made(path):
                temporary.replace(path)
    finally:
        with signals_wait():
            if temporary.exists():
                temporary.unlink()
    _sync_folder(path.parent)


def _beside(path: Path, ending: str) -> Path:
    """A temporary name for what will be `path`: beside it, or beside the first of its folders that has to be made."""
    there = next(parent for parent in path.absolute().parents if parent.is_dir())
    return there / f".{path.name}.{secrets.token_hex(4)}{ending}"


@contextlib.contextmanager
def _parents_made(path: Path) -> Iterator[None]:
    """Within: the folders above `path` are there. Those made for it go again if it does not come to be."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in missing:  # from below
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _open_new(temporary: Path, path: Path) -> IO[str]:
    try:
        return temporary.open("x", encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def writing_to(path: str | Path) -> contextlib.AbstractContextManager[None]:
    """Within: what the system says of a write that fails (no space, above all) becomes a UserError that names `path`.

    For what is written under a temporary name, or cut off when it is continued: nothing of before is lost.
    """
    return _Writing(Path(path))


class _Writing(contextlib.AbstractContextManager[None]):
    """Looks at errors without catching them, because tokenizers raises no class of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __exit__(self, kind: type | None, error: BaseException | None, *_: object) -> None:
        reason = None if error is None or isinstance(error, UserError) else _reason_not_written(error)
        if reason is not None:
            raise UserError(f"{self._path}: cannot be written: {reason}; what was there before is intact") from error


def _reason_not_written(error: BaseException) -> str | None:
    """The system's words on a failed write, which libraries pass on in ways of their own; None for other errors."""
    said = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save
    if isinstance(said, OSError):
        return said.strerror or one_line(said)
    number = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers
    return os.strerror(int(number[1])) if number else None


def recover(path: str | Path) -> None:
    """Clear away what killed writers of `path` left under temporary names; those of writers at work stay.

    A folder that was killed in the moment between two names gets back the one it had.
    """
    path = Path(path).absolute()
    name = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.(tmp|former)")
    for folder in filter(Path.is_dir, path.parents):
        for entry in list(folder.glob(f".{glob.escape(path.name)}.*")):
            if not name.fullmatch(entry.name) or not _is_stale(entry):
                continue
            if entry.suffix == ".former" and not path.exists():
                entry.rename(path)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file, where that can be told; none does of one that is not there."""
    return fcntl is not None and path.exists() and not _is_stale(path)


def _is_stale(temporary: Path) -> bool:
    """Whether no process has marked what has this name as its own."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(temporary, os.O_RDONLY)
    except OSError:  # gone by now, or somebody else's
        return False
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Mark an open file or folder as being written, until it is closed; whether nobody had."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held, or a file system without locks
            return False
    return True


def write_datasets(path: str | Path, datasets: Datasets) -> None:
    """Write a dataset file atomically, a value per line; the same datasets give the same bytes."""
    with atomic_write(path) as file:
        file.writelines(_json_of(datasets))


class RowWriter(Protocol):
    """Takes the rows of a dataset one at a time, in any order of the splits."""

    def add(self, split: str, row: dict[str, Any]) -> None: ...


@contextlib.contextmanager
def open_dataset(path: str | Path, splits: Sequence[str]) -> Iterator[RowWriter]:
    """Write a dataset row by row: a folder of Arrow files if `path` ends in `.arrow`, otherwise a JSON file.

    Arrow: one memory-mappable file `<split>.arrow` for each split, a record batch at a time, so that any number of
    rows needs little memory; a JSON file is collected first. Either takes the name `path` only when the block ends
    well, and `splits` are in this order; otherwise nothing is left behind. Raises UserError if a folder that is not
    such a one would have to be replaced.
    """
    path = Path(path)
    if path.suffix != ARROW:
        collected = _Collected(splits)
        yield collected
        write_datasets(path, collected.datasets)
        return
    _check_replaceable(path)
    with whole_folder(path) as folder, contextlib.ExitStack() as stack:
        yield _ArrowFiles({split: stack.enter_context(_ArrowFile(folder / f"{split}{ARROW}")) for split in splits})


class _Collected:
    """Rows in memory, as columns."""

    def __init__(self, splits: Iterable[str]) -> None:
        self.datasets: Datasets = {split: {} for split in splits}

    def add(self, split: str, row: dict[str, Any]) -> None:
        columns = self.datasets[split]
        for name, value in row.items():
            columns.setdefault(name, []).append(value)


class _ArrowFiles:
    def __init__(self, files: dict[str, _ArrowFile]) -> None:
        self._files = files

    def add(self, split: str, row: dict[str, Any]) -> None:
        self._files[split].add(row)


class _ArrowFile(contextlib.AbstractContextManager):
    """One split as an Arrow IPC file: columns of text, and of lists of lists of numbers (NESTED)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, list | _NestedBuffer] = {}
        self._n_rows = 0
        self._sink: Any = None
        self._writer: Any = None

    def add(self, row: dict[str, Any]) -> None:
        if not self._columns:
            self._columns = {name: _NestedBuffer(NESTED[name]) if name in NESTED else [] for name in row}
        for name, value in row.items():
            self._columns[name].append(value)
        self._n_rows += 1
        sizes = (len(column.values) for column in self._columns.values() if isinstance(column, _NestedBuffer))
        if self._n_rows >= ROWS_PER_BATCH or max(sizes, default=0) >= NUMBERS_PER_BATCH:
            self._write()

    def _write(self) -> None:
        import pyarrow

        arrays = {
            name: column.taken() if isinstance(column, _NestedBuffer) else pyarrow.array(column, pyarrow.string())
            for name, column in self._columns.items()
        }
        batch = pyarrow.record_batch(list(arrays.values()), names=list(arrays))
        if self._writer is None:
            self._sink = pyarrow.OSFile(str(self._path), "wb")
            self._writer = pyarrow.ipc.new_file(self._sink, batch.schema)
        self._writer.write_batch(batch)
        self._columns, self._n_rows = {}, 0

    def __exit__(self, *error: object) -> None:
        if self._n_rows and error[0] is None:
            self._write()
        if self._writer is not None:
            self._writer.close()
            self._sink.close()


class _NestedBuffer:
    """Rows of lists of lists of numbers, as flat arrays: what a row of Python numbers takes, divided by eight."""

    def __init__(self, kind: str) -> None:
        self.values = array(kind)
        self._entries, self._rows = array("i", [0]), array("i", [0])

    def append(self, row: list[list]) -> None:
        for entries in row:
            self.values.extend(entries)
            self._entries.append(len(self.values))
        self._rows.append(len(self._entries) - 1)

    def taken(self) -> Any:
        """The rows as an Arrow array."""
        import numpy as np
        import pyarrow

        rows, entries, values = (pyarrow.array(np.frombuffer(each, dtype=each.typecode)) for each in self._parts())
        return pyarrow.ListArray.from_arrays(rows, pyarrow.ListArray.from_arrays(entries, values))

    def _parts(self) -> tuple[array, array, array]:
        return self._rows, self._entries, self.values


def check_output_folder(path: Path) -> None:
    """Raise UserError if no folder can be made there: what has its name, or a parent's, is none."""
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if there.is_dir():
        return
    if there == path:
        raise UserError(f"--output_dir {path}: is a file, not a folder")
    raise UserError(f"--output_dir {path}: cannot be written: Not a directory: {there}")


def check_writable(path: Path) -> None:
    """Raise UserError if nothing can be written in a folder, or a folder that is not there cannot be made."""
    there = next(each for each in (path, *path.absolute().parents) if each.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        is_read_only = hasattr(os, "statvfs") and os.statvfs(there).f_flag & os.ST_RDONLY
        reason = errno.EROFS if is_read_only else errno.EACCES
        raise UserError(f"{path}: cannot be written: {os.strerror(reason)}")


def _check_replaceable(folder: Path) -> None:
    """Raise UserError if anything but a folder of Arrow files is there."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; splits of Arrow files need a folder of this name")
    others = sorted(entry.name for entry in folder.glob("*") if entry.suffix != ARROW)
    if others:
        raise UserError(f"{folder}: holds '{others[0]}', which is no Arrow file; give another --file_name")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name, which takes the name `path` once the block has ended well.

    A former folder is replaced, missing parents are made at the end. Raises UserError if nothing can be written there.
    """
    building = _beside(path, ".tmp")
    former = building.with_suffix(".former")
    try:
        _make_new(building, path)
        with writing_to(path), _locked(building):
            yield building
            for file in filter(Path.is_file, building.rglob("*")):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            with signals_wait(), _parents_made(path):
                if path.is_dir():
                    path.rename(former)
                building.rename(path)
    finally:
        with signals_wait():
            if former.is_dir() and not path.exists():  # no new one took its name
                former.rename(path)
            for rest in (former, building):
                shutil.rmtree(rest, ignore_errors=True)
    _sync_folder(path.parent)


def _make_new(building: Path, path: Path) -> None:
    try:
        building.mkdir()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within: the folder is marked as being written, see `_lock`."""
    if fcntl is None:  # where a folder cannot be opened either
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _json_of(datasets: Datasets) -> Iterator[str]:
    """The text of a dataset file, a column at a time."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    yield "{"
    for i, (split, columns) in enumerate(datasets.items()):
        yield f"{',' if i else ''}\n{encode(split)}: {{"
        for j, (name, values) in enumerate(columns.items()):
            yield f"{',' if j else ''}\n{encode(name)}: [\n"
            yield ",\n".join(map(encode, values))
            yield "\n]"
        yield "\n}"
    yield "\n}\n"


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> None:
    """Write any JSON value atomically."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    with atomic_write(path) as file:
        file.write(text + "\n")


def append_json_line(path: str | Path, value: Any) -> bytes:
    """Append one line of JSON, which is returned; a torn last line is removed first. Makes parent folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    _drop_unfinished_line(path)
    append_bytes(path, line)
    return line


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a file; on disk when this returns."""
    with writing_to(path), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: str | Path, *, repair: bool = True) -> list[Any]:
    """The values of a file of JSON lines, none if it is missing. A torn last line is no value, and cut off if `repair`.

    Torn: without its newline, or the last and not JSON. Raises UserError for a bad line before the last.
    """
    path = Path(path)
    if not path.exists():
        return []
    values = []
    end = 0  # of the good lines, in bytes
    with _opened(path) as lines:
        for i, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                values.append(_parse_json(line, f"{path}: line {i}"))
            except UserError:
                if b"\n" in lines.read():
                    raise
                break
            end += len(line)
    if repair and end < path.stat().st_size:
        os.truncate(path, end)
    return values


def iterate_json_lines(path: str | Path, description: str) -> Iterator[tuple[int, Any]]:
    """Each value of a file of JSON Lines with its line number (from 1), one at a time, under a progress bar.

    Blank lines hold none. Raises UserError for a line that is not JSON.
    """
    path = Path(path)
    with _opened_text(path) as lines, progress_bar(path.stat().st_size, description, "B") as bar:
        for i, line in enumerate(lines, start=1):
            if line.strip():
                yield i, _parse_json(line, f"{path}: line {i}")
            bar.update(len(line))


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's names and bytes, in hexadecimal."""
    path = Path(path)
    if path.is_dir():
        parts = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        listing = "\n".join(f"{name} {fingerprint(path / name)}" for name in parts)
        return hashlib.sha256(listing.encode("utf-8")).hexdigest()
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_datasets(datasets: Datasets) -> str:
    """SHA-256 of the file `write_datasets` would write: for data in memory, wherever it came from (`hf:` too)."""
    digest = hashlib.sha256()
    for piece in _json_of(datasets):
        digest.update(piece.encode("utf-8"))
    return digest.hexdigest()


def _drop_unfinished_line(path: Path) -> None:
    """Cut off what follows the last newline, reading backwards only as far as needed."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut (not possible, nor needed, on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
