"""The host agent: keeps this host's tasks as the control plane wants them, and tells it what happens to them.

Tasks go on while the control plane, or this agent, is away. On start everything on disk is taken over; on each
connect the whole list of assignments is reconciled.
"""

import asyncio
import contextlib
import os
import platform
import re
import shutil
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from hutch import __version__
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
from hutch.host.agent.metadata import TaskView
from hutch.host.agent.prefetch import ImagePrefetch
from hutch.host.agent.runner import TaskRunner
from hutch.host.agent.snapshots import Snapshots
from hutch.host.agent.taskbook import TaskBook
from hutch.host.agent.taskfile import TaskFile
from hutch.host.agent.tasklogs import prune_logs, read_tail
from hutch.host.agent.volumes import HostVolumes
from hutch.host.drivers.contract import Driver, ExecStream, HostFault
from hutch.host.images.archives import write_atomically
from hutch.host.images.contract import ImageStore
from hutch.host.kernel.inotify import FileWatcher
from hutch.host.network.contract import HostNetwork
from hutch.model.exec import ExecSpec
from hutch.model.task import CauseLink
from hutch.rules.awslogs import parse_options
from hutch.wire import fleet as wire
from hutch.wire.codec import read_message, write_message

log = get_logger(__name__)

GARBAGE_AFTER_TASKS = 20
MAX_LOG_TAIL = 10_000
_TASK_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_CONTAINER_NAME = re.compile(r"[0-9A-Za-z_-]{1,255}")
DOWN = wire.Stop(task_id="", stop_code="UserInitiated", reason="The platform was stopped (hutch down)")


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
    install_places: tuple[Path, ...] = ()
    """Directories whose new files may heal a driver that can't run."""


