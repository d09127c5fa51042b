"""Locks: those of the file system or, where it has none (NFS, some clusters), files that name process and host."""

import errno
import json
import os
import platform
import secrets
from pathlib import Path
from typing import Any

import psutil

from src.config.console import say
from src.config.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # the system releases its lock when the process ends, even if it is killed
SOFT_LOCK = ".soft_lock"  # in its place where the file system has no locks
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # what `flock` reports there


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


class FolderLock:
    """Keeps other processes out of a folder until it is released or the process ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._soft = SoftLock(folder / SOFT_LOCK)
        self._descriptor: int | None = None

    @property
    def is_locked(self) -> bool:
        return self._descriptor is not None or self._soft.is_locked

    def acquire(self) -> None:
        """Raise UserError if another process holds the lock, or may hold it, or the folder cannot be written."""
        self._soft.check_free()
        error = self._lock_file()
        if error in (errno.EAGAIN, errno.EACCES):
            raise _held(self._path.parent)
        if error in NO_LOCKS:
            self._path.unlink(missing_ok=True)
            folder = self._path.parent
            say(f"warning: {folder}: its file system has no locks; the file {SOFT_LOCK} keeps other runs out")
            self._soft.acquire()
        elif error is not None:
            raise UserError(f"{self._path.parent}: cannot be written: {os.strerror(error)}")

    def _lock_file(self) -> int | None:
        """Lock the file, made if it is missing. Returns the error number if that fails, otherwise None."""
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise UserError(f"{self._path.parent}: cannot be written: {error.strerror}") from None
            error_number = lock_descriptor(descriptor)
            if error_number is None and os.fstat(descriptor).st_nlink:
                self._descriptor = descriptor
                return None
            os.close(descriptor)
            if error_number is not None:
                return error_number  # otherwise its last holder deleted the file in the meantime: try again

    def release(self) -> None:
        """Release the lock and remove its file; without effect if it is not held."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
        if self._soft.is_locked:
            self._soft.release()

    def check_free(self) -> None:
        """Raise UserError if another process holds the lock. Leaves no trace."""
        if self._path.exists() and try_lock(self._path) not in (None, *NO_LOCKS):
            raise _held(self._path.parent)
        self._soft.check_free()


def _held(folder: Path, hint: str = "") -> UserError:
    return UserError(f"{folder}: another run is at work there; wait for its end, or take another --output_dir{hint}")


class SoftLock:
    """A lock file that names its process. One of a killed process is taken over on its host, and refused elsewhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_locked = False

    def acquire(self) -> None:
        """Raise UserError if another process holds it, or may hold it."""
        left = self.check_free()
        if left is not None:
            self._remove(left)
        try:
            with self.path.open("x", encoding="utf-8") as file:
                json.dump({"host": platform.node(), "pid": os.getpid(), "began": _began(os.getpid())}, file)
        except FileExistsError:
            raise _held(self.path.parent) from None
        except OSError as error:
            raise UserError(f"{self.path.parent}: cannot be written: {error.strerror}") from None
        self.is_locked = True

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        self.is_locked = False

    def check_free(self) -> bytes | None:
        """The content of a dead process's file, None if there is no file. Raises UserError as `acquire`."""
        try:
            written = self.path.read_bytes()
        except FileNotFoundError:
            return None
        host, pid, began = _holder(written)
        if host != platform.node():
            who = f"process {pid} on {host}" if host else "which it does not name"
            raise _held(self.path.parent, f"; if the one that has the lock, {who}, is no more, delete {self.path}")
        if psutil.pid_exists(pid) and _began(pid) == began:
            raise _held(self.path.parent)
        return written

    def _remove(self, left: bytes) -> None:
        """Remove the file, unless another process has just done so and made its own."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            raise _held(self.path.parent) from None
        if aside.read_bytes() != left:
            aside.rename(self.path)
            raise _held(self.path.parent)
        aside.unlink()


def _holder(written: bytes) -> tuple[str | None, int, Any]:
    """Host, process and its start time, read from a lock file; the host is None if the file does not say."""
    try:
        said = json.loads(written)
        return str(said["host"]), int(said["pid"]), said["began"]
    except (ValueError, KeyError, TypeError):  # killed while it wrote the file
        return None, 0, None


def _began(pid: int) -> str | None:
    """When a process began, in Linux's clock ticks, None if unknown: the system gives its number to others later."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]  # killed, but its parent has not waited for it
