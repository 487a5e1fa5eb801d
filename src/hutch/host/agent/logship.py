"""Ships a container's log file to CloudWatch Logs, at least once, without ever holding up the container.

The file is the buffer: what is not acknowledged yet is read again after a restart (the position is kept beside
the file). A log driver in non-blocking mode skips the oldest of what waits beyond its buffer size, and counts it.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from hutch.base.log import get_logger
from hutch.host.criformat import parse_line
from hutch.host.images.archives import write_atomically
from hutch.host.kernel.inotify import DirectoryWatch, FileWatcher
from hutch.rules.awslogs import AwslogsOptions, LineJoiner
from hutch.wire.fleet import LogEvent

log = get_logger(__name__)

MAX_BATCH_EVENTS = 1000
MAX_BATCH_BYTES = 900_000
MAX_RECORD_BYTES = 64 * 1024
MAX_LINE_BYTES = 256 * 1024
QUIET_S = 1.0
"""A multi-line event is complete after this much silence."""

Send = Callable[[tuple[LogEvent, ...]], Awaitable[str]]


class _Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far a file was shipped: everything before `offset` is durable elsewhere."""

    inode: int
    offset: int


class LogShipper:
    """One container's log. `send` returns when a batch is durable; with an error text if it never will be."""

    def __init__(self, path: Path, options: AwslogsOptions, send: Send, watcher: FileWatcher) -> None:
        self._path = path
        self._options = options
        self._send = send
        self._watcher = watcher
        self._position_path = path.with_suffix(".shipped")
        self._joiner = LineJoiner(options.start)
        self._partial: dict[str, list[bytes]] = {}
        self._held_from: int | None = None
        """Where the oldest record begins that is read but part of no finished event yet."""
        self._ended = asyncio.Event()
        self._file: BinaryIO | None = None
        self._refused = ""
        self.dropped_bytes = 0

    def end(self) -> None:
        """The container has ended: `run` returns when all was shipped."""
        self._ended.set()

    async def run(self) -> None:
        """Ship until `end` was called and nothing is left."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        watch = self._watcher.watch(self._path.parent)
        try:
            while True:
                watch.changed.clear()
                ended = self._ended.is_set()
                if await self._ship_what_is_there():
                    continue
                if ended:
                    await self._flush()
                    return
                await self._wait(watch)
        finally:
            watch.close()
            if self._file is not None:
                self._file.close()

    async def _wait(self, watch: DirectoryWatch) -> None:
        waits = [asyncio.ensure_future(watch.changed.wait()), asyncio.ensure_future(self._ended.wait())]
        timeout_s = QUIET_S if self._joiner.is_waiting else None
        try:
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not done:
            await self._flush()

    async def _flush(self) -> None:
        """Send the event that is under way; with it everything that was read is out."""
        events = [LogEvent(timestamp_ms=t, message=m) for t, m in self._joiner.flush()]
        await self._deliver(events)
        if events and self._file is not None:
            if not any(self._partial.values()):
                self._held_from = None
            await self._keep_position(self._file)

    async def _ship_what_is_there(self) -> bool:
        """Ship a batch; whether anything was there."""
        file = self._open()
        if file is None:
            return False
        self._skip_beyond_buffer(file)
        events: list[LogEvent] = []
        size, start = 0, file.tell()
        while size < MAX_BATCH_BYTES and len(events) < MAX_BATCH_EVENTS:
            at = file.tell()
            line = file.readline(MAX_RECORD_BYTES)
            if not line.endswith(b"\n") and len(line) < MAX_RECORD_BYTES:
                file.seek(at)
                break
            for timestamp_ms, message in self._take(at, line.rstrip(b"\n")):
                events.append(LogEvent(timestamp_ms=timestamp_ms, message=message))
                size += len(message) + 26
        if file.tell() == start:
            return self._rotated(file)
        await self._deliver(events)
        await self._keep_position(file)
        return True

    async def _keep_position(self, file: BinaryIO) -> None:
        offset = file.tell() if self._held_from is None else self._held_from
        position = _Position(inode=os.fstat(file.fileno()).st_ino, offset=offset)
        writing = asyncio.ensure_future(
            asyncio.to_thread(write_atomically, self._position_path, msgspec.json.encode(position))
        )
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread can't be stopped; a write that ends after our successor's would take its position back.
            await writing
            raise

    def _open(self) -> BinaryIO | None:
        """The file to read on, at the place where shipping stopped."""
        if self._file is not None:
            return self._file
        known: _Position | None = None
        try:
            known = msgspec.json.decode(self._position_path.read_bytes(), type=_Position)
        except FileNotFoundError:
            pass
        except msgspec.DecodeError as error:
            log.warning(
                "log position unreadable, shipping from the start", file=str(self._path), reason=str(error)
            )
        for path in (self._path.with_name(self._path.name + ".1"), self._path):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            inode = os.fstat(file.fileno()).st_ino
            if known is None or inode == known.inode or path == self._path:
                if known is not None and inode == known.inode:
                    file.seek(known.offset)
                self._file = file
                return file
            file.close()
        return None

    def _rotated(self, file: BinaryIO) -> bool:
        """At the end of a file: go on with the new one if it was rotated away. Whether there is more to read."""
        try:
            current = self._path.stat().st_ino
        except FileNotFoundError:
            return False
        opened = os.fstat(file.fileno())
        if current == opened.st_ino:
            return False
        rest = os.pread(file.fileno(), MAX_RECORD_BYTES, file.tell())
        if b"\n" in rest:
            # Written between our last look and the rename.
            return True
        file.close()
        self._file = self._path.open("rb")
        self._held_from = 0 if self._held_from is not None else None
        return True

    def _skip_beyond_buffer(self, file: BinaryIO) -> None:
        if self._options.blocking:
            return
        waiting = os.fstat(file.fileno()).st_size - file.tell()
        if waiting > self._options.buffer_bytes:
            file.seek(waiting - self._options.buffer_bytes, os.SEEK_CUR)
            file.readline(MAX_RECORD_BYTES)
            self.dropped_bytes += waiting - self._options.buffer_bytes
            log.warning(
                "log driver buffer full, oldest output dropped",
                file=str(self._path),
                bytes=self.dropped_bytes,
            )

    def _take(self, at: int, record: bytes) -> list[tuple[int, str]]:
        """The events that a record, which begins at this place of the file, completes."""
        line = parse_line(record)
        if line is None:
            return []
        parts = self._partial.setdefault(line.stream, [])
        parts.append(line.text)
        if self._held_from is None:
            self._held_from = at
        if line.partial and sum(map(len, parts)) < MAX_LINE_BYTES:
            return []
        text = b"".join(parts).decode("utf-8", "replace")
        parts.clear()
        events = self._joiner.feed(line.time_ns // 1_000_000, text)
        if not any(self._partial.values()):
            # A joiner that still waits holds at most what began with this very record.
            self._held_from = (
                (at if events or self._held_from is None else self._held_from)
                if (self._joiner.is_waiting)
                else None
            )
        return events

    async def _deliver(self, events: list[LogEvent]) -> None:
        if not events:
            return
        error = await self._send(tuple(events))
        if error and error != self._refused:
            self._refused = error
            log.warning("log events refused", file=str(self._path), reason=error)
