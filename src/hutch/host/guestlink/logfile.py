"""A container's output on the host's disk: a CRI log file of bounded size that takes every record exactly
once.

Beside `<name>.log` lies `<name>.log.at`, which says how far the file is good and which record was the last.
A writer that was killed half way leaves bytes beyond that mark; they are cut off, and the guest, which never
got the acknowledgement, sends those records again. A file that has reached its limit becomes `<name>.log.1`,
that one `.2` and so on; the oldest goes.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from hutch.host.criformat import encode_lines, end_of_line
from hutch.rules.logdrivers.files import HOST_BOUNDS, FileBounds
from hutch.wire.guest import LogRecord

_MARK = struct.Struct(">4sQQIQB")
_MAGIC = b"hlm1"
_STREAMS = (1, 2)
_REMEMBERED_NUMBERS = 8


class LogFile:
    """The file of one container, through all its restarts. Blocking; one thread at a time."""

    def __init__(self, path: Path, *, bounds: FileBounds = HOST_BOUNDS) -> None:
        """Opens or makes the file (mode 0600) and cuts off what was not completed. Raises `OSError`."""
        self._path = path
        self._bounds = bounds
        self._mark_fd = os.open(f"{path}.at", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._fd = -1
        self.lost_bytes = 0
        self._unreported_bytes = 0
        self._last: dict[int, int] = {}
        self._number = 0
        self._open_lines = 0
        try:
            self._open_log()
            self._resume()
            os.posix_fallocate(self._mark_fd, 0, _MARK.size + 4)
        except OSError:
            self.close()
            raise

    def _open_log(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)
        status = os.fstat(self._fd)
        self._inode, self._size = status.st_ino, status.st_size

    def _resume(self) -> None:
        raw = os.pread(self._mark_fd, _MARK.size + 4, 0)
        if len(raw) < _MARK.size + 4 or zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "big"):
            return
        magic, inode, size, number, seq, open_lines = _MARK.unpack(raw[:-4])
        if magic != _MAGIC:
            return
        # Another inode: the file was rotated, and what the new one holds was never marked.
        good = size if inode == self._inode else 0
        if self._size > good:
            os.ftruncate(self._fd, good)
            self._size = good
        self._number, self._open_lines = number, open_lines
        self._last[number] = seq

    def append(self, number: int, records: Sequence[LogRecord]) -> None:
        """Write the records of one start of the container that are new. Never raises for a full or broken
        disk: output that can't be kept is counted as lost, so that the container does not hang because of
        it."""
        new: list[LogRecord] = []
        for record in records:
            if record.seq > self._last.get(number, 0):
                self._last[number] = record.seq
                new.append(record)
        if not new:
            return
        data = b""
        if number > self._number:
            data = self._ends_of_open_lines(new[0].time_ns)
            self._number = number
            self._forget_old_numbers()
        for record in new:
            data += encode_lines(record.time_ns, record.stream, record.data)
            if record.data:
                bit = 1 << record.stream
                whole = record.data.endswith(b"\n")
                self._open_lines = self._open_lines & ~bit if whole else self._open_lines | bit
        self._write(data, new[-1].time_ns)

    def end_lines(self, number: int, time_ns: int) -> None:
        """The container's process has ended: lines that it left unfinished are complete as they are."""
        if number == self._number and self._open_lines:
            self._write(self._ends_of_open_lines(time_ns), time_ns)

    def _ends_of_open_lines(self, time_ns: int) -> bytes:
        streams = [s for s in _STREAMS if self._open_lines & 1 << s]
        self._open_lines = 0
        return b"".join(end_of_line(time_ns, s) for s in streams)

    def _forget_old_numbers(self) -> None:
        while len(self._last) > _REMEMBERED_NUMBERS:
            del self._last[min(self._last)]

    def _write(self, data: bytes, time_ns: int) -> None:
        if self._unreported_bytes:
            note = b"hutch: %d bytes of output are lost: the host could not write its log file\n"
            data = encode_lines(time_ns, 2, note % self._unreported_bytes) + data
        try:
            if self._size and self._size + len(data) > self._bounds.max_bytes:
                self._rotate()
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._size += len(data)
            self._unreported_bytes = 0
        except OSError:
            self.lost_bytes += len(data)
            self._unreported_bytes += len(data)
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
        self._commit()

    def _rotate(self) -> None:
        full = self._fd
        for number in range(self._bounds.files - 2, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")
        try:
            self._open_log()
        except OSError:
            os.replace(f"{self._path}.1", self._path)
            raise
        os.close(full)
        if self._bounds.files == 1:
            os.unlink(f"{self._path}.1")

    def _commit(self) -> None:
        seq = self._last.get(self._number, 0)
        raw = _MARK.pack(_MAGIC, self._inode, self._size, self._number, seq, self._open_lines)
        # 37 bytes that exist already: this needs no room on the disk. If it fails all the same, the worst
        # that can happen is that a killed agent's successor cuts off, and then gets again, more than it had
        # to.
        with contextlib.suppress(OSError):
            os.pwrite(self._mark_fd, raw + zlib.crc32(raw).to_bytes(4, "big"), 0)

    def close(self) -> None:
        """Close the files; the marks stay for the next writer."""
        for fd in (self._fd, self._mark_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._mark_fd = -1
