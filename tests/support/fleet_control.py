"""A control plane's end of the fleet connection, for tests of the host agent: it remembers, and does as it is told."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hutch.base.clock import SystemClock
from hutch.host.agent.agent import AgentContext, HostAgent
from hutch.host.agent.kept import KeptLimits
from hutch.host.drivers.contract import Driver
from hutch.host.drivers.fake import FakeDriver
from hutch.host.drivers.fake_host import FakeImages, FakeIngress, FakeNetwork
from hutch.wire import fleet as wire
from hutch.wire.codec import read_message, write_message
from hutch.wire.facts import Fingerprint, TaskFacts
from hutch.wire.taskspec import ContainerSpec, TaskSpec

TIMEOUT_S = 60.0


class ControlEnd:
    """Serves host agents on a unix socket. Reports of a status in `withheld` are not acknowledged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.withheld: frozenset[str] = frozenset()
        self.log_acks = True
        self.tasks: dict[str, TaskSpec] = {}
        self.stops: dict[str, wire.Stop] = {}
        self.reports: list[wire.Report] = []
        self.facts: dict[str, TaskFacts] = {}
        self.hellos: list[wire.Hello] = []
        self.fingerprints: list[Fingerprint] = []
        self.batches: list[wire.LogBatch] = []
        self.replies: dict[str, wire.Reply] = {}
        self.acked_seq = 0
        self.alive_every_s = 0.0
        self.alive = 0
        """How often the host has said so."""
        self._news = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def close(self) -> None:
        """Go away: no socket, no connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    def send(self, message: wire.ToHost) -> None:
        assert self._writer is not None
        write_message(self._writer, message)

    def assign(self, task: TaskSpec) -> None:
        self.tasks[task.task_id] = task
        if self._writer is not None:
            self.send(wire.Assign(task=task))

    def stop(self, task_id: str, reason: str = "Task stopped by user") -> None:
        self.stops[task_id] = wire.Stop(task_id=task_id, stop_code="UserInitiated", reason=reason)
        if self._writer is not None:
            self.send(self.stops[task_id])

    def forget(self, task_id: str) -> None:
        self.tasks.pop(task_id, None)
        self.stops.pop(task_id, None)
        self.send(wire.Forget(task_id=task_id))

    async def request(self, verb: str, **arguments: Any) -> wire.Reply:
        request_id = f"r{len(self.replies)}"
        self.send(wire.Request(request_id=request_id, verb=verb, arguments=arguments))
        await self.until(lambda: request_id in self.replies)
        return self.replies[request_id]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for news until something holds."""
        async with asyncio.timeout(TIMEOUT_S), self._news:
            await self._news.wait_for(holds)

    async def until_status(self, task_id: str, status: str) -> TaskFacts:
        await self.until(lambda: task_id in self.facts and self.facts[task_id].status == status)
        return self.facts[task_id]

    def statuses(self, task_id: str) -> list[str]:
        """The states that were reported, in order, each once."""
        seen: list[str] = []
        for report in self.reports:
            if report.facts.task_id == task_id and report.facts.status not in seen[-1:]:
                seen.append(report.facts.status)
        return seen

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._converse(reader, writer)
        finally:
            self._serving.discard(task)
            self._writer = None
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await read_message(reader, wire.FromHost)
        assert isinstance(hello, wire.Hello)
        self.hellos.append(hello)
        self._writer = writer
        self.send(
            wire.Welcome(
                host_id=hello.host_id,
                acked_seq=self.acked_seq,
                platform_id="t1",
                vpc_cidr="172.31.0.0/16",
                subnets=(("172.31.0.0/20", "172.31.0.1"),),
                alive_every_s=self.alive_every_s,
            )
        )
        self.send(wire.Assignments(tasks=tuple(self.tasks.values()), stop=tuple(self.stops.values())))
        await self._tell()
        while True:
            message = await read_message(reader, wire.FromHost)
            if isinstance(message, wire.Report):
                self._take_report(message)
            elif isinstance(message, wire.Alive):
                self.alive += 1
            elif isinstance(message, wire.Refreshed):
                self.fingerprints.append(message.fingerprint)
            elif isinstance(message, wire.LogBatch):
                self.batches.append(message)
                if self.log_acks:
                    self.send(wire.LogAck(batch=message.batch))
            elif isinstance(message, wire.Reply):
                self.replies[message.request_id] = message
            await self._tell()

    def _take_report(self, report: wire.Report) -> None:
        self.reports.append(report)
        self.facts[report.facts.task_id] = report.facts
        if report.facts.status not in self.withheld:
            self.acked_seq = max(self.acked_seq, report.seq)
            self.send(wire.Ack(seq=report.seq))

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


