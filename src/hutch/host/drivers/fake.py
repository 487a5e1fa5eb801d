"""A driver without sandboxes, for tests, simulations and measurements of everything around it. Costs next to nothing.

Dials, from the container's environment: HUTCH_FAKE_START_MS, HUTCH_FAKE_START_ERROR, HUTCH_FAKE_EXIT (code, after
HUTCH_FAKE_RUN_MS), HUTCH_FAKE_SIGNAL, HUTCH_FAKE_OOM=1, HUTCH_FAKE_VANISH_MS, HUTCH_FAKE_UNHEALTHY=1, HUTCH_FAKE_LOG
(a line written at the start), HUTCH_FAKE_IGNORE_TERM=1.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.host.criformat import encode_lines
from hutch.host.drivers.contract import (
    Attachment,
    Capabilities,
    ContainerExited,
    ContainerStats,
    DriverError,
    ExitStatus,
    Handle,
    ObservedContainer,
    ProbeResult,
    RootImage,
    SandboxEvent,
    SandboxExited,
    SandboxGone,
    SandboxSpec,
    SandboxStats,
    StartedContainer,
)
from hutch.wire.fleet import ContainerSpec, DriverFactMsg, ImageFact, TaskSpec

_SIGKILL = 9


class _Sandbox:
    def __init__(self, spec: SandboxSpec) -> None:
        self.spec = spec
        self.running: dict[str, StartedContainer] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.events: asyncio.Queue[SandboxEvent] = asyncio.Queue()
        self.timers: list[asyncio.TimerHandle] = []
        self.gone = False


class FakeWorld:
    """What lives on although an agent ends: share one between drivers to simulate an agent's restart."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, _Sandbox] = {}


