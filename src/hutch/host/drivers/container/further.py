"""A further process of a container, as its runtime names it: how it is signalled, and ended with all that it started."""

import asyncio
import contextlib
import os
import signal as signals
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from hutch.base.log import get_logger
from hutch.host.drivers.container.runtime import Runtime
from hutch.host.kernel.process import session_of
from hutch.host.kernel.run import CommandFailed, run

log = get_logger(__name__)
_COMMAND_TIMEOUT_S = 10.0
_ROUNDS = 3
"""A process may start another while it is being ended; who goes on doing so outlives the command, not the container."""


class FurtherProcess(Protocol):
    """A process that a runtime's `exec` starts."""

    @property
    def pid_file(self) -> Path:
        """Where the runtime writes its pid once it runs."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of `exec` that make the runtime write it."""

    @property
    def pid(self) -> int:
        """0: not told yet."""

    async def signal(self, number: int) -> None:
        """Send it a signal; nothing happens if it has ended."""

    async def hang_up(self) -> None:
        """SIGHUP, to its process group too."""

    async def end(self) -> None:
        """SIGKILL, to what it started too: the runtimes do not hand that on."""


class _Told:
    """The pid that a runtime writes to a file."""

    def __init__(self, pid_file: Path) -> None:
        self.pid_file = pid_file

    @property
    def pid(self) -> int:
        try:
            return int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return 0


class HostProcess(_Told):
    """Under runc and crun: a process of the host's kernel. `members` gives the pids of the container's control group."""

    def __init__(self, pid_file: Path, members: Callable[[], Collection[int]]) -> None:
        super().__init__(pid_file)
        self._members = members

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("--pid-file", str(self.pid_file))

    async def signal(self, number: int) -> None:
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def hang_up(self) -> None:
        if pid := self.pid:
            for target in (-pid, pid):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(target, signals.SIGHUP)

    async def end(self) -> None:
        leader = self.pid
        for member in self._members() if leader else ():
            if session_of(member) == leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signals.SIGKILL)


class GvisorProcess(_Told):
    """Under runsc: a process of gVisor's kernel, which only runsc can reach. The host's kernel knows `runsc exec`, whose end
    ends nothing."""

    def __init__(self, pid_file: Path, runtime: Runtime, state: Path, container_id: str) -> None:
        super().__init__(pid_file)
        self._runtime, self._state, self._container_id = runtime, state, container_id

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("--internal-pid-file", str(self.pid_file))

    async def signal(self, number: int) -> None:
        if pid := self.pid:
            await self._send(pid, number)

    async def hang_up(self) -> None:
        await self._send_to_all(signals.SIGHUP)

    async def end(self) -> None:
        for _ in range(_ROUNDS):
            if not await self._send_to_all(signals.SIGKILL):
                return

    async def _send_to_all(self, number: int) -> int:
        leader = self.pid
        found = descendants(await self._table(), leader) if leader else ()
        await asyncio.gather(*(self._send(pid, number) for pid in found))
        return len(found)

    async def _send(self, pid: int, number: int) -> None:
        await self._asked("kill", "--pid", str(pid), self._container_id, str(int(number)))

    async def _table(self) -> str:
        # As JSON it would be pids alone.
        return await self._asked("ps", "--format", "table", self._container_id)

    async def _asked(self, *words: str) -> str:
        try:
            said = await run(self._runtime.command(self._state, *words), timeout_s=_COMMAND_TIMEOUT_S)
        except CommandFailed as failure:
            # What has ended meanwhile, process or container, looks like this.
            log.debug("gVisor did not answer", verb=words[0], reason=failure.message)
            return ""
        return said.decode("utf-8", "replace")


def further_process(
    runtime: Runtime, state: Path, container_id: str, pid_file: Path, members: Callable[[], Collection[int]]
) -> FurtherProcess:
    """What fits the runtime. `state` is where it keeps its containers."""
    if runtime.is_gvisor:
        return GvisorProcess(pid_file, runtime, state, container_id)
    return HostProcess(pid_file, members)


def descendants(table: str, leader: int) -> tuple[int, ...]:
    """Pids of a process, its process group and all that they started, from `runsc ps`'s table. A program can name itself so
    that its line is read as another process of its own container, and of no other: runsc signals none beyond it."""
    lines = [line.split() for line in table.splitlines()]
    if not lines or not {"PID", "PPID", "PGID"} <= set(lines[0]):
        return ()
    at = [lines[0].index(name) for name in ("PID", "PPID", "PGID")]
    rows = [
        (int(line[at[0]]), int(line[at[1]]), int(line[at[2]]))
        for line in lines[1:]
        if len(line) > max(at) and all(line[i].isdecimal() for i in at)
    ]
    found: set[int] = set()
    more = {pid for pid, _, group in rows if leader in (pid, group)}
    while more:
        found |= more
        more = {pid for pid, parent, _ in rows if parent in found} - found
    return tuple(sorted(found))
