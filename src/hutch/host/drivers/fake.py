"""A driver without containers: it only keeps the promises of the contract. For tests, and for whole platforms
of thousands of tasks in one process (`hutch up --drivers fake`; no root, no QEMU).

A sandbox is one small JSON file that says when everything in it ends; time does the rest, also while no agent
is there. What a container does is dialled by its environment:

    HUTCH_FAKE_RUN_MS        ends by itself after so long (else it runs until it is signalled)
    HUTCH_FAKE_EXIT          exit code of that end (0)
    HUTCH_FAKE_OOM           1: that end is the OOM killer's work (code 137)
    HUTCH_FAKE_STOP_MS       ends so long after a signal (0)
    HUTCH_FAKE_IGNORE_TERM   1: only SIGKILL ends it
    HUTCH_FAKE_START_MS      takes so long to start (0)
    HUTCH_FAKE_START         fail: can't be started
    HUTCH_FAKE_HEALTH        exit code of its health check (0)
    HUTCH_FAKE_HEALTHY_MS    its health check fails until so long after its start
    HUTCH_FAKE_PROBE_MS      its health check takes so long
    HUTCH_FAKE_LOG           what it writes to stdout when it starts
    HUTCH_FAKE_LOG_PER_S     lines that it writes each second
    HUTCH_FAKE_MEMORY_MIB    what it seems to use (16)
    HUTCH_FAKE_BOOT_MS       the sandbox takes so long to make; of the task's first container, as are:
    HUTCH_FAKE_BOOT          fail: the sandbox can't be made
    HUTCH_FAKE_VANISH_MS     the whole sandbox ends so long after it was made
"""

import asyncio
import hashlib
import os
import signal as signals
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from pathlib import Path

import msgspec

from hutch.base.clock import Clock
from hutch.base.units import MIB
from hutch.host.criformat import encode_lines
from hutch.host.drivers.contract import (
    Capabilities,
    ContainerExited,
    ContainerStats,
    DriverError,
    ExecStream,
    ExitStatus,
    Handle,
    ObservedContainer,
    ProbeResult,
    SandboxEvent,
    SandboxExited,
    SandboxGone,
    SandboxSpec,
    SandboxStats,
    StartedContainer,
)
from hutch.host.drivers.fake_exec import open_exec
from hutch.host.logs.connections import dial_container_socket
from hutch.host.logs.contract import Connection
from hutch.model.exec import ExecSpec
from hutch.rules.logdrivers.firelens import SOCKET_NAME
from hutch.wire.facts import DriverFactMsg
from hutch.wire.taskspec import ContainerSpec

STATE_FILE = "fake.json"
HANDLE_FORMAT = 1


class _Container(msgspec.Struct, kw_only=True):
    """A container that was started. It runs while `exit_at` is none or in the future."""

    runtime_id: str
    started_at: float
    exit_at: float | None = None
    status: ExitStatus = ExitStatus(exit_code=0)


class _State(msgspec.Struct, kw_only=True):
    """All of a sandbox that outlives the agent."""

    task_id: str
    created_at: float
    gone_at: float | None = None
    suspended_at: float | None = None
    starts: int = 0
    containers: dict[str, _Container] = {}


class _Sandbox:
    """A sandbox as this driver instance holds it."""

    def __init__(self, spec: SandboxSpec, state: _State, clock: Clock, told: Collection[str] = ()) -> None:
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
        container = self.state.containers.get(name)
        return container is not None and (container.exit_at is None or container.exit_at > self._clock.now())

    def write(self, name: str, data: bytes) -> None:
        """Append to the container's log file."""
        directory = Path(self.spec.directory) / "logs"
        directory.mkdir(mode=0o700, exist_ok=True)
        with (directory / f"{name}.log").open("ab") as f:
            f.write(encode_lines(int(self._clock.now() * 1e9), 1, data))

    async def events(self) -> AsyncIterator[SandboxEvent]:
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
        per_s = _number(_spec_of(self.spec, name), "LOG_PER_S", 0.0)
        if per_s > 0 and self.runs(name):
            self._later(f"log/{name}", 1 / per_s, partial(self._log_line, name))

    def _log_line(self, name: str) -> None:
        if self.runs(name):
            self._lines += 1
            self.write(name, b"line %d\n" % self._lines)
            self._log_on(name)


