"""The microVM driver: every task in a VM of its own, its containers run by the guest agent. See
docs/design/microvm.md."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.host.drivers.contract import (
    Capabilities,
    DriverError,
    Handle,
    HostVolume,
    ObservedContainer,
    SandboxSpec,
)
from hutch.host.drivers.file_trees import FileTrees
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.jail import Confinement, MonitorJail
from hutch.host.drivers.microvm.kept import check_kept, hold_members, keep_disks, look_spec, with_tools
from hutch.host.drivers.microvm.launcher import Launcher
from hutch.host.drivers.microvm.qemu_sandbox import Origin, QemuSandbox
from hutch.host.drivers.microvm.running import (
    observed,
    power_off,
)
from hutch.host.drivers.microvm.suspend import Suspender
from hutch.host.drivers.microvm.vm import (
    VmFiles,
    end_vm,
    server_logs,
    server_name,
)
from hutch.host.drivers.microvm.vmdriver import HANDLE_FORMAT, VmDriver, check_format
from hutch.host.drivers.microvm.warm import WarmLimits
from hutch.host.drivers.volume_disks import refuse_disks, refuse_file_systems, refuse_shared_disks
from hutch.host.kernel.process import ProcessRef, find_processes, is_alive
from hutch.wire.taskspec import ContainerSpec

log = get_logger(__name__)
KEEP_TIMEOUT_S = 10.0


class MicrovmDriver(VmDriver[QemuSandbox]):
    """Implements `hutch.host.drivers.contract.Driver` with QEMU."""

    name = "microvm"
    capabilities = Capabilities(
        launch_types=("FARGATE",), root_format="erofs", network="tap", owns_kernel=True, tells_facts=True
    )

    def __init__(
        self,
        *,
        platform_id: str,
        guest_dir: Path,
        state_dir: Path,
        accelerator: str,
        clock: Clock,
        confinement: Confinement | None = None,
        use_templates: bool = True,
        warm: WarmLimits | None = None,
        file_systems_dir: Path | None = None,
    ) -> None:
        """`accelerator` is auto, kvm or tcg; `state_dir` is the driver's own (made when needed). Without
        `use_templates` every VM boots; `warm` bounds the pool of VMs that wait for a task (None: no pool).
        `file_systems_dir`: where file systems that tasks share are (None: below `state_dir`)."""
        jail = MonitorJail(
            platform_id=platform_id, state_dir=state_dir, confinement=confinement or Confinement()
        )
        super().__init__(clock, jail, platform_id)
        self._launcher = Launcher(
            platform_id=platform_id,
            guest_dir=guest_dir,
            state_dir=state_dir,
            accelerator=accelerator,
            clock=clock,
            jail=jail,
            use_templates=use_templates,
            warm=warm or WarmLimits(),
            file_trees=FileTrees(file_systems_dir or state_dir / "filesystems"),
        )

        self._suspender = Suspender(self._launcher, jail, clock)

    async def _check(self) -> dict[str, str]:
        ground = await self._launcher.ground()
        await self._jail.check()
        await self._launcher.clean(ground)
        details = {
            "accelerator": ground.accelerator,
            "qemu": ground.qemu_version,
            "guest_kernel": ground.image.kernel_version,
        }
        if ground.verdict.boot_s:
            details["boot_ms"] = str(round(ground.verdict.boot_s * 1000))
        return details

    def _files(self, directory: str) -> VmFiles:
        return VmFiles(directory)

    async def _mounts(self, spec: SandboxSpec) -> list[dict[str, Any]]:
        return plan.disk_mounts(spec)

    async def create(self, spec: SandboxSpec) -> Handle:
        """Boot the task's VM, mount its disks, set up its network. On failure nothing is left but the
        directory."""
        return await self._create(spec, None)

    async def _create(self, spec: SandboxSpec, kept: Path | None) -> Handle:
        sandbox, phases = await self._launch(spec, partial(self._launcher.launch, spec, kept=kept))
        self._watch_servers(sandbox)
        return msgspec.structs.replace(self._handle(sandbox), phases=tuple(phases.told))

    def _handle(self, sandbox: QemuSandbox) -> Handle:
        return Handle(
            driver=self.name,
            format=HANDLE_FORMAT,
            task_id=sandbox.spec.task.task_id,
            state={
                "directory": sandbox.spec.directory,
                "pid": sandbox.ref.pid,
                "start_ticks": sandbox.ref.start_ticks,
                "origin": msgspec.to_builtins(sandbox.origin),
            },
        )

    async def adopt(self, handle: Handle, spec: SandboxSpec) -> tuple[ObservedContainer, ...]:
        """Connect to a VM that an earlier agent started. `SandboxGone` says how it ended, if it did."""
        check_format(handle)
        ref = await self._process_of(handle)
        given = handle.state.get("origin")
        origin = msgspec.convert(given, Origin) if given else None
        files = self._files(handle.state["directory"])
        sandbox = QemuSandbox(spec, files, ref, self._clock, origin=origin, is_new=False)
        # Its agent may have been killed while it was on the way to the disk, or back.
        found = await self._adopt(sandbox, may_be_frozen=True)
        self._watch_servers(sandbox)
        return found

    def _watch_servers(self, sandbox: QemuSandbox) -> None:
        name = self._vm_name(sandbox.spec.task.task_id)
        for served in server_logs(sandbox.files):
            sandbox.watch_servers(self._jail.processes(server_name(name, served.name)))

    async def _process_of(self, handle: Handle) -> ProcessRef:
        """The VM's process; another one than the handle says if the agent was killed when it had just been resumed."""
        ref = ProcessRef(pid=int(handle.state["pid"]), start_ticks=int(handle.state["start_ticks"]))
        if not is_alive(ref):
            others = await asyncio.to_thread(find_processes, self._vm_name(handle.task_id))
            return others[0] if others else ref
        return ref

    async def suspend(self, handle: Handle) -> None:
        """Take the VM to the disk; see `SupportsSuspend`."""
        sandbox = self.sandbox_of(handle)
        refuse_file_systems(sandbox.spec.task, "suspended")
        refuse_shared_disks(sandbox.spec.task, "suspended")
        await self._suspender.suspend(sandbox, self._vm_name(handle.task_id))
        del self._sandboxes[handle.task_id]

    async def is_suspended(self, handle: Handle) -> bool:
        """Whether the VM is on the disk; see `SupportsSuspend`."""
        files = VmFiles(handle.state["directory"])
        return await self._suspender.is_suspended(files, self._vm_name(handle.task_id))

    async def resume(self, handle: Handle, spec: SandboxSpec) -> Handle:
        """Bring the VM back; see `SupportsSuspend`."""
        sandbox = await self._suspender.resume(spec, self._vm_name(handle.task_id))
        self._sandboxes[handle.task_id] = sandbox
        try:
            await self._hold_to_share(sandbox)
        except DriverError as error:
            # It runs already: too much CPU is no reason to lose it.
            log.error("task not held to its share of CPU", task=handle.task_id, reason=error.message)
        return self._handle(sandbox)

    async def snapshot(self, handle: Handle, directory: str) -> None:
        """Copy the VM; see `SupportsFork`."""
        sandbox = self.sandbox_of(handle)
        refuse_file_systems(sandbox.spec.task, "copied")
        refuse_disks(sandbox.spec.task, "copied")
        await self._suspender.snapshot(sandbox, Path(directory))

    async def fork(self, directory: str, spec: SandboxSpec) -> tuple[Handle, tuple[ObservedContainer, ...]]:
        """Another task's VM from a copy; see `SupportsFork`."""
        async with self._new_vm(spec) as made:
            sandbox = await self._suspender.fork(Path(directory), spec)
            made.append(sandbox)
            await self._hold_to_share(sandbox)
        return self._handle(sandbox), observed(sandbox)

    async def keep_disk(self, handle: Handle, directory: str) -> int:
        """Let the VM end, and move its disks away; see `SupportsKeptDisks`."""
        task_id, files = handle.task_id, VmFiles(handle.state["directory"])
        sandbox = self._sandboxes.get(task_id)
        if sandbox is not None:
            if sandbox.ended is None and (reason := await power_off(sandbox, KEEP_TIMEOUT_S)):
                log.warning("a kept disk may lack what was written last", task=task_id, reason=reason)
            self._sandboxes.pop(task_id, None)
            await self._let_go(sandbox)
        await end_vm(self._vm_name(task_id), files, self._jail)
        return await asyncio.to_thread(keep_disks, files, Path(directory))

    async def open_disk(self, directory: str, spec: SandboxSpec) -> Handle:
        """A VM with copies of kept disks; see `SupportsKeptDisks`."""
        kept = Path(directory)
        await asyncio.to_thread(check_kept, kept, Path(spec.directory))
        return await self._create(look_spec(spec, self._launcher.toolbox), kept)

    async def hold_container(self, handle: Handle, container: ContainerSpec) -> None:
        """See `SupportsKeptDisks`."""
        sandbox = self.sandbox_of(handle)
        known = sandbox.started.get(container.name)
        if known is None or not known.running:
            entered = with_tools(sandbox.spec, container)
            await self._start_container(
                sandbox, entered, lambda s: hold_members(sandbox.spec, s.container, s.number)
            )

    async def volumes(self) -> tuple[HostVolume, ...]:
        """Those that outlive their tasks; see `SupportsVolumes`."""
        return await asyncio.to_thread(self._launcher.volumes.kept)

    async def remove_volume(self, name: str) -> None:
        """See `SupportsVolumes`."""
        await asyncio.to_thread(self._launcher.volumes.remove, name)

    async def make_disk_snapshot(self, disk_id: str, snapshot_id: str) -> None:
        """See `SupportsDiskSnapshots`."""
        await asyncio.to_thread(self._launcher.volumes.make_snapshot, disk_id, snapshot_id)

    async def remove_disk_snapshot(self, snapshot_id: str) -> None:
        """See `SupportsDiskSnapshots`."""
        await asyncio.to_thread(self._launcher.volumes.remove_snapshot, snapshot_id)

    async def remove_file_system(self, file_system_id: str) -> None:
        """See `SupportsFileSystems`."""
        await asyncio.to_thread(self._launcher.file_trees.remove, file_system_id)

    async def file_system_bytes(self, file_system_id: str) -> int:
        """See `SupportsFileSystems`."""
        return await asyncio.to_thread(self._launcher.file_trees.allocated_bytes, file_system_id)

    async def close(self) -> None:
        """Let go of all VMs without touching them."""
        await self._launcher.close()
        await super().close()
