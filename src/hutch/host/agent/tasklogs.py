"""The log shippers of one task, and what stays of its logs on the host when the task is forgotten."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.base.units import GIB, MIB
from hutch.host.agent.dockerstats import docker_name
from hutch.host.agent.logship import LogShipper, ShippingStatus
from hutch.host.agent.taskfile import lacks_log_secrets
from hutch.host.criformat import parse_line
from hutch.host.kernel.inotify import FileWatcher
from hutch.host.logs.contract import Connection
from hutch.host.logs.making import SHIPPED, make_shipping
from hutch.rules.logdrivers.files import MAX_FILES
from hutch.rules.logdrivers.options import Identity
from hutch.wire.facts import LogEvent
from hutch.wire.taskspec import ContainerSpec, TaskSpec

log = get_logger(__name__)

KEEP_LOGS_S = 7 * 24 * 3600.0
KEEP_LOGS_BYTES = GIB
MAX_KEPT_TASKS = 10_000
MAX_LOG_READ_BYTES = 4 * MIB
LACKING = "the values of its log driver's secret options are waited for"

SendLogs = Callable[[TaskSpec, ContainerSpec, tuple[LogEvent, ...]], Awaitable[str]]
DialRouter = Callable[[str], Awaitable[Connection]]
"""Connect to a container of the task that takes logs. Raises `HutchError` or `OSError`."""


class TaskLogs:
    """Ships what the containers of one task write; `<directory>/<container>.log` is where they write it."""

    def __init__(
        self,
        spec: TaskSpec,
        directory: Path,
        send: SendLogs,
        watcher: FileWatcher,
        dial_router: DialRouter,
    ) -> None:
        self._spec = spec
        self._directory = directory
        self._send = send
        self._watcher = watcher
        self._dial_router = dial_router
        self._shippers: dict[str, tuple[LogShipper, asyncio.Task[None]]] = {}
        self._refused: dict[str, str] = {}
        self._lacking: set[str] = set()
        """Containers that run, and whose logs wait for secret options."""

    def begin(self, container: ContainerSpec) -> None:
        """Ship a container's log from now on, if its log driver asks for it; once is enough. While values of its
        secret options are lacking it waits for `take_secrets`."""
        log_spec = container.log
        if container.name in self._shippers or log_spec.driver not in SHIPPED:
            return
        if lacks_log_secrets(container):
            self._lacking.add(container.name)
            return
        self._lacking.discard(container.name)

        async def send(events: tuple[LogEvent, ...]) -> str:
            return await self._send(self._spec, container, events)

        identity = Identity(
            container_id=container.container_id.replace("-", ""),
            container_name=docker_name(self._spec, container),
            image=container.image,
            environment=container.environment,
            labels=container.labels,
        )
        router = partial(self._dial_router, log_spec.router)
        try:
            made = make_shipping(
                log_spec, self._spec.task_id, container.name, identity, send=send, router=router
            )
        except HutchError as error:
            # The log driver must never keep a task from running; its output stays on the host.
            if self._refused.get(container.name) != error.message:
                log.warning(
                    "log options refused",
                    task=self._spec.task_id,
                    container=container.name,
                    reason=error.message,
                )
            self._refused[container.name] = error.message
            return
        assert made is not None
        shipper = LogShipper(
            self._directory / f"{container.name}.log",
            made.delivery,
            made.assembler,
            made.sink,
            self._watcher,
        )
        task = asyncio.create_task(shipper.run())
        task.add_done_callback(self._ended)
        self._shippers[container.name] = (shipper, task)

    def take_secrets(self, spec: TaskSpec) -> None:
        """The task was assigned again, with the values of secret options."""
        for container in spec.containers:
            if container.name in self._lacking:
                self.begin(container)

    def status(self) -> dict[str, ShippingStatus]:
        """How the shipping of each container's log is, of those that have a driver which ships. Blocking, briefly."""
        found = {name: shipper.status() for name, (shipper, _) in self._shippers.items()}
        reasons = dict.fromkeys(self._lacking, LACKING) | self._refused
        for name, reason in reasons.items():
            found[name] = ShippingStatus(waiting_bytes=0, dropped_bytes=0, problem=reason)
        return found

    async def drain(self, timeout_s: float, router: str = "") -> bool:
        """Nothing more will be written: ship the rest. Whether it all went out in time; it goes on otherwise. A back end
        that is known to take nothing is not waited for. `router`: only what goes to that container, which runs: it is waited
        for also if it does not listen yet, so that a task that is soon over has its logs."""
        sources = {c.name for c in self._spec.containers if not router or c.log.router == router}
        chosen = [shipping for name, shipping in self._shippers.items() if name in sources]
        for shipper, _ in chosen:
            shipper.end()
        waits = [
            asyncio.create_task(_until_shipped(shipper, task, patient=bool(router)))
            for shipper, task in chosen
        ]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout_s)
            for wait in late:
                wait.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        return all(task.done() for _, task in chosen)

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


async def _until_shipped(shipper: LogShipper, task: asyncio.Task[None], *, patient: bool) -> None:
    """Return when all is shipped, or (unless `patient`) when it is known that nothing gets through."""
    if patient:
        await asyncio.wait({task})
        return
    stuck = asyncio.ensure_future(shipper.stuck.wait())
    try:
        await asyncio.wait({task, stuck}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stuck.cancel()


def read_tail(path: Path, lines: int) -> list[dict[str, Any]]:
    """The newest lines of a container's log file, each {"time": epoch seconds, "stream", "text"}."""
    found: list[dict[str, Any]] = []
    open_lines: dict[str, dict[str, Any]] = {}
    data = b""
    for number in range(MAX_FILES):
        source = path.with_name(f"{path.name}.{number}") if number else path
        if len(data) >= MAX_LOG_READ_BYTES:
            break
        try:
            with source.open("rb") as f:
                f.seek(max(0, os.fstat(f.fileno()).st_size - MAX_LOG_READ_BYTES))
                data = f.read() + data
        except FileNotFoundError:
            # The newest may be missing for the moment of a rotation.
            if number:
                break
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
