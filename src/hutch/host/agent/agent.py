"""The host agent: keeps this host's tasks as the control plane wants them, and tells it what happens to them.

Tasks go on while the control plane, or this agent, is away. On start everything on disk is taken over; on each
connect the whole list of assignments is reconciled.
"""

import asyncio
import contextlib
import os
import platform
from pathlib import Path
from random import Random

import msgspec

from hutch import __version__
from hutch.base.background import Background
from hutch.base.clock import Clock
from hutch.base.errors import HutchError, Invalid
from hutch.base.log import get_logger
from hutch.base.retry import backoff_seconds
from hutch.base.units import CPU_UNITS_PER_VCPU, GIB, KIB, MIB
from hutch.host.agent.context import Ingress, RunnerContext
from hutch.host.agent.credentials import RoleCredentials
from hutch.host.agent.driverwatch import DriverWatch
from hutch.host.agent.endpoint import TaskEndpoint
from hutch.host.agent.execs import TaskExecs
from hutch.host.agent.filesystems import HostFileSystems
from hutch.host.agent.findingbatches import FindingBatches
from hutch.host.agent.kept import KeptDisks, KeptLimits
from hutch.host.agent.link import ControlLink
from hutch.host.agent.logbatches import LogBatches
from hutch.host.agent.prefetch import ImagePrefetch
from hutch.host.agent.preflight import HostPreflight
from hutch.host.agent.reports import Reports
from hutch.host.agent.requests import Requests
from hutch.host.agent.snapshots import Snapshots
from hutch.host.agent.taskbook import TaskBook
from hutch.host.agent.tasks import HostTasks
from hutch.host.agent.threats import ThreatDesk
from hutch.host.agent.volumes import HostVolumes
from hutch.host.drivers.contract import Driver, HostFault
from hutch.host.images.archives import write_atomically
from hutch.host.images.contract import ImageStore
from hutch.host.kernel.inotify import FileWatcher
from hutch.host.network.contract import HostNetwork
from hutch.rules.threats.document import ThreatRules
from hutch.wire import fleet as wire
from hutch.wire.codec import read_message
from hutch.wire.facts import Fingerprint, TaskFacts

log = get_logger(__name__)

LAST_REPORTS_S = 5.0


class AgentContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent is made of; its composition root gives all of it."""

    host_id: str
    name: str
    state_directory: Path
    drivers: tuple[Driver, ...]
    images: ImageStore
    network: HostNetwork
    ingress: Ingress
    clock: Clock
    control_socket: Path
    memory_mib: int = 0
    """Memory to offer; 0: all that the machine has."""
    kept_disks: KeptLimits = KeptLimits()
    install_places: tuple[Path, ...] = ()
    """Directories whose new files may heal a driver that can't run."""
    threat_rules: ThreatRules | None = None
    """By which processes of tasks are judged; None: threat detection is off."""


