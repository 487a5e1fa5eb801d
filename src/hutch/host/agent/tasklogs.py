"""The log shippers of one task, and what stays of its logs on the host when the task is forgotten."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.base.units import GIB, MIB
from hutch.host.agent.logship import LogShipper
from hutch.host.criformat import parse_line
from hutch.host.kernel.inotify import FileWatcher
from hutch.rules.awslogs import parse_options
from hutch.wire.fleet import ContainerSpec, LogEvent, TaskSpec

log = get_logger(__name__)

KEEP_LOGS_S = 7 * 24 * 3600.0
KEEP_LOGS_BYTES = GIB
MAX_KEPT_TASKS = 10_000
MAX_LOG_READ_BYTES = 4 * MIB

SendLogs = Callable[[TaskSpec, ContainerSpec, tuple[LogEvent, ...]], Awaitable[str]]


class TaskLogs:
    """Ships what the containers of one task write; `<directory>/<container>.log` is where they write it."""

    def __init__(self, spec: TaskSpec, directory: Path, send: SendLogs, watcher: FileWatcher) -> None:
        self._spec = spec
        self._directory = directory
        self._send = send
        self._watcher = watcher
        self._shippers: dict[str, tuple[LogShipper, asyncio.Task[None]]] = {}

    def begin(self, container: ContainerSpec) -> None:
        """Ship a container's log from now on, if its log driver asks for it; once is enough."""
        if container.log.driver != "awslogs" or container.name in self._shippers:
            return
        try:
            options = parse_options(container.log.options)
        except (HutchError, KeyError) as error:
            # The log driver must never keep a task from running; its output stays on the host.
            log.warning(
                "log options refused", task=self._spec.task_id, container=container.name, reason=str(error)
            )
            return

        async def send(events: tuple[LogEvent, ...]) -> str:
            return await self._send(self._spec, container, events)

        shipper = LogShipper(self._directory / f"{container.name}.log", options, send, self._watcher)
        task = asyncio.create_task(shipper.run())
        task.add_done_callback(self._ended)
        self._shippers[container.name] = (shipper, task)

    async def drain(self, timeout_s: float) -> bool:
        """Nothing more will be written: ship the rest. Whether it all went out in time; it goes on otherwise."""
        for shipper, _ in self._shippers.values():
            shipper.end()
        running = [t for _, t in self._shippers.values() if not t.done()]
        if not running:
            return True
        _, left = await asyncio.wait(running, timeout=timeout_s)
        return not left

    async def let_go(self) -> None:
        """Stop shipping; what was not acknowledged is shipped by the next agent."""
        tasks = [t for _, t in self._shippers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._shippers.clear()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("log shipping ended", task=self._spec.task_id, reason=repr(error))


def read_tail(path: Path, lines: int) -> list[dict[str, Any]]:
    """The newest lines of a container's log file, each {"time": epoch seconds, "stream", "text"}."""
    found: list[dict[str, Any]] = []
    open_lines: dict[str, dict[str, Any]] = {}
    data = b""
    for source in (path.with_name(path.name + ".1"), path):
        with contextlib.suppress(FileNotFoundError), source.open("rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - MAX_LOG_READ_BYTES))
            data += f.read()
    for raw in data[-MAX_LOG_READ_BYTES:].split(b"\n"):
        record = parse_line(raw)
        if record is None:
            continue
        text = record.text.decode("utf-8", "replace")
        line = open_lines.get(record.stream)
        if line is None:
            line = {"time": record.time_ns / 1e9, "stream": record.stream, "text": text}
            found.append(line)
        else:
            line["text"] += text
        if record.partial:
            open_lines[record.stream] = line
        else:
            open_lines.pop(record.stream, None)
    return found[-lines:]


def keep_logs(task_directory: Path, kept: Path) -> None:
    """Move a forgotten task's logs to where they stay for a while, and drop the rest of its directory."""
    logs = task_directory / "logs"
    if logs.is_dir() and any(logs.iterdir()):
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = kept / task_directory.name
        shutil.rmtree(target, ignore_errors=True)
        os.replace(logs, target)
    shutil.rmtree(task_directory, ignore_errors=True)


def prune_logs(kept: Path, now: float) -> None:
    """Remove kept logs that are too old, then the oldest until the rest is small enough."""
    if not kept.is_dir():
        return
    found = []
    for directory in kept.iterdir():
        files = [f.stat() for f in directory.iterdir() if f.is_file()]
        found.append(
            (max((f.st_mtime for f in files), default=0.0), sum(f.st_size for f in files), directory)
        )
    found.sort(key=lambda entry: entry[0], reverse=True)
    total = 0
    for number, (newest, size, directory) in enumerate(found):
        total += size
        if now - newest > KEEP_LOGS_S or total > KEEP_LOGS_BYTES or number >= MAX_KEPT_TASKS:
            shutil.rmtree(directory, ignore_errors=True)
