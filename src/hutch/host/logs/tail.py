"""Reads a container's log file as it grows, through its rotations; knows how much waits, and what was lost unread.

A full file becomes `<name>.1`, and the one of that name before it goes. While nobody reads (a back end that hangs),
`refresh` is to be called now and then, so that what goes unread is counted.
"""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

import msgspec


class _Piece(msgspec.Struct):
    """A file that is newer than the one being read."""

    inode: int
    size: int


class LogTail:
    """One container's files, oldest first. Blocking, on files of the host's own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._older = path.with_name(path.name + ".1")
        self._file: BinaryIO | None = None
        self._newer: list[_Piece] = []
        self._left: int | None = None
        self.lost_bytes = 0
        """Rotated away before they were read."""
        self.moves = 0
        """How often reading went on to another file."""

    def open(self, inode: int, offset: int) -> bool:
        """Begin at a place, or, if that file is gone (or `inode` is 0), with the oldest that is there. Whether there is
        one."""
        found: dict[int, BinaryIO] = {}
        for path in (self._path, self._older):
            with contextlib.suppress(FileNotFoundError):
                file = path.open("rb")
                if found.setdefault(_inode(file), file) is not file:
                    file.close()
        order = list(reversed(found))
        if not order:
            return False
        first = inode if inode in found else order[0]
        self._file = found[first]
        if first == inode:
            self._file.seek(offset)
        for other in order[: order.index(first)]:
            found[other].close()
        for newer in order[order.index(first) + 1 :]:
            self._newer.append(_Piece(newer, os.fstat(found[newer].fileno()).st_size))
            found[newer].close()
        return True

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def place(self) -> tuple[int, int]:
        """(inode, offset) of what comes next. Only when open."""
        assert self._file is not None
        return _inode(self._file), self._file.tell()

    def refresh(self) -> None:
        """See which files there are now, and count those that went unread."""
        if self._file is None:
            return
        try:
            current = os.stat(self._path)
        except FileNotFoundError:
            return
        last = self._newer[-1] if self._newer else None
        if last is None and current.st_ino == _inode(self._file):
            return
        if last is not None and last.inode == current.st_ino and last.size <= current.st_size:
            last.size = current.st_size
            return
        with contextlib.suppress(FileNotFoundError):
            older = os.stat(self._older)
            if last is not None and last.inode == older.st_ino:
                last.size = older.st_size
            elif older.st_ino != _inode(self._file):
                self._newer.append(_Piece(older.st_ino, older.st_size))
        self._newer.append(_Piece(current.st_ino, current.st_size))
        kept = self._newer[-2:]
        self.lost_bytes += sum(p.size for p in self._newer[:-2])
        if len(kept) == 2 and not self._is_older(kept[0]):
            self.lost_bytes += kept.pop(0).size
        self._newer = kept

    def _is_older(self, piece: _Piece) -> bool:
        try:
            return os.stat(self._older).st_ino == piece.inode
        except FileNotFoundError:
            return False

    def waiting_bytes(self) -> int:
        """How much there is to be read, in the file's own format; after `close`, how much was left."""
        if self._left is not None:
            return self._left
        if self._file is None:
            return sum(_size(p) for p in (self._older, self._path))
        size = os.fstat(self._file.fileno()).st_size
        return max(0, size - self._file.tell()) + sum(p.size for p in self._newer)

    def read(self, limit: int) -> tuple[int, bytes] | None:
        """(where it begins in its file, the next record with its line feed); one longer than `limit` comes in pieces.
        None: there is none now. Only when open."""
        while True:
            file = self._file
            assert file is not None
            at = file.tell()
            line = file.readline(limit)
            if line.endswith(b"\n") or len(line) >= limit:
                return at, line
            # A record that is not complete; or a writer that was killed has cut the file.
            size = os.fstat(file.fileno()).st_size
            file.seek(min(at, size))
            self.refresh()
            if not self._newer:
                return None
            # What was written between our look and the rename comes first.
            if b"\n" not in os.pread(file.fileno(), limit, file.tell()) and not self._advance():
                return None

    def _advance(self) -> bool:
        """Go on with the next file that is still there."""
        while self._newer:
            piece = self._newer.pop(0)
            for path in (self._older, self._path):
                with contextlib.suppress(FileNotFoundError):
                    file = path.open("rb")
                    if _inode(file) == piece.inode:
                        assert self._file is not None
                        self._file.close()
                        self._file = file
                        self.moves += 1
                        return True
                    file.close()
            self.lost_bytes += piece.size
        return False

    def skip(self, limit_bytes: int, record_limit: int) -> int:
        """Pass over the oldest, so that no more than `limit_bytes` wait; how many bytes that were."""
        passed = 0
        while (excess := self.waiting_bytes() - limit_bytes) > 0:
            assert self._file is not None
            rest = os.fstat(self._file.fileno()).st_size - self._file.tell()
            if self._newer and rest <= excess:
                passed += rest
                if not self._advance():
                    break
                continue
            before = self._file.tell()
            self._file.seek(before + excess)
            self._file.readline(record_limit)
            passed += self._file.tell() - before
        return passed

    def close(self) -> None:
        """Close the file; also when called twice."""
        self._left = self.waiting_bytes()
        if self._file is not None:
            self._file.close()
            self._file = None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino
