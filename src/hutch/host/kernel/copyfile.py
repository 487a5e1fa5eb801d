"""A copy of a file that shares its blocks where the file system can do that."""

import fcntl
import os
from pathlib import Path

from hutch.host.kernel.sealed import data_extents

_FICLONE = 0x40049409


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to a new one (mode 0600): as a reflink if both are on a file system that has them, else without its
    holes. Blocks. Raises `OSError`; what was written by then is the caller's to remove."""
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if not _reflink(source_fd, target_fd):
                os.ftruncate(target_fd, os.fstat(source_fd).st_size)
                for start, end in data_extents(source_fd):
                    _copy_range(source_fd, target_fd, start, end)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def _reflink(source_fd: int, target_fd: int) -> bool:
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError:
        # Not on this file system, or not from one to the other: a copy does as well.
        return False
    return True


def _copy_range(source_fd: int, target_fd: int, start: int, end: int) -> None:
    while start < end:
        count = os.copy_file_range(source_fd, target_fd, end - start, start, start)
        if not count:
            return
        start += count
