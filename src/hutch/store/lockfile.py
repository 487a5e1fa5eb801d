"""One process at a time: a lock on a file, which the kernel drops when its holder ends, however it ends."""

import fcntl
import os
import signal
from pathlib import Path
from types import FrameType

from hutch.base.errors import InUse, StorageFull


class LockFile:
    """An exclusive lock. `acquire` raises `InUse` naming the holder's pid. Who inherits `fd` holds it as well."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self.fd = -1

    def acquire(self, *, patience_s: float = 0.0) -> None:
        """Take it. If the process that took it is gone, but children of it are still ending, wait for them for
        `patience_s` (main thread only)."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageFull(f"can't open {self._path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            if not patience_s or _is_alive(holder) or not _wait(fd, patience_s):
                os.close(fd)
                raise InUse(
                    f"{self._what} is in use by process {holder}; stop it with `hutch down`, or give this platform a "
                    f"data directory of its own with --data-dir"
                ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self.fd = fd

    def release(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _is_alive(pid: str) -> bool:
    """Whether a process runs; one that has ended and is not reaped yet does not."""
    try:
        text = Path(f"/proc/{int(pid)}/stat").read_text()
    except (OSError, ValueError):
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def _wait(fd: int, patience_s: float) -> bool:
    """Wait for the lock; whether we have it."""

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, patience_s)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return True
