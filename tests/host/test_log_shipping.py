"""Log shipping over real files: order, at least once, rotation, multi-line events, full buffers."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.base.units import MIB
from hutch.host.agent.logship import LogShipper
from hutch.host.agent.tasklogs import keep_logs, prune_logs, read_tail
from hutch.host.criformat import encode_lines
from hutch.host.kernel.inotify import FileWatcher
from hutch.host.logs.awslogs import AwslogsSink
from hutch.host.logs.lines import JoinedLines
from hutch.rules.awslogs import AwslogsOptions, LineJoiner, parse_options
from hutch.rules.logdrivers.options import Delivery
from hutch.wire.facts import LogEvent

T0_NS = 1_700_000_000_000_000_000


class Log:
    """A container's log file, a shipper for it, and what arrived."""

    def __init__(self, directory: Path, options: AwslogsOptions | None = None) -> None:
        self.path = directory / "logs" / "app.log"
        self.path.parent.mkdir(exist_ok=True)
        self.options = options or AwslogsOptions(group="/g")
        self.got: list[str] = []
        self.accepts = True
        self._news = asyncio.Condition()
        self._watcher = FileWatcher()
        self.shipper: LogShipper
        self.task: asyncio.Task[None]

    def start(self) -> None:
        delivery = Delivery(blocking=self.options.blocking, buffer_bytes=self.options.buffer_bytes)
        assembler = JoinedLines(LineJoiner(self.options.start))
        self.shipper = LogShipper(self.path, delivery, assembler, AwslogsSink(self._send), self._watcher)
        self.task = asyncio.create_task(self.shipper.run())

    def write(self, text: str) -> None:
        with self.path.open("ab") as f:
            f.write(encode_lines(T0_NS, 1, text.encode()))

    def rotate(self) -> None:
        os.replace(self.path, self.path.with_name("app.log.1"))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(holds)

    async def crash(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def finish(self) -> None:
        self.shipper.end()
        async with asyncio.timeout(20):
            await self.task

    async def _send(self, events: tuple[LogEvent, ...]) -> str:
        if not self.accepts:
            await asyncio.Event().wait()
        self.got += [e.message for e in events]
        async with self._news:
            self._news.notify_all()
        return ""


async def test_lines_arrive_as_they_are_written_and_the_last_ones_at_the_end(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.start()
    log.write("one\n")
    await log.until(lambda: log.got == ["one"])
    log.write("two\nthree, ")
    log.write("in pieces\n")
    await log.finish()
    assert log.got == ["one", "two", "three, in pieces"]


async def test_what_was_acknowledged_is_not_sent_again(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.start()
    log.write("one\n")
    await log.until(lambda: log.got == ["one"])
    log.accepts = False
    log.write("two\n")
    await log.crash()
    log.accepts = True
    log.start()
    await log.finish()
    assert log.got in (["one", "two"], ["one", "one", "two"])
    log.start()
    await log.finish()
    assert log.got[-1] == "two" and log.got.count("two") == 1


async def test_an_event_that_was_not_complete_survives_a_crash(tmp_path: Path) -> None:
    options = parse_options({"awslogs-group": "/g", "awslogs-multiline-pattern": "^ERROR"})
    log = Log(tmp_path, options)
    log.start()
    log.write("ERROR first\n  at a\nERROR second\n")
    await log.until(lambda: log.got == ["ERROR first\n  at a"])
    await log.crash()
    log.write("  at b\n")
    log.start()
    await log.finish()
    assert log.got[-1] == "ERROR second\n  at b"


async def test_rotation_loses_nothing(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write("old\n")
    log.start()
    await log.until(lambda: log.got == ["old"])
    log.write("last of the old\n")
    log.rotate()
    log.write("new\n")
    await log.finish()
    assert log.got == ["old", "last of the old", "new"]


async def test_rotation_while_no_agent_was_there(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write("a\n")
    log.start()
    await log.until(lambda: log.got == ["a"])
    await log.crash()
    log.write("b\n")
    log.rotate()
    log.write("c\n")
    log.start()
    await log.finish()
    assert log.got[-2:] == ["b", "c"]


@pytest.mark.parametrize("blocking", [False, True])
async def test_beyond_the_buffer_the_oldest_goes_unless_blocking(tmp_path: Path, blocking: bool) -> None:
    log = Log(tmp_path, AwslogsOptions(group="/g", blocking=blocking, buffer_bytes=4096))
    log.write("".join(f"line {n}\n" for n in range(1000)))
    log.start()
    await log.finish()
    assert log.got[-1] == "line 999"
    assert (len(log.got) == 1000) == blocking
    assert (log.shipper.dropped_bytes > 0) != blocking


async def test_damaged_records_are_passed_over(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write("before\n")
    with log.path.open("ab") as f:
        f.write(b"\x00\xff rubbish\n" + b"x" * (2 * MIB) + b"\n")
    log.write("after\n")
    log.start()
    await log.finish()
    assert log.got == ["before", "after"]


async def test_one_inotify_instance_for_any_number_of_directories(tmp_path: Path) -> None:
    watcher = FileWatcher()
    watches = []
    for n in range(300):
        (tmp_path / str(n)).mkdir()
        watches.append(watcher.watch(tmp_path / str(n)))
    twice = watcher.watch(tmp_path / "7")
    (tmp_path / "7" / "file").touch()
    async with asyncio.timeout(20):
        await watches[7].changed.wait()
        await twice.changed.wait()
    assert [n for n, w in enumerate(watches) if w.changed.is_set()] == [7]
    watches[7].close()
    watches[7].close()
    twice.changed.clear()
    (tmp_path / "7" / "other").touch()
    async with asyncio.timeout(20):
        await twice.changed.wait()
    watcher.close()


def test_kept_logs_are_readable_and_pruned_by_age(tmp_path: Path) -> None:
    task, kept = tmp_path / "tasks" / "t1", tmp_path / "kept"
    (task / "logs").mkdir(parents=True)
    (task / "logs" / "app.log").write_bytes(
        encode_lines(T0_NS, 1, b"one\ntw") + encode_lines(T0_NS, 2, b"err\n") + encode_lines(T0_NS, 1, b"o\n")
    )
    keep_logs(task, kept)
    assert not task.exists()
    lines = read_tail(kept / "t1" / "app.log", 10)
    assert [(x["stream"], x["text"]) for x in lines] == [
        ("stdout", "one"),
        ("stdout", "two"),
        ("stderr", "err"),
    ]
    now = (kept / "t1" / "app.log").stat().st_mtime
    prune_logs(kept, now + 3600)
    assert (kept / "t1").exists()
    prune_logs(kept, now + 30 * 24 * 3600)
    assert not (kept / "t1").exists()
