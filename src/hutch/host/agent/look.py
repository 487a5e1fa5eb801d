"""A sandbox in which a stopped task's disk is looked into: opened for the first process, ended after the last."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

from hutch.host.drivers.contract import (
    Driver,
    ExecStream,
    Handle,
    HostFault,
    SandboxSpec,
    SupportsExec,
    SupportsKeptDisks,
)
from hutch.model.exec import ExecSpec
from hutch.wire.taskspec import ContainerSpec

OPEN_LIMIT_S = 300.0


class LookDriver(Driver, SupportsKeptDisks, SupportsExec, Protocol):
    """What a driver needs for this."""


class Look:
    """One sandbox. Its owner sees to it that one verb is called at a time, and `close` after the last."""

    def __init__(self, driver: "LookDriver", spec: SandboxSpec, *, disk_directory: Path) -> None:
        """`disk_directory` is where the kept disk is; `spec.directory` must not be there."""
        self.users = 0
        """Processes that were started and not let go of."""
        self._driver = driver
        self._spec = spec
        self._disk_directory = disk_directory
        self._handle: Handle | None = None

    async def open(self) -> None:
        """Make it. Raises `HostFault`; `close` is to be called all the same."""
        directory = Path(self._spec.directory)
        try:
            directory.mkdir(mode=0o700)
            async with asyncio.timeout(OPEN_LIMIT_S):
                self._handle = await self._driver.open_disk(str(self._disk_directory), self._spec)
        except TimeoutError:
            raise HostFault("LookTimedOut", f"no sandbox could be made within {OPEN_LIMIT_S:g} s") from None
        except OSError as error:
            raise HostFault("LookFailed", f"no sandbox can be made: {error}") from None

    async def exec(self, container: ContainerSpec, spec: ExecSpec) -> ExecStream:
        """Run a process in a container; it is a user until its stream is closed. Raises `HostFault`."""
        assert self._handle is not None
        await self._driver.hold_container(self._handle, container)
        stream = await self._driver.exec(self._handle, container.name, spec)
        self.users += 1
        return stream

    async def close(self) -> None:
        """End it, and all in it."""
        await self._driver.destroy_leftovers(self._spec.directory, self._spec.task.task_id)
        await asyncio.to_thread(shutil.rmtree, self._spec.directory, True)


class LookStream:
    """Implements `ExecStream`: another one, and who is to be told when it is let go of."""

    def __init__(self, stream: ExecStream, left: Callable[[], Awaitable[None]]) -> None:
        self._stream = stream
        self._left: Callable[[], Awaitable[None]] | None = left

    async def write(self, data: bytes) -> None:
        """Input."""
        await self._stream.write(data)

    async def close_input(self) -> None:
        """The end of input."""
        await self._stream.close_input()

    async def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size."""
        await self._stream.resize(rows, cols)

    async def signal(self, number: int) -> None:
        """Send the process a signal."""
        await self._stream.signal(number)

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """What it writes."""
        return self._stream.output()

    async def wait(self) -> int:
        """Its exit code."""
        return await self._stream.wait()

    async def close(self) -> None:
        """Let go of it."""
        left, self._left = self._left, None
        try:
            await self._stream.close()
        finally:
            if left is not None:
                await left()