class FakeDriver:
    """Implements `hutch.host.drivers.contract.Driver`; see the module."""

    name = "fake"
    capabilities = Capabilities(
        launch_types=("FARGATE", "EC2", "EXTERNAL"), root_format="directory", network="tap", owns_kernel=True
    )

    def __init__(self, *, clock: Clock, healthy: bool = True) -> None:
        self._clock = clock
        self._healthy = healthy
        self._sandboxes: dict[str, _Sandbox] = {}

    async def fingerprint(self) -> DriverFactMsg:
        """Always there, unless it was made otherwise."""
        reason = "" if self._healthy else "it was told to be unhealthy"
        return DriverFactMsg(
            name=self.name, launch_types=self.capabilities.launch_types, healthy=self._healthy, reason=reason
        )

    async def create(self, spec: SandboxSpec) -> Handle:
        """Write the sandbox's file."""
        first = spec.task.containers[0] if spec.task.containers else None
        sandbox = _Sandbox(spec, _State(task_id=spec.task.task_id, created_at=self._clock.now()), self._clock)
        self._sandboxes[spec.task.task_id] = sandbox
        try:
            await self._delay(sandbox, _number(first, "BOOT_MS", 0.0), "was made")
            if _dial(first, "BOOT") == "fail":
                raise DriverError(
                    "FakeBootFailure", "the sandbox was dialled to fail", fix="unset HUTCH_FAKE_BOOT"
                )
            vanish_ms = _number(first, "VANISH_MS", 0.0)
            if vanish_ms:
                sandbox.state.gone_at = self._clock.now() + vanish_ms / 1000
            sandbox.save()
        except BaseException:
            self._drop(spec.task.task_id, spec.directory)
            raise
        sandbox.watch()
        return Handle(
            driver=self.name,
            format=HANDLE_FORMAT,
            task_id=spec.task.task_id,
            state={"directory": spec.directory},
        )

    async def adopt(self, handle: Handle, spec: SandboxSpec) -> tuple[ObservedContainer, ...]:
        """Read the sandbox's file. `SandboxGone` if there is none, or its time is over."""
        try:
            state = _load(handle.state["directory"])
        except FileNotFoundError:
            raise SandboxGone("SandboxGone", f"the fake sandbox of {handle.task_id} is not there") from None
        if state.gone_at is not None and state.gone_at <= self._clock.now():
            raise SandboxGone("SandboxVanished", "the fake sandbox vanished while no agent was there")
        if old := self._sandboxes.get(handle.task_id):
            old.let_go()
        return _observed(self._open(spec, state, set()))

    async def start_container(self, handle: Handle, container: ContainerSpec) -> StartedContainer:
        """Note when it begins, and when it will end."""
        sandbox = self._sandbox(handle)
        await self._delay(sandbox, _number(container, "START_MS", 0.0), "started a container")
        if _dial(container, "START") == "fail":
            raise DriverError(
                "ExecNotFound",
                f'container "{container.name}" was dialled to fail',
                fix="unset HUTCH_FAKE_START",
                aws_prefix="CannotStartContainerError",
            )
        if sandbox.runs(container.name):
            raise DriverError("ContainerRuns", f'container "{container.name}" runs already')
        now, state = self._clock.now(), sandbox.state
        state.starts += 1
        identity = f"{state.task_id}/{container.name}/{state.starts}"
        run_ms = _dial(container, "RUN_MS")
        code = int(_number(container, "EXIT", 0))
        status = ExitStatus(exit_code=code, signal=code - 128 if code > 128 else 0)
        if _dial(container, "OOM") == "1":
            status = ExitStatus(
                exit_code=137, signal=9, oom=True, oom_process="fake", oom_rss_bytes=_memory_bytes(container)
            )
        state.containers[container.name] = started = _Container(
            runtime_id=_runtime_id(identity),
            started_at=now,
            exit_at=now + float(run_ms) / 1000 if run_ms else None,
            status=status,
        )
        sandbox.save()
        if text := _dial(container, "LOG"):
            sandbox.write(container.name, text.encode() + b"\n")
        sandbox.watch()
        return StartedContainer(runtime_id=started.runtime_id, started_at=now)

    async def signal_container(self, handle: Handle, container: str, signal: int) -> None:
        """End the container, unless it is dialled to ignore it."""
        sandbox = self._sandbox(handle)
        spec = _spec_of(sandbox.spec, container)
        ignored = signal != signals.SIGKILL and _dial(spec, "IGNORE_TERM") == "1"
        if not sandbox.runs(container) or ignored:
            return
        state = sandbox.state.containers[container]
        delay_ms = 0.0 if signal == signals.SIGKILL else _number(spec, "STOP_MS", 0.0)
        state.exit_at = self._clock.now() + delay_ms / 1000
        state.status = ExitStatus(exit_code=128 + signal, signal=signal)
        sandbox.save()
        sandbox.watch()

    async def probe(
        self, handle: Handle, container: str, command: tuple[str, ...], timeout_s: float
    ) -> ProbeResult:
        """As dialled; the command `false` always fails."""
        sandbox = self._sandbox(handle)
        if not sandbox.runs(container):
            raise DriverError("ContainerNotRunning", f'container "{container}" does not run')
        spec = _spec_of(sandbox.spec, container)
        takes_ms = _number(spec, "PROBE_MS", 0.0)
        await self._delay(sandbox, min(takes_ms, timeout_s * 1000), "ran a health check")
        if takes_ms > timeout_s * 1000:
            return ProbeResult(exit_code=137, timed_out=True)
        age_ms = (self._clock.now() - sandbox.state.containers[container].started_at) * 1000
        code = int(_number(spec, "HEALTH", 0))
        if command[-1] == "false" or age_ms < _number(spec, "HEALTHY_MS", 0.0):
            code = 1
        return ProbeResult(exit_code=code, output=f"fake health check: {code}\n")

    async def suspend(self, handle: Handle) -> None:
        """Note since when its time stands still."""
        sandbox = self._sandbox(handle)
        sandbox.state.suspended_at = self._clock.now()
        sandbox.save()
        sandbox.let_go()
        del self._sandboxes[handle.task_id]

    async def is_suspended(self, handle: Handle) -> bool:
        """Whether its time stands still."""
        try:
            return _load(handle.state["directory"]).suspended_at is not None
        except FileNotFoundError:
            return False

    async def resume(self, handle: Handle, spec: SandboxSpec) -> Handle:
        """Its time goes on: what was to end by itself ends that much later."""
        state = _load(handle.state["directory"])
        if state.suspended_at is None:
            raise DriverError("NotSuspended", f"task {handle.task_id} is not suspended")
        now, since = self._clock.now(), state.suspended_at
        state.suspended_at = None
        if state.gone_at is not None:
            state.gone_at += now - since
        told = set()
        for container in state.containers.values():
            if container.exit_at is not None and container.exit_at <= since:
                told.add(container.runtime_id)
            elif container.exit_at is not None:
                container.exit_at += now - since
        self._open(spec, state, told).save()
        return handle

    async def snapshot(self, handle: Handle, directory: str) -> None:
        """Copy the sandbox's file."""
        Path(directory).mkdir(mode=0o700)
        (Path(directory) / STATE_FILE).write_bytes(msgspec.json.encode(self._sandbox(handle).state))

    async def fork(self, directory: str, spec: SandboxSpec) -> tuple[Handle, tuple[ObservedContainer, ...]]:
        """The same containers once more, with ids of their own."""
        task_id, state = spec.task.task_id, _load(directory)
        state.task_id = task_id
        for container in state.containers.values():
            container.runtime_id = _runtime_id(f"{task_id}/{container.runtime_id}")
        sandbox = self._open(spec, state, set())
        sandbox.save()
        handle = Handle(
            driver=self.name, format=HANDLE_FORMAT, task_id=task_id, state={"directory": spec.directory}
        )
        return handle, _observed(sandbox)

    async def keep_disk(self, handle: Handle, directory: str) -> int:
        """Move the sandbox's file."""
        if sandbox := self._sandboxes.pop(handle.task_id, None):
            sandbox.let_go()
        source, kept = Path(handle.state["directory"]) / STATE_FILE, Path(directory) / STATE_FILE
        if source.exists():
            os.replace(source, kept)
        if not kept.exists():
            raise DriverError("NoDiskKept", f"the fake sandbox of {handle.task_id} has no file")
        return kept.stat().st_blocks * 512

    async def open_disk(self, directory: str, spec: SandboxSpec) -> Handle:
        """A sandbox that began where the other ended: without containers."""
        if not (Path(directory) / STATE_FILE).exists():
            raise DriverError("NoDiskKept", f"there is no fake sandbox in {directory}")
        task_id = spec.task.task_id
        sandbox = self._open(spec, _State(task_id=task_id, created_at=self._clock.now()), set())
        sandbox.save()
        return Handle(
            driver=self.name, format=HANDLE_FORMAT, task_id=task_id, state={"directory": spec.directory}
        )

    async def hold_container(self, handle: Handle, container: ContainerSpec) -> None:
        """It runs, whatever it is dialled to do."""
        sandbox = self._sandbox(handle)
        if not sandbox.runs(container.name):
            sandbox.state.containers[container.name] = _Container(
                runtime_id=_runtime_id(f"{handle.task_id}/{container.name}"), started_at=self._clock.now()
            )
            sandbox.save()

    def _open(self, spec: SandboxSpec, state: _State, told: set[str]) -> _Sandbox:
        sandbox = self._sandboxes[spec.task.task_id] = _Sandbox(spec, state, self._clock, told)
        sandbox.watch()
        return sandbox

    async def exec(self, handle: Handle, container: str, spec: ExecSpec) -> ExecStream:
        """Run one of the made-up programs of `fake_exec`."""
        sandbox = self._sandbox(handle)
        if not sandbox.runs(container):
            raise DriverError("ContainerNotRunning", f'container "{container}" does not run')
        return open_exec(spec, sandbox.ended)

    async def dial_router(self, handle: Handle, container: str) -> Connection:
        """Connect to the socket that whoever plays the log router made in the sandbox's directory."""
        return await dial_container_socket(str(Path(self._sandbox(handle).spec.directory) / SOCKET_NAME))

    def events(self, handle: Handle) -> AsyncIterator[SandboxEvent]:
        """The sandbox's events; see the contract."""
        return self._sandbox(handle).events()

    async def stats(self, handle: Handle) -> SandboxStats:
        """Made up, but steady: a tenth of a CPU for each container."""
        sandbox, now = self._sandbox(handle), self._clock.now()
        used = {
            n: ContainerStats(
                cpu_ns=int((now - c.started_at) * 1e8),
                memory_bytes=_memory_bytes(_spec_of(sandbox.spec, n)),
                pids=1,
            )
            for n, c in sandbox.state.containers.items()
            if sandbox.runs(n)
        }
        return SandboxStats(
            host_cpu_ns=int((now - sandbox.state.created_at) * 1e8),
            host_memory_bytes=sum(c.memory_bytes for c in used.values()) + 64 * MIB,
            containers=used,
        )

    async def destroy(self, handle: Handle) -> None:
        """Remove the sandbox's file."""
        self._drop(handle.task_id, handle.state["directory"])

    async def destroy_leftovers(self, directory: str, task_id: str) -> None:
        """As `destroy`."""
        self._drop(task_id, directory)

    async def close(self) -> None:
        """Let go of all sandboxes: their time goes on without us."""
        sandboxes, self._sandboxes = self._sandboxes, {}
        for sandbox in sandboxes.values():
            sandbox.let_go()

    def _drop(self, task_id: str, directory: str) -> None:
        if sandbox := self._sandboxes.pop(task_id, None):
            sandbox.let_go()
        (Path(directory) / STATE_FILE).unlink(missing_ok=True)
        (Path(directory) / STATE_FILE).with_suffix(".new").unlink(missing_ok=True)

    async def _delay(self, sandbox: _Sandbox, delay_ms: float, what: str) -> None:
        """Take as long as dialled, unless the sandbox ends meanwhile."""
        if delay_ms <= 0:
            return
        try:
            async with asyncio.timeout(delay_ms / 1000):
                await sandbox.ended.wait()
        except TimeoutError:
            return
        raise SandboxGone("SandboxGone", f"the sandbox ended while it {what}")

    def _sandbox(self, handle: Handle) -> _Sandbox:
        sandbox = self._sandboxes.get(handle.task_id)
        if sandbox is None:
            raise DriverError("SandboxUnknown", f"task {handle.task_id} was not created or adopted here")
        return sandbox


def _load(directory: str) -> _State:
    return msgspec.json.decode((Path(directory) / STATE_FILE).read_bytes(), type=_State)


def _observed(sandbox: _Sandbox) -> tuple[ObservedContainer, ...]:
    return tuple(
        ObservedContainer(name=n, runtime_id=c.runtime_id, running=sandbox.runs(n), started_at=c.started_at)
        for n, c in sandbox.state.containers.items()
    )


def _runtime_id(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()


def _spec_of(spec: SandboxSpec, name: str) -> ContainerSpec | None:
    return next((c for c in spec.task.containers if c.name == name), None)


def _dial(container: ContainerSpec | None, name: str) -> str:
    return container.environment.get(f"HUTCH_FAKE_{name}", "") if container else ""


def _number(container: ContainerSpec | None, name: str, default: float) -> float:
    text = _dial(container, name)
    try:
        return float(text) if text else default
    except ValueError:
        raise DriverError("FakeDialInvalid", f"HUTCH_FAKE_{name}={text!r} is not a number") from None


def _memory_bytes(container: ContainerSpec | None) -> int:
    return int(_number(container, "MEMORY_MIB", 16) * MIB)
