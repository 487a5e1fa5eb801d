"""All log files of one sandbox: takes log frames by container number, says what may be acknowledged."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from hutch.base.log import get_logger
from hutch.host.guestlink.logfile import LogFile
from hutch.rules.logdrivers.files import HOST_BOUNDS, FileBounds
from hutch.wire.guest import LogRecord

log = get_logger(__name__)


class SandboxLogs:
    """Writes below `directory` (made if missing, mode 0700). Verbs are called from one event loop; the disk
    is touched in a thread, one batch at a time, so a slow disk holds back the guest and not the loop."""

    def __init__(
        self, directory: Path, *, bounds: Mapping[str, FileBounds] | None = None, knows_all: bool = True
    ) -> None:
        """`bounds`: by container name, of those whose files are not as large as the host's own.

        Without `knows_all` there may be starts that are yet to be registered: what comes from others is then neither
        written nor acknowledged, until `register_last` and another greeting, after which the guest sends it again."""
        self._knows_all = knows_all
        self._passed_over: dict[int, int] = {}
        """By number, the first record that was neither written nor acknowledged: until it comes again, what follows must
        not be either, or the guest would forget what is missing."""
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._bounds = bounds or {}
        self._names: dict[int, str] = {}
        self._files: dict[str, LogFile] = {}
        self._busy = asyncio.Lock()
        self._done: dict[int, int] = {}
        self._progress = asyncio.Condition()
        self.unknown_frames = 0

    def register(self, number: int, name: str, *, written: int = 0) -> None:
        """From now on frames of `number` belong to container `name` (already checked to be a plain file
        name). Records up to `written` are on the disk, by an earlier agent."""
        self._names[number] = name
        self._done[number] = max(written, self._done.get(number, 0))

    async def write(self, batch: Sequence[tuple[int, LogRecord]]) -> dict[int, int]:
        """Write records, in order; for each number the highest sequence number that is done with.

        Frames of numbers that were never registered are counted and acknowledged, so that the guest forgets
        them.
        """
        by_number: dict[int, list[LogRecord]] = {}
        for number, record in batch:
            if self._is_to_come_again(number, record.seq):
                continue
            by_number.setdefault(number, []).append(record)
        for number in [n for n in by_number if n not in self._names]:
            self.unknown_frames += len(by_number[number])
        known = {n: records for n, records in by_number.items() if n in self._names}
        async with self._busy:
            await asyncio.to_thread(self._append, known)
        done = {number: max(r.seq for r in records) for number, records in by_number.items()}
        async with self._progress:
            self._done.update({n: max(seq, self._done.get(n, 0)) for n, seq in done.items() if n in known})
            self._progress.notify_all()
        return done

    def _is_to_come_again(self, number: int, seq: int) -> bool:
        first = self._passed_over.get(number)
        if number not in self._names and not self._knows_all:
            self._passed_over[number] = seq if first is None else min(first, seq)
            return True
        if first is None or seq <= first:
            self._passed_over.pop(number, None)
            return False
        return True

    def register_last(self) -> None:
        """All starts are registered. The guest is to be greeted now, and `greeted` to be called then."""
        self._knows_all = True

    def greeted(self) -> None:
        """The guest has sent again what it still had."""
        self._passed_over.clear()

    async def wait_written(self, number: int, seq: int) -> None:
        """Return when the records of a start up to `seq` have been dealt with."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._done.get(number, 0) >= seq)

    async def end_lines(self, number: int, time_ns: int) -> None:
        """The process of this start has ended: complete the lines that it left unfinished."""
        name = self._names.get(number)
        if name in self._files:
            async with self._busy:
                await asyncio.to_thread(self._files[name].end_lines, number, time_ns)

    def _append(self, by_number: dict[int, list[LogRecord]]) -> None:
        for number, records in sorted(by_number.items()):
            file = self._file(self._names[number])
            if file is None:
                continue
            lost = file.lost_bytes
            file.append(number, records)
            if file.lost_bytes > lost:
                log.warning(
                    "container output lost: its log file can't be written",
                    container=self._names[number],
                    directory=str(self._directory),
                    lost_bytes=file.lost_bytes,
                )

    def _file(self, name: str) -> LogFile | None:
        if name not in self._files:
            try:
                self._files[name] = LogFile(
                    self._directory / f"{name}.log", bounds=self._bounds.get(name, HOST_BOUNDS)
                )
            except OSError as error:
                log.warning("container log can't be opened", container=name, reason=str(error))
                return None
        return self._files[name]

    async def close(self) -> None:
        """Close the files, after the batch that is being written."""
        async with self._busy:
            for file in self._files.values():
                file.close()
            self._files.clear()
