"""What all task runners of a host share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec

from hutch.base.clock import Clock
from hutch.host.agent.kept import KeptDisks
from hutch.host.agent.snapshots import Snapshots
from hutch.host.agent.taskbook import TaskBook
from hutch.host.agent.tasklogs import SendLogs
from hutch.host.agent.threats import ThreatDesk
from hutch.host.images.contract import ImageStore
from hutch.host.kernel.inotify import FileWatcher
from hutch.host.network.contract import HostNetwork
from hutch.rules.containers import Action
from hutch.wire.facts import TaskFacts
from hutch.wire.taskspec import TaskSpec


class Ingress(Protocol):
    """What publishes host ports; `hutch.host.lb` implements it. It remembers them when the agent is started anew."""

    async def serve_api(self) -> None:
        """The network is there: let tasks reach the platform's API, if they are to. Raises `HostFault`."""
        ...

    async def listeners(self, ports: Sequence[int]) -> Mapping[int, str]:
        """Those of the ports that other programs listen on, and which programs."""
        ...

    async def publish(self, task: TaskSpec, *, is_asleep: bool = False) -> None:
        """Make the task's published ports reachable; those of a task that is asleep (suspended) are kept, and refuse. Again
        for a task that fell asleep or woke. Raises `HostFault`."""
        ...

    async def withdraw(self, task_id: str) -> None:
        """Take them back; also if they never were."""
        ...


class RunnerContext(msgspec.Struct, frozen=True, kw_only=True):
    """What all runners of a host share."""

    images: ImageStore
    network: HostNetwork
    ingress: Ingress
    clock: Clock
    watcher: FileWatcher
    book: TaskBook
    snapshots: Snapshots
    kept: KeptDisks
    threats: ThreatDesk
    report: Callable[[TaskFacts], None]
    send_logs: SendLogs


Tell = Callable[[Callable[[], list[Action]]], None]
"""Puts an event into a task's queue: a call that moves the task's machine, and gives what is to be done next."""


async def all_of(works: list[Awaitable[Any]]) -> list[Any]:
    """All results; the first failure ends the others, and is raised when they have ended."""
    tasks = [asyncio.ensure_future(w) for w in works]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class Starts:
    """Containers start side by side; what needs the sandbox to hold still waits for them, and they for it."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._under_way = 0
        self._none = asyncio.Event()
        self._none.set()
        self.awake = asyncio.Event()
        """Clear while the task is suspended, or on the way there: what starts a container waits for it."""
        self.awake.set()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """While a container starts."""
        async with self._lock:
            self._under_way += 1
            self._none.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._none.set()

    @asynccontextmanager
    async def none(self) -> AsyncIterator[None]:
        """While none may start."""
        async with self._lock:
            await self._none.wait()
            yield
