"""A lock where the file system has none (NFS, some clusters): a file that says which process holds it, and where."""

import errno
import json
import os
import platform
import secrets
from pathlib import Path
from typing import Any

import psutil

from src.config.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # what `flock` says of such a file system


class SoftLock:
    """A lock file that names its process. A killed process's lock is taken over on its computer, refused elsewhere."""

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
            raise self._held() from None
        except OSError as error:
            raise UserError(f"{self.path.parent}: cannot be written: {error.strerror}") from None
        self.is_locked = True

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        self.is_locked = False

    def check_free(self) -> bytes | None:
        """What a process that is no more has left in the file, None if there is none. Raises as `acquire`."""
        try:
            written = self.path.read_bytes()
        except FileNotFoundError:
            return None
        host, pid, began = _holder(written)
        if host != platform.node():
            who = f"process {pid} on {host}" if host else "which it does not name"
            raise self._held(f"; if the one that has the lock, {who}, is no more, delete {self.path}")
        if psutil.pid_exists(pid) and _began(pid) == began:
            raise self._held()
        return written

    def _held(self, hint: str = "") -> UserError:
        return UserError(
            f"{self.path.parent}: another run is at work there; wait for its end, or take another --output_dir{hint}"
        )

    def _remove(self, left: bytes) -> None:
        """Remove the file, unless another process has just done so and made its own."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            raise self._held() from None
        if aside.read_bytes() != left:
            aside.rename(self.path)
            raise self._held()
        aside.unlink()


def _holder(written: bytes) -> tuple[str | None, int, Any]:
    """Host, process and its beginning, by what the file says; no host if it says nothing of the kind."""
    try:
        said = json.loads(written)
        return str(said["host"]), int(said["pid"]), said["began"]
    except (ValueError, KeyError, TypeError):  # killed while it was written
        return None, 0, None


def _began(pid: int) -> str | None:
    """When a process began, as Linux counts it, since other processes get the numbers of those that have ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]  # killed, and nobody has asked after it
