"""Atomic file and folder writes, and clean-up after a killed process."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from src.config.errors import UserError, one_line
from src.config.signals import signals_deferred
from src.storage.locks import lock_descriptor, try_lock


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[str]]:
    """Open a text file (UTF-8) that gets the name `path` only once it is complete and on disk.

    The file is written under a temporary name, synced and renamed: a reader sees the old file or the complete new one.
    If the block raises, the temporary file is deleted and `path` stays as it was. Missing parent folders are made.
    Raises UserError if the file cannot be written.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    if path.is_dir():
        raise UserError(f"{path}: cannot be written: it is a folder")
    with WritingTo(path), _parents_made(path):
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                lock_descriptor(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
            with signals_deferred():
                temporary.replace(path)
        finally:
            with signals_deferred():
                if temporary.exists():
                    temporary.unlink()
    _sync_folder(path.parent)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def _parents_made(path: Path) -> Iterator[None]:
    """Make the missing parent folders of `path`; remove those again that are empty after the block."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in missing:  # from below
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


class WritingTo(contextlib.AbstractContextManager[None]):
    """Turn the system's error for a failed write (such as no space left) into a UserError that names `path`.

    Use it only for temporary files and for appending, since the message says that earlier content is intact.
    A class, since `except` cannot select the errors of tokenizers, which have no class of their own.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path

    def __exit__(self, kind: type | None, error: BaseException | None, *_: object) -> None:
        reason = None if error is None or isinstance(error, UserError) else _reason_not_written(error)
        if reason is not None:
            raise UserError(f"{self._path}: cannot be written: {reason}; what was there before is intact") from error


def _reason_not_written(error: BaseException) -> str | None:
    """The system's message for a failed write, as each library reports it; None for other errors."""
    said = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save
    if isinstance(said, OSError):
        return said.strerror or one_line(said)
    number = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers
    return os.strerror(int(number[1])) if number else None


def recover(path: str | Path) -> None:
    """Delete the temporary files and folders of killed writers of `path`. Those of live writers, which lock them, stay.

    If a writer was killed between the two renames of `atomic_folder`, the former folder gets its name back.
    """
    path = Path(path)
    name = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.(tmp|former)")
    for entry in list(path.parent.glob(f".{glob.escape(path.name)}.*")):
        if not name.fullmatch(entry.name) or try_lock(entry) is not None:
            continue
        if entry.suffix == ".former" and not path.exists():
            entry.rename(path)
        elif entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def check_output_folder(path: Path, flag: str = "--output_dir") -> None:
    """Raise UserError, which names `flag`, if `path` or one of its parents exists and is not a folder."""
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if there.is_dir():
        return
    if there == path:
        raise UserError(f"{flag} {path}: is a file, not a folder")
    raise UserError(f"{flag} {path}: cannot be written: Not a directory: {there}")


def check_writable(path: Path) -> None:
    """Raise UserError if the folder cannot be written, or cannot be made if it is missing."""
    there = next(each for each in (path, *path.absolute().parents) if each.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        is_read_only = hasattr(os, "statvfs") and os.statvfs(there).f_flag & os.ST_RDONLY
        reason = errno.EROFS if is_read_only else errno.EACCES
        raise UserError(f"{path}: cannot be written: {os.strerror(reason)}")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, which gets the name `path` when the block ends without an error.

    An existing folder is replaced. Missing parent folders are made. Raises UserError if the folder cannot be written.
    """
    building = _temporary_name(path)
    former = building.with_suffix(".former")
    with WritingTo(path), _parents_made(path):
        try:
            building.mkdir()
            with _opened(building) as descriptor:
                if descriptor is not None:
                    lock_descriptor(descriptor)
                yield building
                for file in filter(Path.is_file, building.rglob("*")):
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            with signals_deferred():
                if path.is_dir():
                    path.rename(former)
                building.rename(path)
        finally:
            with signals_deferred():
                if former.is_dir() and not path.exists():  # no new one took its name
                    former.rename(path)
                for rest in (former, building):
                    shutil.rmtree(rest, ignore_errors=True)
    _sync_folder(path.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first: a kill leaves no half of it under its name."""
    shutil.rmtree(folder.rename(folder.with_name(f".{folder.name.strip('.')}.{secrets.token_hex(4)}.former")))


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a file and sync it: the data are on disk when this returns."""
    with WritingTo(path), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Windows has no such call and needs none."""
    with _opened(folder) as descriptor:
        if descriptor is not None:
            os.fsync(descriptor)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of the folder during the block; None on Windows, which cannot open folders."""
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)