class HostAgent:
    """One per host and platform."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._network_path = context.state_directory / "network.json"
        self._heartbeat: asyncio.Task[None] | None = None
        self._watcher = FileWatcher()
        self._driver_watch = DriverWatch(context.drivers, self._watcher, context.install_places)
        self._link = ControlLink()
        self._reports = Reports(self._link)
        self._log_batches = LogBatches(self._link)
        self._finding_batches = FindingBatches(self._link)
        self._threats = ThreatDesk(context.threat_rules, context.clock, self._finding_batches.send)
        self._book = TaskBook(context.state_directory / "tasks.db")
        self._snapshots = Snapshots(context.state_directory / "snapshots")
        self._kept = KeptDisks(
            context.state_directory / "kept-disks",
            context.drivers,
            context.images,
            context.clock,
            context.kept_disks,
        )
        shared = RunnerContext(
            images=context.images,
            network=context.network,
            ingress=context.ingress,
            clock=context.clock,
            watcher=self._watcher,
            book=self._book,
            snapshots=self._snapshots,
            kept=self._kept,
            threats=self._threats,
            report=self._report,
            send_logs=self._log_batches.send,
        )
        self._tasks = HostTasks(
            shared, context.state_directory, context.drivers, self._driver_watch, self._task_forgotten
        )
        self._credentials = RoleCredentials(context.clock, self._want_credentials)
        self._endpoint = TaskEndpoint(self._tasks.view_at, self._credentials, context.clock)
        self._execs = TaskExecs(context.host_id, context.control_socket, self._tasks.exec)
        volumes = HostVolumes(context.drivers, self._tasks.running_specs)
        prefetch = ImagePrefetch(
            context.images, context.drivers, lambda: self._driver_watch.facts, context.clock
        )
        self._requests = Requests(
            link=self._link,
            tasks=self._tasks,
            execs=self._execs,
            images=context.images,
            prefetch=prefetch,
            preflight=HostPreflight(context.images, context.ingress),
            snapshots=self._snapshots,
            kept=self._kept,
            volumes=volumes,
            file_systems=HostFileSystems(context.drivers),
        )
        self._beside = Background(lambda error: log.error("request failed", reason=repr(error)))

    async def start(self) -> None:
        """Look at what the host can do, and take over the tasks that are on disk."""
        await asyncio.to_thread(self._snapshots.clear)
        await self._driver_watch.look()
        try:
            await self._set_up_network(self._load_network())
        except HostFault as fault:
            log.error("network not set up", reason=fault.message, fix=fault.fix)
        await self._tasks.take_over()

    async def serve(self) -> None:
        """Stay connected to the control plane, for ever."""
        rng = Random(self._context.host_id)
        delays = backoff_seconds(0.05, 1.0, rng)
        watching = asyncio.create_task(self._driver_watch.run(self._drivers_changed))
        telling = asyncio.create_task(self._threats.run())
        try:
            while True:
                if await self._connect_once():
                    delays = backoff_seconds(0.05, 1.0, rng)
                    self._driver_watch.suspect()
                await self._wait_for_socket(next(delays))
        finally:
            watching.cancel()
            telling.cancel()
            await asyncio.gather(watching, telling, return_exceptions=True)

    def _drivers_changed(self) -> None:
        if self._link.welcomed.is_set():
            self._link.send(wire.Refreshed(fingerprint=self._fingerprint()))

    async def _connect_once(self) -> bool:
        """One connection, from its beginning to its end; whether there was one."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._context.control_socket))
        except OSError:
            return False
        self._link.opened(writer)
        sender = asyncio.create_task(self._reports.keep_sending())
        try:
            await self._converse(reader)
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError, Invalid) as error:
            log.info("control plane connection ended", reason=str(error) or type(error).__name__)
        except HutchError as error:
            log.error("control plane can't be served", reason=error.message)
        finally:
            self._link.ended()
            self._reports.disconnected()
            sender.cancel()
            self._log_batches.disconnected()
            self._finding_batches.disconnected()
            self._credentials.disconnected()
            if self._heartbeat is not None:
                self._heartbeat.cancel()
                self._heartbeat = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            await asyncio.gather(sender, return_exceptions=True)
        return True

    async def _say_alive(self, every_s: float) -> None:
        """For ever. On this loop and no other: an agent that hangs says nothing."""
        while True:
            await asyncio.sleep(every_s)
            self._link.send(wire.Alive())

    async def _wait_for_socket(self, delay_s: float) -> None:
        """Before another try: a while, or until something happens where the control plane makes its socket."""
        directory = self._context.control_socket.parent
        if not directory.is_dir():
            await asyncio.sleep(delay_s)
            return
        watch = self._watcher.watch(directory)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await watch.changed.wait()
        finally:
            watch.close()

    async def shut_down(self, *, keep_tasks: bool) -> None:
        """Let the tasks go on without us; or stop them all in order and remove what we made on the host."""
        await self._execs.close()
        if keep_tasks:
            await self._tasks.let_go()
        else:
            await self._tasks.stop_all()
            # What is not acknowledged by then the control plane hears of at the next start.
            await self._reports.until_acknowledged(LAST_REPORTS_S)
            await self._context.network.tear_down()
        await self._endpoint.close()
        await self._beside.end()
        await self._tasks.close()
        await self._snapshots.close()
        await self._kept.close()
        for driver in self._context.drivers:
            await driver.close()
        self._watcher.close()
        await self._book.close()

    # -- the conversation

    async def _converse(self, reader: asyncio.StreamReader) -> None:
        fingerprint = self._fingerprint()
        self._link.send(
            wire.Hello(
                protocol=wire.PROTOCOL_VERSION,
                host_id=self._context.host_id,
                fingerprint=fingerprint,
                task_ids=self._tasks.ids(),
                local_images=self._context.images.local_images(),
            )
        )
        welcome = await read_message(reader, wire.ToHost)
        if not isinstance(welcome, wire.Welcome):
            raise Invalid("the control plane did not say welcome")
        self._reports.welcomed(welcome.acked_seq)
        await self._set_up_network(welcome)
        self._link.welcomed.set()
        if welcome.alive_every_s > 0:
            self._heartbeat = asyncio.create_task(self._say_alive(welcome.alive_every_s))
        if tuple(self._driver_watch.facts.values()) != fingerprint.drivers:
            self._drivers_changed()
        self._reports.send_all_again()
        while True:
            self._take(await read_message(reader, wire.ToHost))

    def _take(self, message: wire.ToHost) -> None:
        if isinstance(message, wire.Assignments):
            self._tasks.reconcile(message)
        elif isinstance(message, wire.Assign):
            self._tasks.assign(message.task)
        elif isinstance(message, wire.Stop):
            self._tasks.stop(message)
        elif isinstance(message, wire.Ack):
            self._reports.acknowledged(message.seq)
        elif isinstance(message, wire.LogAck):
            self._log_batches.acknowledged(message)
        elif isinstance(message, wire.FindingsAck):
            self._finding_batches.acknowledged(message)
        elif isinstance(message, wire.Forget):
            self._tasks.forget(message.task_id)
        elif isinstance(message, wire.CredentialsGiven):
            self._credentials.given(message)
        elif isinstance(message, wire.Request):
            self._beside.start(self._requests.answer(message))

    def _report(self, facts: TaskFacts) -> None:
        if facts.stop_code == "TaskFailedToStart":
            self._driver_watch.suspect()
        self._reports.report(facts)

    def _task_forgotten(self, task_id: str) -> None:
        self._credentials.forget(task_id)
        self._endpoint.forget(task_id)
        self._threats.forget(task_id)

    def _want_credentials(self, wanted: wire.CredentialsWanted) -> bool:
        if not self._link.welcomed.is_set():
            return False
        self._link.send(wanted)
        return True

    async def _set_up_network(self, welcome: wire.Welcome | None) -> None:
        """Bring the host's network to what the control plane says; remembered, for a start without it."""
        if welcome is None:
            return
        known = self._load_network()
        await self._context.network.set_up(welcome.vpc_cidr, welcome.subnets)
        if not self._endpoint.is_serving:
            await self._serve_tasks()
            self._beside.start(self._serve_api())
        if known is None or (known.vpc_cidr, known.subnets) != (welcome.vpc_cidr, welcome.subnets):
            await asyncio.to_thread(write_atomically, self._network_path, msgspec.json.encode(welcome))

    async def _serve_tasks(self) -> None:
        """A task without credentials is better than none: what keeps them from being served is told, and no more."""
        try:
            listening = self._context.network.endpoint_socket()
        except HostFault as fault:
            log.error("task endpoint not served", reason=fault.message, fix=fault.fix)
            return
        if listening is not None:
            await self._endpoint.start(listening)

    async def _serve_api(self) -> None:
        try:
            await self._context.ingress.serve_api()
        except HostFault as fault:
            log.error("API not served to tasks", reason=fault.message, fix=fault.fix)

    def _load_network(self) -> wire.Welcome | None:
        try:
            return msgspec.json.decode(self._network_path.read_bytes(), type=wire.Welcome)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            log.warning("network file unreadable", file=str(self._network_path), reason=str(error))
            return None

    # -- the host itself

    def _fingerprint(self) -> Fingerprint:
        cpus = os.cpu_count() or 1
        disk = os.statvfs(self._context.state_directory)
        return Fingerprint(
            name=self._context.name,
            agent_version=__version__,
            architecture=platform.machine(),
            cpu_units=cpus * CPU_UNITS_PER_VCPU,
            memory_mib=self._context.memory_mib or total_memory_bytes() // MIB,
            disk_gib=disk.f_bavail * disk.f_frsize // GIB,
            drivers=tuple(self._driver_watch.facts.values()),
            attributes={
                "hutch.drivers": ",".join(n for n, f in self._driver_watch.facts.items() if f.healthy)
            },
        )


def total_memory_bytes() -> int:
    """What the kernel says this machine has."""
    with open("/proc/meminfo") as f:
        line = next(x for x in f if x.startswith("MemTotal:"))
    return int(line.split()[1]) * KIB