class FakeDriver:
    """`hutch.host.drivers.contract.Driver` that pretends."""

    name = "fake"
    capabilities = Capabilities(
        launch_types=("FARGATE", "EC2", "EXTERNAL"),
        root_format="directory",
        network="netns",
        owns_kernel=True,
    )

    def __init__(self, clock: Clock, ids: IdSource, world: FakeWorld | None = None) -> None:
        self._clock = clock
        self._ids = ids
        self._world = world or FakeWorld()

    async def fingerprint(self) -> DriverFactMsg:
        return DriverFactMsg(name=self.name, launch_types=self.capabilities.launch_types, healthy=True)

    async def create(self, spec: SandboxSpec) -> Handle:
        self._world.sandboxes[spec.task.task_id] = _Sandbox(spec)
        return Handle(driver=self.name, format=1, task_id=spec.task.task_id, state={})

    async def adopt(self, handle: Handle, spec: SandboxSpec) -> tuple[ObservedContainer, ...]:
        sandbox = self._sandbox(handle)
        return tuple(
            ObservedContainer(name=n, runtime_id=c.runtime_id, running=True, started_at=c.started_at)
            for n, c in sandbox.running.items()
        )

    async def start_container(self, handle: Handle, container: ContainerSpec) -> StartedContainer:
        sandbox, dials = self._sandbox(handle), container.environment
        if delay := dials.get("HUTCH_FAKE_START_MS"):
            await asyncio.sleep(int(delay) / 1000)
        if text := dials.get("HUTCH_FAKE_START_ERROR"):
            raise DriverError("ExecNotFound", text, aws_prefix="CannotStartContainerError")
        started = StartedContainer(runtime_id=self._ids.hex(32), started_at=self._clock.now())
        sandbox.running[container.name] = started
        sandbox.environments[container.name] = dials
        if line := dials.get("HUTCH_FAKE_LOG"):
            self._write(sandbox, container.name, line)
        loop = asyncio.get_running_loop()
        if run_ms := dials.get("HUTCH_FAKE_RUN_MS"):
            status = ExitStatus(
                exit_code=int(dials.get("HUTCH_FAKE_EXIT", "0")),
                signal=int(dials.get("HUTCH_FAKE_SIGNAL", "0")),
                oom=dials.get("HUTCH_FAKE_OOM") == "1",
                oom_process=container.name if dials.get("HUTCH_FAKE_OOM") else "",
            )
            end = lambda: self._end(sandbox, container.name, started, status)  # noqa: E731
            sandbox.timers.append(loop.call_later(int(run_ms) / 1000, end))
        if vanish_ms := dials.get("HUTCH_FAKE_VANISH_MS"):
            sandbox.timers.append(loop.call_later(int(vanish_ms) / 1000, self.vanish, handle.task_id))
        return started

    async def signal_container(self, handle: Handle, container: str, signal: int) -> None:
        sandbox = self._sandbox(handle)
        started = sandbox.running.get(container)
        ignores = sandbox.environments.get(container, {}).get("HUTCH_FAKE_IGNORE_TERM") == "1"
        if started is not None and (signal == _SIGKILL or not ignores):
            self._end(sandbox, container, started, ExitStatus(exit_code=128 + signal, signal=signal))

    async def probe(
        self, handle: Handle, container: str, command: tuple[str, ...], timeout_s: float
    ) -> ProbeResult:
        dials = self._sandbox(handle).environments.get(container, {})
        return ProbeResult(exit_code=1 if dials.get("HUTCH_FAKE_UNHEALTHY") == "1" else 0)

    async def events(self, handle: Handle) -> AsyncIterator[SandboxEvent]:
        sandbox = self._sandbox(handle)
        while True:
            event = await sandbox.events.get()
            yield event
            if isinstance(event, SandboxExited):
                return

    async def stats(self, handle: Handle) -> SandboxStats:
        names = self._sandbox(handle).running
        return SandboxStats(
            host_cpu_ns=0,
            host_memory_bytes=0,
            containers={n: ContainerStats(cpu_ns=0, memory_bytes=0) for n in names},
        )

    async def destroy(self, handle: Handle) -> None:
        self._remove(handle.task_id)

    async def destroy_leftovers(self, directory: str, task_id: str) -> None:
        self._remove(task_id)

    async def close(self) -> None:
        return None

    def vanish(self, task_id: str) -> None:
        """The sandbox ends by itself, as a VM that was killed."""
        sandbox = self._world.sandboxes.get(task_id)
        if sandbox is not None and not sandbox.gone:
            sandbox.gone = True
            text = "the sandbox vanished"
            sandbox.events.put_nowait(SandboxExited(at=self._clock.now(), kind="SandboxVanished", text=text))

    def _end(self, sandbox: _Sandbox, name: str, started: StartedContainer, status: ExitStatus) -> None:
        if sandbox.running.get(name) is started:
            del sandbox.running[name]
            event = ContainerExited(
                container=name, runtime_id=started.runtime_id, status=status, at=self._clock.now()
            )
            sandbox.events.put_nowait(event)

    def _write(self, sandbox: _Sandbox, name: str, line: str) -> None:
        path = Path(sandbox.spec.directory) / "logs" / f"{name}.log"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("ab") as f:
            f.write(encode_lines(int(self._clock.now() * 1e9), 1, line.encode() + b"\n"))

    def _sandbox(self, handle: Handle) -> _Sandbox:
        sandbox = self._world.sandboxes.get(handle.task_id)
        if sandbox is None or sandbox.gone:
            raise SandboxGone("SandboxVanished", "the sandbox is not there any more")
        return sandbox

    def _remove(self, task_id: str) -> None:
        sandbox = self._world.sandboxes.pop(task_id, None)
        if sandbox is not None:
            for timer in sandbox.timers:
                timer.cancel()


class FakeImages:
    """An image store in which every image is there already."""

    async def prepare(
        self,
        reference: str,
        *,
        architecture: str,
        root_format: str,
        credentials: tuple[str, str] | None = None,
        max_bytes: int,
    ) -> RootImage:
        return RootImage(
            reference=reference, digest="sha256:" + "0" * 64, config={"Cmd": ["true"]}, directory="/"
        )

    def acquire(self, digest: str, task_id: str) -> None:
        return None

    def release(self, task_id: str) -> None:
        return None

    async def import_archive(self, path: str, name: str | None) -> ImageFact:
        raise DriverError("NotServed", "the fake image store takes no archives")

    def local_images(self) -> tuple[ImageFact, ...]:
        return ()

    async def remove(self, name: str) -> bool:
        return False

    async def collect_garbage(self) -> int:
        return 0


class FakeNetwork:
    """A network without links."""

    async def set_up(self, vpc_cidr: str, subnets: tuple[tuple[str, str], ...]) -> None:
        return None

    async def attach(self, task: TaskSpec, kind: str) -> Attachment:
        return Attachment()

    async def detach(self, task: TaskSpec) -> None:
        return None

    async def remove_strays(self, task_ids: frozenset[str]) -> None:
        return None

    async def tear_down(self) -> None:
        return None
