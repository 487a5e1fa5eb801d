"""A sandbox of the fake driver: one small JSON file that says when everything in it ends, and timers for that.

Time does the rest, also while no agent is there.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from pathlib import Path

import msgspec

from hutch.base.clock import Clock
from hutch.host.criformat import encode_lines
from hutch.host.drivers.contract import (
    ContainerExited,
    ExitStatus,
    SandboxEvent,
    SandboxExited,
    SandboxSpec,
)
from hutch.host.drivers.fake_dials import number
from hutch.wire.taskspec import ContainerSpec

STATE_FILE = "fake.json"


class FakeContainer(msgspec.Struct, kw_only=True):
    """A container that was started. It runs while `exit_at` is none or in the future."""

    runtime_id: str
    started_at: float
    exit_at: float | None = None
    status: ExitStatus = ExitStatus(exit_code=0)


class FakeState(msgspec.Struct, kw_only=True):
    """All of a sandbox that outlives the agent."""

    task_id: str
    created_at: float
    gone_at: float | None = None
    suspended_at: float | None = None
    starts: int = 0
    containers: dict[str, FakeContainer] = {}


class FakeSandbox:
    """A sandbox as this driver instance holds it."""

    def __init__(self, spec: SandboxSpec, state: FakeState, clock: Clock, told: Collection[str] = ()) -> None:
        """`told`: runtime ids whose end is known already."""
        self.spec = spec
        self.state = state
        self.ended = asyncio.Event()
        self._clock = clock
        self._path = Path(spec.directory) / STATE_FILE
        self._events: asyncio.Queue[SandboxEvent | None] = asyncio.Queue()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._announced = set(told)
        self._lines = 0

    def save(self) -> None:
        """Keep the state; in one write, which a kill can't cut, but not fsynced: nothing real hangs on it."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        data = msgspec.json.encode(self.state)
        os.pwrite(fd, data.ljust(os.fstat(fd).st_size), 0)
        os.close(fd)

    def watch(self) -> None:
        """Announce what has ended, and set timers for what will."""
        now = self._clock.now()
        for name, container in self.state.containers.items():
            if container.exit_at is not None:
                self._later(f"exit/{name}", container.exit_at - now, lambda n=name: self._exited(n))  # type: ignore[misc]
            self._log_on(name)
        if self.state.gone_at is not None:
            self._later("gone", self.state.gone_at - now, self._gone)

    def runs(self, name: str) -> bool:
        """Whether a container of this name was started and has not ended."""
        container = self.state.containers.get(name)
        return container is not None and (container.exit_at is None or container.exit_at > self._clock.now())

    def write(self, name: str, data: bytes) -> None:
        """Append to the container's log file."""
        directory = Path(self.spec.directory) / "logs"
        directory.mkdir(mode=0o700, exist_ok=True)
        with (directory / f"{name}.log").open("ab") as f:
            f.write(encode_lines(int(self._clock.now() * 1e9), 1, data))

    async def events(self) -> AsyncIterator[SandboxEvent]:
        """What happens, until the sandbox has ended or was let go."""
        while (event := await self._events.get()) is not None:
            yield event
            if isinstance(event, SandboxExited):
                return

    def let_go(self) -> None:
        """No more timers and events."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self.ended.set()
        self._events.put_nowait(None)

    def _later(self, key: str, delay_s: float, do: Callable[[], None]) -> None:
        if old := self._timers.pop(key, None):
            old.cancel()
        if delay_s <= 0:
            do()
        else:
            self._timers[key] = asyncio.get_running_loop().call_later(delay_s, do)

    def _exited(self, name: str) -> None:
        container = self.state.containers[name]
        if container.runtime_id in self._announced or container.exit_at is None:
            return
        self._announced.add(container.runtime_id)
        self._events.put_nowait(
            ContainerExited(
                container=name,
                runtime_id=container.runtime_id,
                status=container.status,
                at=container.exit_at,
            )
        )

    def _gone(self) -> None:
        at = self.state.gone_at or self._clock.now()
        self._events.put_nowait(
            SandboxExited(
                at=at, kind="SandboxVanished", text="the fake sandbox vanished as it was dialled to"
            )
        )
        self.ended.set()

    def _log_on(self, name: str) -> None:
        per_s = number(container_of(self.spec, name), "LOG_PER_S", 0.0)
        if per_s > 0 and self.runs(name):
            self._later(f"log/{name}", 1 / per_s, partial(self._log_line, name))

    def _log_line(self, name: str) -> None:
        if self.runs(name):
            self._lines += 1
            self.write(name, b"line %d\n" % self._lines)
            self._log_on(name)


def load_state(directory: str) -> FakeState:
    """What a sandbox's directory tells of it. Raises `FileNotFoundError`."""
    return msgspec.json.decode((Path(directory) / STATE_FILE).read_bytes(), type=FakeState)


def container_of(spec: SandboxSpec, name: str) -> ContainerSpec | None:
    """The container of this name in the sandbox's task."""
    return next((c for c in spec.task.containers if c.name == name), None)
