"""The container driver: tasks as namespaces and control groups of the host's own kernel, run by runc or crun, each
container under a conmon. For launch types EC2 and EXTERNAL. See docs/design/container.md."""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.base.threads import in_thread
from hutch.host.drivers.container import plan, rooms
from hutch.host.drivers.container.box import STARTED_FILE, Box, Start, start_id
from hutch.host.drivers.container.ending import start_fault
from hutch.host.drivers.container.exec import open_exec
from hutch.host.drivers.container.further import FurtherProcess, further_process
from hutch.host.drivers.container.kept import check_files, hold_config, keep_files, look_spec
from hutch.host.drivers.container.pause import pause_pid, start_pause
from hutch.host.drivers.container.plan import Places
from hutch.host.drivers.container.probing import run_probe
from hutch.host.drivers.container.runtime import Runtime, find_conmon, find_runtime
from hutch.host.drivers.container.shim import ShimFailed, ShimRequest, launch
from hutch.host.drivers.container.volumes import attach_volumes, shared_paths
from hutch.host.drivers.contract import (
    Capabilities,
    ContainerStats,
    DriverError,
    ExecStream,
    Handle,
    HostVolume,
    ObservedContainer,
    ProbeResult,
    SandboxEvent,
    SandboxGone,
    SandboxSpec,
    SandboxStats,
    StartedContainer,
)
from hutch.host.drivers.exec_process import exec_process
from hutch.host.drivers.facts import unhealthy
from hutch.host.drivers.oci_config import OciContext, build_further_process
from hutch.host.drivers.volume_disks import VolumeStore
from hutch.host.kernel import links
from hutch.host.kernel.cgroup import CgroupError, host_cgroups, platform_cgroup, task_cgroup
from hutch.host.kernel.container_cgroups import ContainerCgroups
from hutch.host.kernel.process import find_processes, kill_and_wait, process_use
from hutch.host.kernel.run import CommandFailed, run
from hutch.host.logs.connections import dial_container_socket
from hutch.host.logs.contract import Connection
from hutch.model.exec import ExecSpec
from hutch.rules.logdrivers.files import bounds_of
from hutch.rules.logdrivers.firelens import SOCKET_NAME
from hutch.wire.facts import DriverFactMsg
from hutch.wire.taskspec import ContainerSpec

log = get_logger(__name__)
T = TypeVar("T")
HANDLE_FORMAT = 1
START_TIMEOUT_S = 60.0
ConfigOf = Callable[[OciContext], dict[str, Any]]
"""`config.json` of a start, by where it finds its things. Raises `DriverError`."""