class HostAgent:
    """One per host and platform."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._tasks_directory = context.state_directory / "tasks"
        self._kept_logs = context.state_directory / "stopped-task-logs"
        self._book = TaskBook(context.state_directory / "tasks.db")
        self._runners: dict[str, TaskRunner] = {}
        self._volumes = HostVolumes(context.drivers, lambda: [self._runners[t].spec for t in self._running])
        self._running: dict[str, asyncio.Task[None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._connected = asyncio.Event()
        self._unacked: dict[int, wire.Report] = {}
        self._seq = 0
        self._batch = 0
        self._log_waits: dict[int, asyncio.Future[str]] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._ended_since_collection = 0
        self._closing = False
        self._greeted = False
        self._watcher = FileWatcher()
        self._driver_watch = DriverWatch(context.drivers, self._watcher, context.install_places)
        self._network_path = context.state_directory / "network.json"
        self._newest: dict[str, int] = {}
        """Task ids to the number of their newest report."""
        self._unsent: set[int] = set()
        self._reported = asyncio.Event()
        self._acked = asyncio.Event()
        self._orphans: set[str] = set()
        self._forgetting: set[str] = set()
        self._forgotten = 0
        self._snapshots = Snapshots(context.state_directory / "snapshots")
        self._runner_context = RunnerContext(
            images=context.images,
            network=context.network,
            ingress=context.ingress,
            clock=context.clock,
            watcher=self._watcher,
            book=self._book,
            snapshots=self._snapshots,
            report=self._report,
            send_logs=self._send_logs,
        )
        self._credentials = RoleCredentials(context.clock, self._want_credentials)
        self._endpoint = TaskEndpoint(self._task_at, self._credentials, context.clock)
        self._prefetch = ImagePrefetch(
            context.images, context.drivers, lambda: self._driver_watch.facts, context.clock
        )
        self._execs = TaskExecs(context.host_id, context.control_socket, self._exec)

    async def start(self) -> None:
        """Look at what the host can do, and take over the tasks that are on disk."""
        self._tasks_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kept_logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(prune_logs, self._kept_logs, self._context.clock.now())
        await asyncio.to_thread(self._snapshots.clear)
        await self._driver_watch.look()
        try:
            await self._set_up_network(self._load_network())
        except HostFault as fault:
            log.error("network not set up", reason=fault.message, fix=fault.fix)
        known = []
        contents = await asyncio.to_thread(self._book.open)
        for directory in sorted(self._tasks_directory.iterdir()):
            if directory.name not in contents:
                await self._remove_unrecorded(directory)
        for task_id, content in sorted(contents.items()):
            directory = self._tasks_directory / task_id
            directory.mkdir(mode=0o700, exist_ok=True)
            if content.handle is None and not content.ended:
                await self._discard(directory, content)
            else:
                known.append((directory, content))
        await self._context.network.remove_strays(frozenset(c.spec.task_id for _, c in known))
        for directory, content in known:
            self._adopt(directory, content)

    async def _discard(self, directory: Path, content: TaskFile) -> None:
        """A set-up that was cut off: what it left is removed, and the next assignments start the task anew (only
        they hold the registry credentials)."""
        for driver in self._context.drivers:
            if content.driver in ("", driver.name):
                await TaskRunner(self._runner_context, driver, "", directory, content).discard()
        await asyncio.to_thread(shutil.rmtree, directory, True)
        await self._book.remove(content.spec.task_id)

    async def serve(self) -> None:
        """Stay connected to the control plane, for ever."""
        rng = Random(self._context.host_id)
        delays = backoff_seconds(0.05, 1.0, rng)
        watching = asyncio.create_task(self._driver_watch.run(self._drivers_changed))
        try:
            while True:
                if await self._connect_once():
                    delays = backoff_seconds(0.05, 1.0, rng)
                    self._driver_watch.suspect()
                await self._wait_for_socket(next(delays))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _drivers_changed(self) -> None:
        if self._connected.is_set():
            self._send(wire.Refreshed(fingerprint=self._fingerprint()))

    async def _connect_once(self) -> bool:
        """One connection, from its beginning to its end; whether there was one."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._context.control_socket))
        except OSError:
            return False
        self._writer = writer
        sender = asyncio.create_task(self._send_reports(writer))
        try:
            await self._converse(reader)
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError, Invalid) as error:
            log.info("control plane connection ended", reason=str(error) or type(error).__name__)
        except HutchError as error:
            log.error("control plane can't be served", reason=error.message)
        finally:
            self._writer = None
            self._connected.clear()
            self._acked.set()
            sender.cancel()
            for wait in self._log_waits.values():
                wait.cancel()
            self._log_waits.clear()
            self._credentials.disconnected()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            await asyncio.gather(sender, return_exceptions=True)
        return True

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
        self._closing = True
        await self._execs.close()
        if keep_tasks:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
        else:
            for each in self._runners.values():
                each.stop(
                    DOWN, CauseLink(kind="PlatformStopped", text="the platform was stopped on this host")
                )
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            await self._wait_acknowledged(5.0)
            await self._context.network.tear_down()
        await self._endpoint.close()
        for request in list(self._requests):
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        for runner in self._runners.values():
            await runner.close()
        await self._snapshots.close()
        for driver in self._context.drivers:
            await driver.close()
        self._watcher.close()
        await self._book.close()

    async def _wait_acknowledged(self, timeout_s: float) -> None:
        """Give the control plane the time to hear of the last stops; else it hears of them at the next start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._unacked and self._writer is not None:
                    self._acked.clear()
                    await self._acked.wait()

    # -- the conversation

    async def _converse(self, reader: asyncio.StreamReader) -> None:
        fingerprint = self._fingerprint()
        self._send(
            wire.Hello(
                protocol=wire.PROTOCOL_VERSION,
                host_id=self._context.host_id,
                fingerprint=fingerprint,
                task_ids=tuple(self._runners),
                local_images=self._context.images.local_images(),
            )
        )
        welcome = await read_message(reader, wire.ToHost)
        if not isinstance(welcome, wire.Welcome):
            raise Invalid("the control plane did not say welcome")
        if self._greeted:
            self._acknowledged(welcome.acked_seq)
        else:
            self._renumber(welcome.acked_seq)
        await self._set_up_network(welcome)
        self._connected.set()
        if tuple(self._driver_watch.facts.values()) != fingerprint.drivers:
            self._drivers_changed()
        self._unsent = set(self._unacked)
        self._reported.set()
        while True:
            await self._take(await read_message(reader, wire.ToHost))

    async def _take(self, message: wire.ToHost) -> None:
        if isinstance(message, wire.Assignments):
            self._reconcile(message)
        elif isinstance(message, wire.Assign):
            self._assign(message.task)
        elif isinstance(message, wire.Stop):
            if (named := self._runners.get(message.task_id)) is not None:
                named.stop(message)
        elif isinstance(message, wire.Ack):
            self._acknowledged(message.seq)
        elif isinstance(message, wire.LogAck):
            wait = self._log_waits.pop(message.batch, None)
            if wait is not None and not wait.done():
                wait.set_result(message.error)
        elif isinstance(message, wire.Forget):
            self._forget(message.task_id)
        elif isinstance(message, wire.CredentialsGiven):
            self._credentials.given(message)
        elif isinstance(message, wire.Request):
            self._request(self._answer(message))

    def _want_credentials(self, wanted: wire.CredentialsWanted) -> bool:
        if not self._connected.is_set():
            return False
        self._send(wanted)
        return True

    def _task_at(self, address: str) -> TaskView | None:
        """The task that runs with this address."""
        runners = (self._runners[t] for t in self._running if t in self._runners)
        interfaces = ((r, r.spec.interface) for r in runners)
        return next((r.view() for r, i in interfaces if i is not None and i.address == address), None)

    async def _set_up_network(self, welcome: wire.Welcome | None) -> None:
        """Bring the host's network to what the control plane says; remembered, for a start without it."""
        if welcome is None:
            return
        known = self._load_network()
        await self._context.network.set_up(welcome.vpc_cidr, welcome.subnets)
        if not self._endpoint.is_serving:
            await self._serve_tasks()
            self._request(self._serve_api())
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

    def _renumber(self, acked_seq: int) -> None:
        """The first welcome of this process's life: what an earlier one reported is known up to `acked_seq`, so
        all that waits here is newer."""
        self._greeted = True
        waiting = [r.facts for r in self._unacked.values()]
        self._unacked.clear()
        self._unsent.clear()
        self._newest.clear()
        self._seq = max(self._seq, acked_seq)
        for facts in waiting:
            self._report(facts)

    def _send(self, message: wire.FromHost) -> None:
        if self._writer is not None and not self._writer.is_closing():
            write_message(self._writer, message)

    def _reconcile(self, wanted: wire.Assignments) -> None:
        names = {t.task_id for t in wanted.tasks}
        for task_id, runner in self._runners.items():
            if task_id not in names:
                text = "no longer assigned to this host"
                stop = wire.Stop(task_id=task_id, stop_code="TaskFailedToStart", reason=text)
                runner.stop(stop, CauseLink(kind="NotAssigned", text=text))
        for task in wanted.tasks:
            self._assign(task)
        for stop in wanted.stop:
            if (named := self._runners.get(stop.task_id)) is not None:
                named.stop(stop)

    def _assign(self, spec: wire.TaskSpec) -> None:
        if (known := self._runners.get(spec.task_id)) is not None:
            known.take_secrets(spec)
            return
        if spec.task_id in self._orphans or self._closing:
            return
        if not _TASK_ID.fullmatch(spec.task_id):
            log.error("assignment refused", task=spec.task_id, reason="not a task id")
            return
        directory = self._tasks_directory / spec.task_id
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._adopt(directory, TaskFile(spec=spec))
        self._runners[spec.task_id].take_secrets(spec)

    def _adopt(self, directory: Path, content: TaskFile) -> None:
        task_id = content.spec.task_id
        driver, refusal = self._choose(content)
        if driver is None and content.handle is not None and not content.ended:
            # It may well run; without its driver we can neither watch nor end it.
            log.error(
                "task left alone", task=task_id, reason=refusal, fix="start with its driver in --drivers"
            )
            self._orphans.add(task_id)
            return
        runner = TaskRunner(self._runner_context, driver, refusal, directory, content)
        self._runners[task_id] = runner
        if content.facts is not None:
            # Perhaps an earlier agent's last report never arrived.
            self._report(content.facts)
        if content.ended:
            self._request(runner.run())
            return
        task = self._running[task_id] = asyncio.create_task(runner.run())
        task.add_done_callback(lambda t: self._runner_ended(task_id, t))

    def _choose(self, content: TaskFile) -> tuple[Driver | None, str]:
        """The driver of a task: the one that has it, else the first healthy one for its launch type."""
        wanted, here = content.spec.architecture, platform.machine()
        if content.handle is None and wanted != here:
            return None, f"this host is {here}, the task asks for {wanted} (runtimePlatform.cpuArchitecture)"
        reasons = []
        for driver in self._context.drivers:
            fact = self._driver_watch.facts[driver.name]
            if content.driver:
                if driver.name == content.driver:
                    return driver, ""
                reasons.append(f"it runs on driver {content.driver}")
            elif content.spec.launch_type in driver.capabilities.launch_types:
                if fact.healthy:
                    return driver, ""
                reasons.append(f"{driver.name}: {fact.reason}")
        why = "; ".join(reasons) or "no driver offers it (see --drivers)"
        return None, f"this host can't run launch type {content.spec.launch_type}: {why}"

    def _runner_ended(self, task_id: str, task: asyncio.Task[None]) -> None:
        self._running.pop(task_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task runner failed", task=task_id, reason=repr(error))
        self._ended_since_collection += 1
        if self._ended_since_collection >= GARBAGE_AFTER_TASKS and not self._closing:
            self._ended_since_collection = 0
            self._request(self._collect())

    async def _collect(self) -> None:
        try:
            await self._context.images.collect_garbage()
        except HutchError as error:
            log.warning("image cache not collected", reason=error.message)

    def _forget(self, task_id: str) -> None:
        runner = self._runners.get(task_id)
        if runner is not None and task_id not in self._running and task_id not in self._forgetting:
            self._forgetting.add(task_id)
            self._request(self._drop(task_id, runner))

    async def _drop(self, task_id: str, runner: TaskRunner) -> None:
        try:
            await runner.forget(self._kept_logs)
            self._credentials.forget(task_id)
            self._endpoint.forget(task_id)
            del self._runners[task_id]
        finally:
            self._forgetting.discard(task_id)
        self._forgotten += 1
        if self._forgotten % GARBAGE_AFTER_TASKS == 0:
            await asyncio.to_thread(prune_logs, self._kept_logs, self._context.clock.now())

    def _request(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the conversation; it ends with the agent."""
        task = asyncio.create_task(work)
        self._requests.add(task)
        task.add_done_callback(self._request_ended)

    def _request_ended(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("request failed", reason=repr(error))

    async def _remove_unrecorded(self, directory: Path) -> None:
        """A directory without a record: its set-up was cut off at the very start, or the record is damaged."""
        for driver in self._context.drivers:
            try:
                await driver.destroy_leftovers(str(directory), directory.name)
            except HostFault as fault:
                log.error("leftovers not removed", directory=str(directory), reason=fault.message)
        shutil.rmtree(directory, ignore_errors=True)
        await self._book.remove(directory.name)

    # -- reports and logs

    def _report(self, facts: wire.TaskFacts) -> None:
        """To be told until it is acknowledged. Facts are whole: an older report of the same task goes."""
        if facts.stop_code == "TaskFailedToStart":
            self._driver_watch.suspect()
        self._seq += 1
        old = self._newest.get(facts.task_id)
        if old is not None:
            self._unacked.pop(old, None)
            self._unsent.discard(old)
        self._newest[facts.task_id] = self._seq
        self._unacked[self._seq] = wire.Report(seq=self._seq, facts=facts)
        self._unsent.add(self._seq)
        self._reported.set()

    async def _send_reports(self, writer: asyncio.StreamWriter) -> None:
        """Send what is not sent yet, as fast as the other end makes it durable: while a round is under way newer facts
        replace older ones, so a busy control plane gets fewer reports and not later ones."""
        while True:
            await self._reported.wait()
            await self._connected.wait()
            self._reported.clear()
            for seq in sorted(self._unsent):
                self._unsent.discard(seq)
                report = self._unacked.get(seq)
                if report is not None:
                    write_message(writer, report)
            # Before anything is awaited: what is reported from here on is not in this round, and gets no answer in it.
            last = self._seq
            await writer.drain()
            while any(seq <= last for seq in self._unacked):
                self._acked.clear()
                await self._acked.wait()

    def _acknowledged(self, seq: int) -> None:
        for number in [s for s in self._unacked if s <= seq]:
            task_id = self._unacked.pop(number).facts.task_id
            if self._newest.get(task_id) == number:
                del self._newest[task_id]
        self._acked.set()

    async def _send_logs(
        self, task: wire.TaskSpec, container: wire.ContainerSpec, events: tuple[wire.LogEvent, ...]
    ) -> str:
        """Hand a batch over; returns when it is durable, however often the connection breaks meanwhile."""
        options = parse_options(container.log.options)
        while True:
            await self._connected.wait()
            self._batch += 1
            wait: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            self._log_waits[self._batch] = wait
            self._send(
                wire.LogBatch(
                    batch=self._batch,
                    task_id=task.task_id,
                    container=container.name,
                    group=options.group,
                    stream=container.log.stream,
                    create_group=options.create_group,
                    events=events,
                )
            )
            try:
                return await wait
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise

    # -- requests

    async def _answer(self, request: wire.Request) -> None:
        try:
            result = await self._serve_request(request.verb, request.arguments)
            self._send(wire.Reply(request_id=request.request_id, result=result))
        except HostFault as fault:
            text = f"{fault.message}; {fault.fix}" if fault.fix else fault.message
            self._send(wire.Reply(request_id=request.request_id, error_kind=fault.kind, error=text))
        except (HutchError, OSError) as error:
            self._send(wire.Reply(request_id=request.request_id, error_kind="Failed", error=str(error)))

    async def _exec(self, task_id: str, container: str, spec: ExecSpec) -> ExecStream:
        runner = self._runners.get(task_id)
        if runner is None or task_id not in self._running or self._closing:
            raise HostFault("NotFound", f"task {task_id} does not run on this host")
        return await runner.exec(container, spec)

    async def _serve_request(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if verb == "task.exec":
            return await self._execs.open(arguments)
        if verb == "image.import":
            fact = await self._context.images.import_archive(arguments["path"], arguments.get("name") or None)
            built: dict[str, Any] = msgspec.to_builtins(fact)
            return built
        if verb == "image.prefetch":
            return await self._prefetch.run(arguments)
        if verb == "image.remove":
            return {"removed": await self._context.images.remove(arguments["name"])}
        if verb == "volume.list":
            return {"volumes": await self._volumes.told()}
        if verb == "volume.remove":
            await self._volumes.remove(arguments["id"])
            return {}
        if verb == "task.logs":
            return await self._read_logs(arguments["task_id"], arguments["container"], arguments["tail"])
        if verb == "task.stats":
            built = msgspec.to_builtins(await self._runner(arguments["task_id"]).stats())
            return built
        if verb == "task.suspend":
            await self._runner(arguments["task_id"]).suspend()
            return {}
        if verb == "task.resume":
            await self._runner(arguments["task_id"]).resume()
            return {}
        if verb == "task.snapshot":
            return await self._snapshot(arguments["task_id"], arguments["snapshot_id"], arguments["uses"])
        if verb == "snapshot.remove":
            await self._snapshots.remove(arguments["snapshot_id"])
            return {}
        raise Invalid(f"unknown request {verb!r}")

    async def _read_logs(self, task_id: str, container: str, tail: int) -> dict[str, Any]:
        """The newest lines of a container's file, also of a task that is forgotten."""
        if not _TASK_ID.fullmatch(task_id) or not _CONTAINER_NAME.fullmatch(container):
            raise Invalid(f"{task_id}/{container} names no container")
        current, kept = self._tasks_directory / task_id / "logs", self._kept_logs / task_id
        if task_id not in self._runners and not kept.exists():
            raise HostFault("NotFound", f"this host keeps nothing of task {task_id} any more")
        tail = min(max(1, int(tail)), MAX_LOG_TAIL)
        lines = await asyncio.to_thread(read_tail, current / f"{container}.log", tail)
        # In this order: a task that is being forgotten just now moves from the one place to the other.
        return {"lines": lines or await asyncio.to_thread(read_tail, kept / f"{container}.log", tail)}

    def _runner(self, task_id: str) -> TaskRunner:
        runner = self._runners.get(task_id)
        if runner is None or task_id not in self._running:
            raise HostFault("NotFound", f"task {task_id} does not run on this host")
        return runner

    async def _snapshot(self, task_id: str, snapshot_id: str, uses: int) -> dict[str, Any]:
        runner = self._runner(task_id)
        path = self._snapshots.expect(snapshot_id, int(uses))
        try:
            await runner.snapshot(path)
        except BaseException:
            await self._snapshots.remove(snapshot_id)
            raise
        return {}

    # -- the host

    def _fingerprint(self) -> wire.Fingerprint:
        cpus = os.cpu_count() or 1
        disk = os.statvfs(self._context.state_directory)
        return wire.Fingerprint(
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
