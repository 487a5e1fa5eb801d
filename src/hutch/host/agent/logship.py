"""Ships a container's log file to a back end, at least once, without ever holding up the container.

The file is the buffer: what is not acknowledged yet is read again after a restart (the position is kept beside
the file). A log driver in non-blocking mode skips the oldest of what waits beyond its buffer size. All that is dropped is
counted: skipped, rotated away unread, or refused by the back end.
"""

import asyncio
from pathlib import Path

import msgspec

from hutch.base.log import get_logger
from hutch.base.threads import in_thread
from hutch.host.images.archives import write_atomically
from hutch.host.kernel.inotify import DirectoryWatch, FileWatcher
from hutch.host.logs.contract import LogEntry, LogSink
from hutch.host.logs.lines import Assembler, RecordReader
from hutch.host.logs.tail import LogTail
from hutch.rules.logdrivers.options import Delivery

log = get_logger(__name__)

MAX_BATCH_ENTRIES = 1000
MAX_RECORD_BYTES = 64 * 1024
ENTRY_OVERHEAD_BYTES = 26
QUIET_S = 1.0
"""A multi-line event is complete after this much silence."""


class _Position(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a file was shipped: everything before `offset` is durable elsewhere, or counted as dropped."""

    inode: int
    offset: int
    dropped: int = 0


class ShippingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a container's shipping is. `problem` says why nothing gets through; "" while it does."""

    waiting_bytes: int
    dropped_bytes: int
    problem: str = ""


class LogShipper:
    """One container's log."""

    def __init__(
        self, path: Path, delivery: Delivery, assembler: Assembler, sink: LogSink, watcher: FileWatcher
    ) -> None:
        """The sink is closed with the shipper."""
        self._path = path
        self._delivery = delivery
        self._sink = sink
        self._watcher = watcher
        self._position_path = path.with_suffix(".shipped")
        self._tail = LogTail(path)
        self._reader = RecordReader(assembler)
        self._ended = asyncio.Event()
        self._refused = ""
        self._dropped = 0
        self._moves = 0
        self._in_flight = 0
        """Bytes of the file that were read and are not acknowledged."""

    @property
    def stuck(self) -> asyncio.Event:
        """Set while the back end takes nothing."""
        return self._sink.stuck

    @property
    def dropped_bytes(self) -> int:
        """Bytes of the file that the back end will never get."""
        return self._dropped + self._tail.lost_bytes

    def status(self) -> ShippingStatus:
        """What waits and what was dropped, until now. In non-blocking mode what is beyond the buffer counts as dropped
        already: it will be when the back end takes something again."""
        self._tail.refresh()
        waiting = self._tail.waiting_bytes()
        beyond = 0 if self._delivery.blocking else max(0, waiting - self._delivery.buffer_bytes)
        return ShippingStatus(
            waiting_bytes=waiting - beyond + self._in_flight,
            dropped_bytes=self.dropped_bytes + beyond,
            problem=self._sink.problem or self._refused,
        )

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
                if await self._ship_what_is_there(watch):
                    continue
                if ended:
                    await self._flush(watch)
                    return
                await self._wait(watch)
        finally:
            watch.close()
            self._tail.close()
            await self._sink.close()

    async def _wait(self, watch: DirectoryWatch) -> None:
        waits = [asyncio.ensure_future(watch.changed.wait()), asyncio.ensure_future(self._ended.wait())]
        timeout_s = QUIET_S if self._reader.is_waiting else None
        try:
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not done:
            await self._flush(watch)

    async def _flush(self, watch: DirectoryWatch) -> None:
        """Send the event that is under way; with it everything that was read is out."""
        entries = self._reader.flush()
        await self._deliver(entries, watch)
        if entries and self._tail.is_open:
            await self._keep_position()

    async def _ship_what_is_there(self, watch: DirectoryWatch) -> bool:
        """Ship a batch; whether anything was there."""
        if not self._tail.is_open and not self._open():
            return False
        self._skip_beyond_buffer()
        entries: list[LogEntry] = []
        size, read = 0, False
        while size < self._sink.max_batch_bytes and len(entries) < MAX_BATCH_ENTRIES:
            record = self._tail.read(MAX_RECORD_BYTES)
            if self._tail.moves != self._moves:
                self._moves = self._tail.moves
                self._reader.moved()
            if record is None:
                break
            read = True
            at, line = record
            self._in_flight += len(line)
            for entry in self._reader.take(at, line.rstrip(b"\n")):
                entries.append(entry)
                size += len(entry.text) + ENTRY_OVERHEAD_BYTES
        if read:
            await self._deliver(entries, watch)
            self._in_flight = 0
            await self._keep_position()
        return read

    async def _keep_position(self) -> None:
        inode, offset = self._tail.place()
        held = self._reader.held_from
        position = _Position(inode=inode, offset=offset if held is None else held, dropped=self.dropped_bytes)
        # Waited for in any case: a write that ends after our successor's would take its position back.
        await in_thread(write_atomically, self._position_path, msgspec.json.encode(position))

    def _open(self) -> bool:
        """Find the place where shipping stopped."""
        known = _Position(inode=0, offset=0)
        try:
            known = msgspec.json.decode(self._position_path.read_bytes(), type=_Position)
        except FileNotFoundError:
            pass
        except msgspec.DecodeError as error:
            log.warning(
                "log position unreadable, shipping from the start", file=str(self._path), reason=str(error)
            )
        if not self._tail.open(known.inode, known.offset):
            return False
        self._dropped = known.dropped
        return True

    def _skip_beyond_buffer(self) -> None:
        if self._delivery.blocking:
            return
        skipped = self._tail.skip(self._delivery.buffer_bytes, MAX_RECORD_BYTES)
        if skipped:
            self._dropped += skipped
            log.warning(
                "log driver buffer full, oldest output dropped",
                file=str(self._path),
                bytes=self.dropped_bytes,
            )

    async def _deliver(self, entries: list[LogEntry], watch: DirectoryWatch) -> None:
        """Hand entries over, however long it takes; what goes unread meanwhile is counted."""
        if not entries:
            return
        sending = asyncio.ensure_future(self._sink.send(tuple(entries)))
        try:
            while not sending.done():
                watch.changed.clear()
                changed = asyncio.ensure_future(watch.changed.wait())
                await asyncio.wait({sending, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._tail.refresh()
            error = sending.result()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if error:
            self._dropped += sum(len(e.text.encode("utf-8", "replace")) for e in entries)
        if error and error != self._refused:
            log.warning("log events refused", file=str(self._path), reason=error)
        self._refused = error