class ContainerDriver:
    """Implements `hutch.host.drivers.contract.Driver` with an OCI runtime."""

    name = "container"
    capabilities = Capabilities(
        launch_types=("EC2", "EXTERNAL"), root_format="directory", network="netns", owns_kernel=False
    )

    def __init__(
        self,
        *,
        platform_id: str,
        state_dir: Path,
        runtime: str,
        clock: Clock,
        toolbox: Path,
        cap_cpu: bool = False,
    ) -> None:
        """`runtime` is auto, runc, crun or runsc; `state_dir` is the driver's own (made when needed); `toolbox` has a shell
        and tools for who looks into stopped tasks (it may not be there); `cap_cpu`: no task gets more CPU than its share."""
        self._toolbox = toolbox
        self._cap_cpu = cap_cpu
        self._platform_id = platform_id
        self._state_dir = state_dir
        self._wanted_runtime = runtime
        self._clock = clock
        self._groups = ContainerCgroups()
        self._boxes: dict[str, Box] = {}
        self._runtime: Runtime | None = None
        self._conmon = ""
        self._volumes = VolumeStore(state_dir / "volumes")
        self._host = socket.gethostname()
        self._hard_nofile = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    async def fingerprint(self) -> DriverFactMsg:
        """Whether containers can run here: programs, control groups and overlays are there."""
        try:
            runtime = await self._need()
            await asyncio.to_thread(self._check_host)
        except DriverError as error:
            return unhealthy(self.name, self.capabilities, error)
        details = {
            "runtime": runtime.name,
            "runtime_version": runtime.version,
            "cgroup_version": str(self._groups.version),
        }
        return DriverFactMsg(
            name=self.name, launch_types=self.capabilities.launch_types, healthy=True, details=details
        )

    def _check_host(self) -> None:
        if os.geteuid() != 0:
            raise DriverError(
                "NotRoot", "containers on the shared kernel need root", fix="start hutch as root"
            )
        if missing := self._groups.missing():
            raise DriverError(
                "CgroupsMissing",
                f"the host's control groups lack {', '.join(missing)}",
                fix="mount cgroup2 at /sys/fs/cgroup, with these controllers enabled",
            )
        try:
            self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            rooms.try_overlay(self._state_dir)
        except OSError as error:
            raise DriverError(
                "OverlayMissing",
                f"overlayfs can't be used in {self._state_dir}: {error}",
                fix="put the data directory on ext4, xfs or btrfs, and load the kernel's overlay module",
            ) from None

    async def _need(self) -> Runtime:
        """Runtime and conmon, found once. Raises `DriverError`."""
        if self._runtime is None:
            self._conmon = find_conmon()
            self._runtime = await find_runtime(self._wanted_runtime, self._groups.version)
        return self._runtime

    async def create(self, spec: SandboxSpec) -> Handle:
        """Roots, volumes and the task's control group. On failure nothing is left but the directory."""
        return await self._create(spec, None)

    async def _create(self, spec: SandboxSpec, kept: Path | None) -> Handle:
        task_id = spec.task.task_id
        if task_id in self._boxes:
            raise DriverError("SandboxExists", f"task {task_id} has a sandbox already")
        plan.check_task(spec)
        runtime = await self._need()
        if runtime.is_gvisor:
            plan.check_gvisor(spec)
        await asyncio.to_thread(_check_needs, spec)
        ready = False
        try:
            await in_thread(self._furnish, spec, kept)
            await attach_volumes(spec, self._volumes)
            if plan.needs_pause(spec.task):
                await start_pause(
                    runtime,
                    Places(Path(spec.directory)),
                    self._group(task_id),
                    plan.runtime_id(task_id, plan.PAUSE, 1),
                    plan.INIT_PROGRAM,
                )
            ready = True
        finally:
            if not ready:
                await self._remove(task_id, spec.directory)
        self._boxes[task_id] = self._box(spec)
        state = {"directory": spec.directory, "runtime": self._wanted_runtime}
        return Handle(driver=self.name, format=HANDLE_FORMAT, task_id=task_id, state=state)

    def _furnish(self, spec: SandboxSpec, kept: Path | None) -> None:
        limits = plan.task_limits(spec.task, cap_cpu=self._cap_cpu)
        try:
            host_cgroups().make(self._group(spec.task.task_id), limits)
        except CgroupError as error:
            raise DriverError(
                "CgroupNotMade",
                f"the task's control group can't be made: {error.message}",
                aws_prefix="ResourceInitializationError",
            ) from None
        rooms.furnish(spec, self._host, kept)

    async def adopt(self, handle: Handle, spec: SandboxSpec) -> tuple[ObservedContainer, ...]:
        """Take over containers that an earlier agent started. `SandboxGone` if a conmon was lost meanwhile."""
        if handle.format != HANDLE_FORMAT:
            raise DriverError("UnknownHandle", f"handle format {handle.format} is not known here")
        await self._need()
        box = self._box(spec)
        if not box.places.box.is_dir():
            raise SandboxGone("SandboxGone", f"nothing of task {handle.task_id} is on this host any more")
        for name, number in box.load():
            await self._discard(box, name, number)
        if (end := await asyncio.to_thread(box.lost)) is not None:
            raise SandboxGone(end.kind, end.text, fix=end.fix, evidence=end.evidence)
        if (old := self._boxes.pop(handle.task_id, None)) is not None:
            await old.release()
        self._boxes[handle.task_id] = box
        box.watch_all()
        return tuple(
            ObservedContainer(
                name=s.container, runtime_id=s.runtime_id, running=s.running, started_at=s.started_at
            )
            for s in box.starts.values()
        )

    async def start_container(self, handle: Handle, container: ContainerSpec) -> StartedContainer:
        """Start a container, or start it again after its exit, on the same root."""
        box = self._known(handle)
        return await self._start_container(
            box, container, lambda context: plan.bundle_config(box.spec, container, context)
        )

    async def _start_container(
        self, box: Box, container: ContainerSpec, config: ConfigOf
    ) -> StartedContainer:
        number = box.next_number(container.name)
        started = False
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                start = await box.while_alive(self._start(box, container, number, config))
            started = True
        except ShimFailed as error:
            raise start_fault(container, error.message) from None
        except TimeoutError:
            text = f'container "{container.name}" did not start within {START_TIMEOUT_S:g} s'
            raise DriverError("StartTimedOut", text, aws_prefix="CannotStartContainerError") from None
        finally:
            if not started:
                await self._discard(box, container.name, number)
        box.add(start)
        return StartedContainer(runtime_id=start.runtime_id, started_at=start.started_at)

    async def _start(self, box: Box, container: ContainerSpec, number: int, config: ConfigOf) -> Start:
        runtime, spec, places = await self._need(), box.spec, box.places
        context = plan.oci_context(spec, container, number, await asyncio.to_thread(self._ground, box))
        bundle, identity = places.start(container.name, number), start_id(spec, container.name, number)
        await in_thread(rooms.make_bundle, bundle, config(context))
        request = ShimRequest(
            conmon=self._conmon,
            runtime=runtime.path,
            runtime_arguments=runtime.arguments(places.runtime),
            container_id=identity,
            name=container.name,
            bundle=bundle,
            log=places.log(container.name),
            max_log_bytes=bounds_of(container.log.driver, container.log.options).max_bytes,
            tty=container.tty,
            interactive=container.interactive,
        )
        made = await launch(request)
        if runtime.is_gvisor:
            await asyncio.to_thread(_give_address_back, spec)
        try:
            await run(runtime.command(places.runtime, "start", identity))
        except CommandFailed as failure:
            raise ShimFailed(failure.message) from None
        start = Start(
            container=container.name,
            number=number,
            runtime_id=identity,
            shim=made.shim,
            init_pid=made.init_pid,
            started_at=self._clock.now(),
            group=context.cgroup_path,
        )
        (bundle / STARTED_FILE).write_bytes(msgspec.json.encode(start))
        return start

    def _ground(self, box: Box) -> plan.Ground:
        """Blocking. Raises `DriverError` if something that the containers need is gone."""
        task = box.spec.task
        return plan.Ground(
            platform_id=self._platform_id,
            host=self._host,
            hard_nofile=self._hard_nofile,
            pause_pid=pause_pid(box.places) if plan.needs_pause(task) else 0,
            devices=rooms.device_nodes(task),
            volumes=shared_paths(box.spec, self._volumes),
        )

    async def _discard(self, box: Box, name: str, number: int) -> None:
        """Remove a start that did not come to its end."""
        identity = start_id(box.spec, name, number)
        for ref in await asyncio.to_thread(find_processes, identity):
            await kill_and_wait(ref)
        await self._groups.remove(f"{box.group}/{name}.{number}")
        await asyncio.to_thread(rooms.discard_bundle, box.places, box.places.start(name, number), identity)

    async def signal_container(self, handle: Handle, container: str, signal: int) -> None:
        """Send a signal to the container's first process."""
        box, runtime = self._known(handle), await self._need()
        start = box.starts.get(container)
        if start is None or not start.running:
            return
        command = runtime.command(box.places.runtime, "kill", start.runtime_id, str(signal))
        try:
            await run(command, timeout_s=START_TIMEOUT_S)
        except CommandFailed as failure:
            # An exit that we have not heard of yet looks like this; anything else is told.
            if start.running and (start.init_pid in self._groups.processes(start.group)):
                raise DriverError("SignalNotSent", failure.message) from None

    async def probe(
        self, handle: Handle, container: str, command: tuple[str, ...], timeout_s: float
    ) -> ProbeResult:
        """Run a health check's command in the container."""
        box, runtime = self._known(handle), await self._need()
        start = box.running(container)
        given = next(c for c in box.spec.task.containers if c.name == container)
        spec = msgspec.structs.replace(given, entry_point=command, command=None)
        context = plan.oci_context(box.spec, spec, start.number, await asyncio.to_thread(self._ground, box))
        process = build_further_process(spec, box.spec.images[container], context)
        return await box.while_alive(
            run_probe(
                runtime,
                box.places.runtime,
                start.runtime_id,
                box.bundle(start),
                process,
                timeout_s,
                self._further(runtime, box, start, box.bundle(start) / "probe.pid"),
            )
        )

    async def exec(self, handle: Handle, container: str, spec: ExecSpec) -> ExecStream:
        """Run a process in a container, with its own streams."""
        box, runtime = self._known(handle), await self._need()
        start = box.running(container)
        given = next(c for c in box.spec.task.containers if c.name == container)
        ground = await asyncio.to_thread(self._ground, box)
        context = plan.oci_context(box.spec, given, start.number, ground)
        process = exec_process(given, box.spec.images[container], context, spec)
        directory = box.new_exec_directory(start)
        further = self._further(runtime, box, start, directory / "pid")
        return await open_exec(runtime, box, start, process, spec, further)

    def _further(self, runtime: Runtime, box: Box, start: Start, pid_file: Path) -> FurtherProcess:
        return further_process(
            runtime,
            box.places.runtime,
            start.runtime_id,
            pid_file,
            lambda: self._groups.processes(start.group),
        )

    async def dial_router(self, handle: Handle, container: str) -> Connection:
        """Connect to the socket of the task's log router; see `SupportsLogRouter`."""
        box = self._known(handle)
        box.running(container)
        return await dial_container_socket(str(box.places.router_directory / SOCKET_NAME))

    def events(self, handle: Handle) -> AsyncIterator[SandboxEvent]:
        """The sandbox's events; see the contract."""
        return self._known(handle).events()

    async def stats(self, handle: Handle) -> SandboxStats:
        """What the control groups say; the conmons count for the host."""
        box = self._known(handle)
        stats = await asyncio.to_thread(self._stats, box)
        if stats is None:
            raise box.gone()
        return stats

    def _stats(self, box: Box) -> SandboxStats | None:
        whole = self._groups.use(box.group)
        if whole is None:
            return None
        cpu_ns, memory_bytes, containers = whole.cpu_ns, whole.memory_bytes, {}
        for name, start in box.starts.items():
            if not start.running:
                continue
            if (use := self._groups.use(start.group)) is not None:
                containers[name] = ContainerStats(
                    cpu_ns=use.cpu_ns, memory_bytes=use.memory_bytes, pids=use.pids
                )
            if (shim := process_use(start.shim)) is not None:
                cpu_ns, memory_bytes = cpu_ns + shim.cpu_ns, memory_bytes + shim.memory_bytes
        return SandboxStats(host_cpu_ns=cpu_ns, host_memory_bytes=memory_bytes, containers=containers)

    async def destroy(self, handle: Handle) -> None:
        """End all containers at once; mounts, control groups and files go, logs stay for the directory's owner."""
        await self._destroy(handle.task_id, str(handle.state["directory"]))

    async def destroy_leftovers(self, directory: str, task_id: str) -> None:
        """As `destroy`, from names alone."""
        await self._destroy(task_id, directory)

    async def keep_disk(self, handle: Handle, directory: str) -> int:
        """End all containers, and move away what they wrote; see `SupportsKeptDisks`."""
        await self._need()
        places = Places(Path(handle.state["directory"]))
        if (box := self._boxes.pop(handle.task_id, None)) is not None:
            await box.release()
        try:
            await self._end(handle.task_id, places)
            return await in_thread(_keep, places, Path(directory))
        except OSError as error:
            raise DriverError("NoDiskKept", f"the task's containers can't be ended: {error}") from None

    async def open_disk(self, directory: str, spec: SandboxSpec) -> Handle:
        """A box over kept files; see `SupportsKeptDisks`."""
        await asyncio.to_thread(check_files, Path(directory))
        return await self._create(look_spec(spec, self._toolbox), Path(directory))

    async def hold_container(self, handle: Handle, container: ContainerSpec) -> None:
        """See `SupportsKeptDisks`."""
        box = self._known(handle)
        known = box.starts.get(container.name)
        if known is None or not known.running:
            given = next(c for c in box.spec.task.containers if c.name == container.name)
            await self._start_container(
                box, given, lambda context: hold_config(box.spec, given, context, self._toolbox)
            )

    async def _destroy(self, task_id: str, directory: str) -> None:
        box = self._boxes.pop(task_id, None)
        if box is not None:
            await box.release()
        await self._remove(task_id, directory)

    async def _remove(self, task_id: str, directory: str) -> None:
        places = Places(Path(directory))
        try:
            await self._end(task_id, places)
            await in_thread(self._clear, places)
        except OSError as error:
            raise DriverError("SandboxNotRemoved", f"the task's sandbox can't be removed: {error}") from None

    async def _end(self, task_id: str, places: Places) -> None:
        """conmons and runtimes first, so that nothing new is made; then what they made. Raises `OSError`."""
        for ref in await asyncio.to_thread(find_processes, str(places.runtime)):
            await kill_and_wait(ref)
        await self._groups.remove(self._group(task_id))

    def _clear(self, places: Places) -> None:
        rooms.clear(places)
        self._groups.remove_if_empty(platform_cgroup(self._platform_id))

    async def volumes(self) -> tuple[HostVolume, ...]:
        """Those that outlive their tasks; see `SupportsVolumes`."""
        return await asyncio.to_thread(self._volumes.kept)

    async def remove_volume(self, name: str) -> None:
        """See `SupportsVolumes`."""
        await asyncio.to_thread(self._volumes.remove, name)

    async def close(self) -> None:
        """Let go of all sandboxes without touching them."""
        boxes, self._boxes = self._boxes, {}
        for box in boxes.values():
            await box.release()

    def _group(self, task_id: str) -> str:
        return task_cgroup(self._platform_id, task_id)

    def _box(self, spec: SandboxSpec) -> Box:
        return Box(spec, self._group(spec.task.task_id), self._groups, self._clock)

    def _known(self, handle: Handle) -> Box:
        box = self._boxes.get(handle.task_id)
        if box is None:
            text = f"task {handle.task_id} has no sandbox that was created or adopted here"
            raise DriverError("SandboxUnknown", text)
        return box


def _give_address_back(spec: SandboxSpec) -> None:
    """gVisor takes the address from the interface in the task's network namespace, and leaves none to the next start."""
    link, path = spec.task.interface, spec.attachment.netns_path
    if link is not None and path:
        links.address_inside(path, link.address, link.prefix_length, link.gateway)


def _keep(places: Places, directory: Path) -> int:
    rooms.unmount(places)
    return keep_files(places, directory)


def _check_needs(spec: SandboxSpec) -> None:
    """What containers ask for is on this host. Raises `DriverError`."""
    rooms.device_nodes(spec.task)
    wants_init = plan.needs_pause(spec.task) or any(c.init_process for c in spec.task.containers)
    if wants_init and not Path(plan.INIT_PROGRAM).is_file():
        raise DriverError(
            "InitMissing",
            "this host has no init for containers (initProcessEnabled, or namespaces that containers share)",
            fix="install catatonit",
            aws_prefix="CannotCreateContainerError",
        )
