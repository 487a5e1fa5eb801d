"""One process at a time: a lock on a file, which the kernel drops when its holder ends, however it ends."""

import fcntl
import os
from pathlib import Path

from hutch.base.errors import InUse, StorageFull


class LockFile:
    """An exclusive lock. `acquire` raises `InUse` naming the holder's pid."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._fd = -1

    def acquire(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageFull(f"can't open {self._path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise InUse(
                f"{self._what} is in use by process {holder}; stop it with `hutch down`, or give this platform a "
                f"data directory of its own with --data-dir"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
