"""A driver without containers: it only keeps the promises of the contract. For tests, and for whole platforms
of thousands of tasks in one process (`hutch up --drivers fake`; no root, no QEMU).

Its sandboxes are files (`fake_sandbox`), what is in them is dialled (`fake_dials`).
"""

import asyncio
import hashlib
import os
import signal as signals
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from hutch.base.clock import Clock
from hutch.base.units import MIB
from hutch.host.drivers.contract import (
    Capabilities,
    ContainerStats,
    DriverError,
    ExecStream,
    ExitStatus,
    Handle,
    ObservedContainer,
    ProbeResult,
    SandboxEvent,
    SandboxGone,
    SandboxSpec,
    SandboxStats,
    StartedContainer,
)
from hutch.host.drivers.fake_dials import dial, memory_bytes, number
from hutch.host.drivers.fake_exec import open_exec
from hutch.host.drivers.fake_sandbox import (
    STATE_FILE,
    FakeContainer,
    FakeSandbox,
    FakeState,
    container_of,
    load_state,
)
from hutch.host.logs.connections import dial_container_socket
from hutch.host.logs.contract import Connection
from hutch.model.exec import ExecSpec
from hutch.rules.logdrivers.firelens import SOCKET_NAME
from hutch.wire.facts import DriverFactMsg
from hutch.wire.taskspec import ContainerSpec

HANDLE_FORMAT = 1


class FakeDriver:
    """Implements `hutch.host.drivers.contract.Driver`."""

    name = "fake"
    capabilities = Capabilities(
        launch_types=("FARGATE", "EC2", "EXTERNAL"), root_format="directory", network="tap", owns_kernel=True
    )

    def __init__(self, *, clock: Clock, healthy: bool = True) -> None:
        self._clock = clock
        self._healthy = healthy
        self._sandboxes: dict[str, FakeSandbox] = {}

    async def fingerprint(self) -> DriverFactMsg:
        """Always there, unless it was made otherwise."""
        reason = "" if self._healthy else "it was told to be unhealthy"
        return DriverFactMsg(
            name=self.name, launch_types=self.capabilities.launch_types, healthy=self._healthy, reason=reason
        )

    async def create(self, spec: SandboxSpec) -> Handle:
        """Write the sandbox's file."""
        first = spec.task.containers[0] if spec.task.containers else None
        sandbox = FakeSandbox(
            spec, FakeState(task_id=spec.task.task_id, created_at=self._clock.now()), self._clock
        )
        self._sandboxes[spec.task.task_id] = sandbox
        try:
            await self._delay(sandbox, number(first, "BOOT_MS", 0.0), "was made")
            if dial(first, "BOOT") == "fail":
                raise DriverError(
                    "FakeBootFailure", "the sandbox was dialled to fail", fix="unset HUTCH_FAKE_BOOT"
                )
            vanish_ms = number(first, "VANISH_MS", 0.0)
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
            state = load_state(handle.state["directory"])
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
        await self._delay(sandbox, number(container, "START_MS", 0.0), "started a container")
        if dial(container, "START") == "fail":
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
        run_ms = dial(container, "RUN_MS")
        code = int(number(container, "EXIT", 0))
        status = ExitStatus(exit_code=code, signal=code - 128 if code > 128 else 0)
        if dial(container, "OOM") == "1":
            status = ExitStatus(
                exit_code=137, signal=9, oom=True, oom_process="fake", oom_rss_bytes=memory_bytes(container)
            )
        state.containers[container.name] = started = FakeContainer(
            runtime_id=_runtime_id(identity),
            started_at=now,
            exit_at=now + float(run_ms) / 1000 if run_ms else None,
            status=status,
        )
        sandbox.save()
        if text := dial(container, "LOG"):
            sandbox.write(container.name, text.encode() + b"\n")
        sandbox.watch()
        return StartedContainer(runtime_id=started.runtime_id, started_at=now)

    async def signal_container(self, handle: Handle, container: str, signal: int) -> None:
        """End the container, unless it is dialled to ignore it."""
        sandbox = self._sandbox(handle)
        spec = container_of(sandbox.spec, container)
        ignored = signal != signals.SIGKILL and dial(spec, "IGNORE_TERM") == "1"
        if not sandbox.runs(container) or ignored:
            return
        state = sandbox.state.containers[container]
        delay_ms = 0.0 if signal == signals.SIGKILL else number(spec, "STOP_MS", 0.0)
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
        spec = container_of(sandbox.spec, container)
        takes_ms = number(spec, "PROBE_MS", 0.0)
        await self._delay(sandbox, min(takes_ms, timeout_s * 1000), "ran a health check")
        if takes_ms > timeout_s * 1000:
            return ProbeResult(exit_code=137, timed_out=True)
        age_ms = (self._clock.now() - sandbox.state.containers[container].started_at) * 1000
        code = int(number(spec, "HEALTH", 0))
        if command[-1] == "false" or age_ms < number(spec, "HEALTHY_MS", 0.0):
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
            return load_state(handle.state["directory"]).suspended_at is not None
        except FileNotFoundError:
            return False

    async def resume(self, handle: Handle, spec: SandboxSpec) -> Handle:
        """Its time goes on: what was to end by itself ends that much later."""
        state = load_state(handle.state["directory"])
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
        task_id, state = spec.task.task_id, load_state(directory)
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
        sandbox = self._open(spec, FakeState(task_id=task_id, created_at=self._clock.now()), set())
        sandbox.save()
        return Handle(
            driver=self.name, format=HANDLE_FORMAT, task_id=task_id, state={"directory": spec.directory}
        )

    async def hold_container(self, handle: Handle, container: ContainerSpec) -> None:
        """It runs, whatever it is dialled to do."""
        sandbox = self._sandbox(handle)
        if not sandbox.runs(container.name):
            sandbox.state.containers[container.name] = FakeContainer(
                runtime_id=_runtime_id(f"{handle.task_id}/{container.name}"), started_at=self._clock.now()
            )
            sandbox.save()

    def _open(self, spec: SandboxSpec, state: FakeState, told: set[str]) -> FakeSandbox:
        sandbox = self._sandboxes[spec.task.task_id] = FakeSandbox(spec, state, self._clock, told)
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
                memory_bytes=memory_bytes(container_of(sandbox.spec, n)),
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

    async def _delay(self, sandbox: FakeSandbox, delay_ms: float, what: str) -> None:
        """Take as long as dialled, unless the sandbox ends meanwhile."""
        if delay_ms <= 0:
            return
        try:
            async with asyncio.timeout(delay_ms / 1000):
                await sandbox.ended.wait()
        except TimeoutError:
            return
        raise SandboxGone("SandboxGone", f"the sandbox ended while it {what}")

    def _sandbox(self, handle: Handle) -> FakeSandbox:
        sandbox = self._sandboxes.get(handle.task_id)
        if sandbox is None:
            raise DriverError("SandboxUnknown", f"task {handle.task_id} was not created or adopted here")
        return sandbox


def _observed(sandbox: FakeSandbox) -> tuple[ObservedContainer, ...]:
    return tuple(
        ObservedContainer(name=n, runtime_id=c.runtime_id, running=sandbox.runs(n), started_at=c.started_at)
        for n, c in sandbox.state.containers.items()
    )


def _runtime_id(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()