class Host:
    """A host whose agents come and go: what is on it stays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "host"
        self.directory.mkdir()
        self.socket = directory / "fleet.sock"
        self.install_place = directory / "bin"
        self.install_place.mkdir()
        self.control = ControlEnd(self.socket)
        self.images, self.network, self.ingress = FakeImages(), FakeNetwork(), FakeIngress()
        self.kept_disks = KeptLimits()
        self.driver: Driver = FakeDriver(clock=SystemClock())
        self.agent: HostAgent | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start_agent(self, driver: Driver | None = None) -> HostAgent:
        """A new agent process, as far as a test can tell."""
        self.driver = driver or FakeDriver(clock=SystemClock())
        self.agent = HostAgent(
            AgentContext(
                host_id="i-0123456789abcdef0",
                name="test",
                state_directory=self.directory,
                drivers=(self.driver,),
                images=self.images,
                network=self.network,
                ingress=self.ingress,
                clock=SystemClock(),
                control_socket=self.socket,
                kept_disks=self.kept_disks,
                install_places=(self.install_place,),
            )
        )
        await self.agent.start()
        self._serving = asyncio.create_task(self.agent.serve())
        return self.agent

    async def kill_agent(self) -> None:
        """As `kill -9`: nothing is told, nothing is cleaned up; only this process's own tasks and timers end."""
        assert self.agent is not None
        await self._end_serving()
        await self.agent.shut_down(keep_tasks=True)
        self.agent = None

    async def shut_down(self, *, keep_tasks: bool) -> None:
        assert self.agent is not None
        await self.agent.shut_down(keep_tasks=keep_tasks)
        await self._end_serving()
        self.agent = None

    async def _end_serving(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self._serving = None

    async def close(self) -> None:
        if self.agent is not None:
            await self.kill_agent()
        await self.control.close()

    def remains(self, task_id: str) -> list[str]:
        """What the host still has of a task besides its file and its logs."""
        left = [str(p) for p in self.directory.glob(f"tasks/{task_id}/fake.*")]
        left += ["port"] if task_id in self.network.ports else []
        left += ["images"] if task_id in self.images.used else []
        left += ["endpoint"] if task_id in self.ingress.published else []
        return left


def make_container(name: str = "app", **changes: Any) -> ContainerSpec:
    """A container; upper-case arguments are dials of the fake driver (RUN_MS=5: HUTCH_FAKE_RUN_MS)."""
    dials = {f"HUTCH_FAKE_{k}": str(v) for k, v in changes.items() if k.isupper()}
    members = {k: v for k, v in changes.items() if not k.isupper()}
    members.setdefault("image", "nginx:1")
    return ContainerSpec(name=name, container_id=f"id-{name}", environment=dials, **members)


def make_task(task_id: str, *containers: ContainerSpec, **changes: Any) -> TaskSpec:
    """A Fargate task of these containers."""
    members: dict[str, Any] = {
        "cluster": "default",
        "arn": f"arn:aws:ecs:us-east-1:000000000000:task/default/{task_id}",
        "family": "web",
        "revision": 1,
        "launch_type": "FARGATE",
        "cpu_units": 256,
        "memory_mib": 512,
        "ephemeral_gib": 20,
        "network_mode": "awsvpc",
        **changes,
    }
    return TaskSpec(task_id=task_id, containers=containers or (make_container(),), **members)
