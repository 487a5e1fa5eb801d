"""Files in memory that nobody can write to once they are sealed, and copies of files with holes."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_CHUNK_BYTES = 1024 * 1024
_GRAIN_BYTES = 16 * 1024


def open_memory_file(name: str, content: bytes = b"", *, size: int = 0) -> int:
    """A new file in memory (close-on-exec): with this content, or of this size, all zeros. The caller closes it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if content:
            os.pwrite(fd, content, 0)
        if size:
            os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """From now on the file can't be changed by anybody, through any descriptor or mapping; private copies of its pages
    can. Raises `OSError` (EBUSY) while somebody has it mapped for writing."""
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
    )


def copy_sparse(source_fd: int, target: Path | int) -> None:
    """Copy a file; blocks of zeros become holes. `target` is a descriptor of an empty file of the right size, or the
    path of a file to be made (mode 0600) and synced. Blocks for some 0.1 s per 100 MiB: call it in a thread."""
    if isinstance(target, int):
        _copy_data(source_fd, target)
        return
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, os.fstat(source_fd).st_size)
        _copy_data(source_fd, fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy_data(source_fd: int, target_fd: int) -> None:
    zeros = bytes(_GRAIN_BYTES)
    for start, end in data_extents(source_fd):
        for at in range(start, end, _CHUNK_BYTES):
            data = memoryview(os.pread(source_fd, min(_CHUNK_BYTES, end - at), at))
            for offset in range(0, len(data), _GRAIN_BYTES):
                grain = data[offset : offset + _GRAIN_BYTES]
                if grain != zeros[: len(grain)]:
                    _write_all(target_fd, grain, at + offset)


def _write_all(fd: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


def data_extents(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are not holes: (first byte, byte after the last)."""
    end = 0
    with contextlib.suppress(_NoMoreData):
        while True:
            start = _seek(fd, end, os.SEEK_DATA)
            end = _seek(fd, start, os.SEEK_HOLE)
            yield start, end


class _NoMoreData(Exception):
    """Only a hole follows."""


def _seek(fd: int, at: int, whence: int) -> int:
    try:
        return os.lseek(fd, at, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _NoMoreData from None
        raise
