"""Locks of files and folders, which the system releases when their process ends, even if it is killed."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.config.console import say
from src.config.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # from file systems without locks (some NFS)


def lock_descriptor(descriptor: int) -> int | None:
    """Lock an open file or folder until it is closed. Returns the error number if that fails, otherwise None."""
    if fcntl is None:
        return errno.ENOSYS
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno
    return None


def try_lock(path: Path) -> int | None:
    """Lock a file or folder and release it at once. Returns the error number if that fails, otherwise None."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:  # deleted in the meantime, or not readable
        return error.errno
    try:
        return lock_descriptor(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock file `path`, then hold it. Without effect on Windows and some NFS."""
    if fcntl is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    while not _locked_in_turn(descriptor):
        os.close(descriptor)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked_in_turn(descriptor: int) -> bool:
    """Wait for the lock of an open file. Returns False if its last holder deleted the file: later ones open another."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return os.fstat(descriptor).st_nlink > 0


class FolderLock:
    """Keeps other processes out of a folder until it is released or the process ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None
        self.is_acquired = False  # also on a file system without locks

    def acquire(self) -> None:
        """Raise UserError if another process holds the lock, or the folder cannot be written.

        A file system without locks gets a warning.
        """
        folder = self._path.parent
        while not self.is_acquired:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
            error_number = lock_descriptor(descriptor)
            if error_number is None and os.fstat(descriptor).st_nlink:
                self._descriptor, self.is_acquired = descriptor, True
                return
            os.close(descriptor)
            if error_number in NO_LOCKS:
                self._path.unlink(missing_ok=True)
                say(f"warning: {folder}: its file system has no locks; do not start another run with this --output_dir")
                self.is_acquired = True
            elif error_number in (errno.EAGAIN, errno.EACCES):
                raise _held(folder)
            elif error_number is not None:  # None: its last holder has just deleted the file, so try again
                raise UserError(f"{folder}: cannot be written: {os.strerror(error_number)}")

    def release(self) -> None:
        """Release the lock and remove its file; without effect if it is not held."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
        self.is_acquired = False

    def check_free(self) -> None:
        """Raise UserError if another process holds the lock. Leaves no trace."""
        if self._path.exists() and try_lock(self._path) not in (None, *NO_LOCKS):
            raise _held(self._path.parent)


def _held(folder: Path) -> UserError:
    return UserError(f"{folder}: another run is at work there; wait for its end, or take another --output_dir")
