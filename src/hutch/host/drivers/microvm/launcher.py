"""How a task's VM comes to be: taken from the warm pool, else restored from a template, else booted."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.base.threads import in_thread
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.file_trees import FileTrees
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.accelerator import AcceleratorChoice, Verdict
from hutch.host.drivers.microvm.file_servers import FileServers
from hutch.host.drivers.microvm.image import Saved
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.machines import (
    Ground,
    machine_of,
    task_request,
    template_key,
    template_request,
)
from hutch.host.drivers.microvm.making import (
    RESTORE_TIMEOUT_S,
    Once,
    Phases,
    host_cpu,
    let_go_on_failure,
    scratch_disk,
)
from hutch.host.drivers.microvm.programs import ProgramVersion
from hutch.host.drivers.microvm.qemu import PROGRAM, Memory
from hutch.host.drivers.microvm.qemu_process import VmRequest, launch
from hutch.host.drivers.microvm.qemu_sandbox import Origin, QemuSandbox, Restoration
from hutch.host.drivers.microvm.slots import LaunchSlot
from hutch.host.drivers.microvm.spares import Spares
from hutch.host.drivers.microvm.taskless import TasklessVm
from hutch.host.drivers.microvm.template_launch import TemplateLaunches
from hutch.host.drivers.microvm.templates import (
    Template,
    TemplateKey,
    TemplateRef,
    TemplateStore,
)
from hutch.host.drivers.microvm.vm import (
    VmFiles,
    load_guest_image,
    placeholder_link,
    remove_vm,
    vm_name,
)
from hutch.host.drivers.microvm.warm import WarmLimits
from hutch.host.drivers.volume_disks import VolumeStore, volume_disks
from hutch.host.kernel.copyfile import copy_file
from hutch.host.kernel.run import CommandFailed
from hutch.host.kernel.sealed import open_memory_file
from hutch.host.kernel.tap import open_placeholder_tap
from hutch.host.kernel.tsc import host_tsc_khz

log = get_logger(__name__)
BOOT_TIMEOUT_S = 120.0
TEMPLATE_NAME = "template"


class _Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A VM to be made for a task, on this host."""

    spec: SandboxSpec
    request: VmRequest
    ground: Ground
    kept: Path | None = None
    """The directory with a disk to be copied."""

    @property
    def files(self) -> VmFiles:
        """Where its files are."""
        return VmFiles(self.spec.directory)

    def but(self, **changes: Any) -> "_Wanted":
        """The same with another request."""
        return msgspec.structs.replace(self, request=msgspec.structs.replace(self.request, **changes))

    def origin(self, template: TemplateRef | None = None) -> Origin:
        """What it is made of."""
        machine = machine_of(self.request, self.ground)
        return Origin(machine=machine, template=template, has_link=bool(self.request.tap))


class Launcher:
    """Makes VMs with a guest that answers. All verbs from one event loop."""

    def __init__(
        self,
        *,
        platform_id: str,
        guest_dir: Path,
        state_dir: Path,
        accelerator: str,
        clock: Clock,
        jail: MonitorJail,
        use_templates: bool,
        warm: WarmLimits,
        file_trees: FileTrees,
    ) -> None:
        """See `MicrovmDriver`."""
        self._platform_id = platform_id
        self._guest_dir = guest_dir
        self._state_dir = state_dir
        self._clock = clock
        self._jail = jail
        self._choice = AcceleratorChoice(accelerator, state_dir / "accelerator.json", self._boot_probe_guest)
        templates = state_dir / "templates"
        self._making = TasklessVm(VmFiles(templates / ".making"), TEMPLATE_NAME, platform_id, jail)
        self._templates = TemplateStore(templates, self._make_template, clock)
        self._launches = TemplateLaunches(self._templates, enabled=use_templates)
        self.spares = Spares(
            platform_id=platform_id,
            directory=state_dir / "spares",
            limits=warm,
            templates=self._templates,
            ground=self.ground,
            jail=jail,
            clock=clock,
        )
        self.volumes = VolumeStore(state_dir / "volumes")
        self.file_trees = file_trees
        self._servers = FileServers(state_dir, file_trees, jail)
        self._tsc_khz: int | None = None
        self._qemu = ProgramVersion(PROGRAM)
        self._cleaned = Once()

    async def ground(self) -> Ground:
        """What VMs run on here. Raises `DriverError` if none can."""
        version = await self._qemu_version()
        image = await asyncio.to_thread(load_guest_image, self._guest_dir)
        accelerator, verdict = await self._choice.choose(f"{os.uname().release} {version} {image.key}")
        cpu = await asyncio.to_thread(host_cpu)
        return Ground(image=image, qemu_version=version, accelerator=accelerator, verdict=verdict, cpu=cpu)

    async def _qemu_version(self) -> str:
        try:
            text = await self._qemu.text()
        except CommandFailed as error:
            raise DriverError(
                "VmMonitorMissing", f"QEMU can't be run: {error.message}", fix="install qemu-system-x86"
            ) from None
        return text.partition("\n")[0].strip()

    async def clean(self, ground: Ground) -> None:
        """Remove, once, what earlier agents left: half-made templates, templates that are of no more use, VMs that had no
        task."""
        await self._cleaned.do(partial(self._clean, ground))

    async def _clean(self, ground: Ground) -> None:
        await self._making.remove()
        await asyncio.to_thread(self._templates.clean, ground.origin)
        await asyncio.to_thread(self.volumes.clean)
        await asyncio.to_thread(self.file_trees.clean)
        await self.spares.clean()

    @property
    def toolbox(self) -> Path:
        """The root disk with a shell and tools, for containers whose images have none; it may not be there."""
        return self._guest_dir / "toolbox.erofs"

    async def launch(
        self, spec: SandboxSpec, slot: LaunchSlot, kept: Path | None = None
    ) -> tuple[QemuSandbox, Phases]:
        """A VM for a task, with its disks attached and its guest greeted. `kept`: it gets copies of the disks of a task that
        has ended, which are in that directory. Raises `DriverError`; what was made by then is the caller's to remove
        (`remove_vm`)."""
        phases = Phases(self._clock)
        ground = await self.ground()
        await self.clean(ground)
        if volume_disks(spec.task):
            await phases.measure("volumes", self._make_volumes(spec, kept))
        request = await self._request(spec, ground.accelerator)
        wanted = _Wanted(spec=spec, request=request, ground=ground, kept=kept)
        if plan.file_systems(spec.task):
            booting = self._boot_with_files(wanted)
            detail = "file systems need memory of its own"
            return await phases.measure("cold boot", booting, detail), phases
        key = template_key(request, ground)
        if self._launches.enabled and kept is None:
            sandbox = await self.spares.take(spec, request, key, phases)
            if sandbox is not None:
                return sandbox, phases
        sandbox = await self._launches.launch(
            key,
            spec.task.task_id,
            phases,
            slot,
            restore=partial(self._restore, wanted, phases),
            boot=partial(self._start, wanted, BOOT_TIMEOUT_S),
            undo=partial(self._undo, wanted),
        )
        return sandbox, phases

    async def _undo(self, wanted: _Wanted) -> None:
        await remove_vm(wanted.request.name, wanted.files, self._jail)
        # Those that go with the task were below what was just removed.
        await self._make_volumes(wanted.spec, wanted.kept)

    async def _make_volumes(self, spec: SandboxSpec, kept: Path | None) -> None:
        own = VmFiles(spec.directory).vm
        disks = volume_disks(spec.task)
        if kept is None:
            await asyncio.gather(*(self.volumes.make(d, own, spec.task.task_id) for d in disks))
            return
        try:
            own.mkdir(mode=0o700, exist_ok=True)
            for path in (self.volumes.place(d, own) for d in disks):
                await in_thread(copy_file, kept / path.name, path)
        except OSError as error:
            raise DriverError("VolumeNotMade", f"a kept volume can't be copied: {error}") from None

    async def _request(self, spec: SandboxSpec, accelerator: str) -> VmRequest:
        if self._tsc_khz is None:
            self._tsc_khz = await host_tsc_khz(self._clock) or 0
        name = vm_name(self._platform_id, spec.task.task_id)
        return task_request(spec, name, accelerator, self.volumes, tsc_khz=self._tsc_khz)

    async def _restore(self, wanted: _Wanted, phases: Phases, template: Template) -> QemuSandbox:
        state_fd = template.open_state()
        try:
            memory = Memory(fd=template.memory_fd, shared=False)
            wanted = wanted.but(memory=memory, incoming=True)
            restoration = Restoration(state_fd=state_fd)
            sandbox = await self._start(wanted, RESTORE_TIMEOUT_S, restoration, phases)
            sandbox.origin = wanted.origin(template.ref)
            return sandbox
        finally:
            os.close(state_fd)

    async def _boot_with_files(self, wanted: _Wanted) -> QemuSandbox:
        """A VM whose file systems are served by programs beside it, which must see its memory: a template's is private."""
        request = wanted.request
        memory_fd = open_memory_file("hutch-shared", size=request.memory_mib << 20)
        try:
            systems = plan.file_systems(wanted.spec.task)
            serving = self._servers.serving(systems, request.name, wanted.files, request.memory_mib)
            async with serving as fds:
                memory = Memory(fd=memory_fd, shared=True)
                return await self._start(wanted.but(memory=memory, file_system_fds=fds), BOOT_TIMEOUT_S)
        finally:
            os.close(memory_fd)

    async def _start(
        self,
        wanted: _Wanted,
        limit_s: float,
        restoration: Restoration | None = None,
        phases: Phases | None = None,
    ) -> QemuSandbox:
        """Start QEMU and wait for the guest's greeting, while the scratch disk is made. With `phases` its two halves are
        measured: the jail, up to QEMU's execution, and the rest."""
        spec, files = wanted.spec, wanted.files
        async with scratch_disk(files, plan.scratch_bytes(spec.task), wanted.kept):
            begun = self._clock.now()
            ref = await launch(wanted.request, files, wanted.ground.image, self._jail)
            executed = self._clock.now()
            if phases is not None:
                phases.add("jail", begun)
            origin = wanted.origin()
            sandbox = QemuSandbox(spec, files, ref, self._clock, origin=origin, restoration=restoration)
            async with let_go_on_failure(sandbox):
                await sandbox.attach(hello_timeout_s=limit_s)
            if phases is not None:
                phases.add("restore", executed)
        return sandbox

    async def resume(
        self,
        spec: SandboxSpec,
        saved: Saved,
        before_it_runs: Callable[[], Awaitable[None]],
        *,
        copied: bool = False,
    ) -> QemuSandbox:
        """A VM from an image, with the disk that is in the sandbox's directory; its guest greeted, its containers as
        frozen as they were. `copied`: it was saved as another task's. Raises `DriverError`; what was made by then is the
        caller's to remove (`end_vm`)."""
        ground = await self.ground()
        request = await self._request(spec, ground.accelerator)
        machine = machine_of(request, ground)
        if difference := machine.difference(saved.manifest.machine):
            raise DriverError(
                "SuspendedImageUnusable",
                f"the VM was saved on a host that is different now: {difference}",
                fix="bring back what it was, or stop the task",
            )
        with contextlib.ExitStack() as stack:
            memory_fd = await self._base_of(saved, stack)
            memory = Memory(fd=memory_fd, shared=False) if memory_fd is not None else None
            request = msgspec.structs.replace(request, memory=memory, incoming=True, devices_only=True)
            if saved.manifest.has_link and not request.tap:
                tap_fd = await asyncio.to_thread(open_placeholder_tap, placeholder_link(self._platform_id))
                stack.callback(os.close, tap_fd)
                request = msgspec.structs.replace(request, tap_fd=tap_fd)
            state_fd = open_memory_file("hutch-state", saved.state)
            stack.callback(os.close, state_fd)
            restoration = Restoration(
                state_fd=state_fd, fill_memory=saved.fill, before_it_runs=before_it_runs
            )
            files = VmFiles(spec.directory)
            ref = await launch(request, files, ground.image, self._jail)
            origin = Origin(
                machine=machine, template=saved.manifest.template, has_link=saved.manifest.has_link
            )
            sandbox = QemuSandbox(
                spec, files, ref, self._clock, origin=origin, restoration=restoration, is_new=False
            )
            async with let_go_on_failure(sandbox):
                answer = await sandbox.attach(hello_timeout_s=RESTORE_TIMEOUT_S)
                told = () if copied else saved.manifest.told
                await sandbox.take_over(answer.containers, told, copied=copied)
        return sandbox

    async def _base_of(self, saved: Saved, stack: contextlib.ExitStack) -> int | None:
        """The memory that a saved VM's is a private copy of; None: of none."""
        if saved.manifest.template is None:
            return None
        template = await self._templates.find(saved.manifest.template)
        if template is not None:
            return template.memory_fd
        try:
            memory_fd = await asyncio.to_thread(saved.load_base)
        except OSError as error:
            raise DriverError("SuspendedImageUnusable", f"the template's memory is gone: {error}") from None
        stack.callback(os.close, memory_fd)
        return memory_fd

    def pin(self, ref: TemplateRef, target: Path) -> bool:
        """Keep a template's memory, under another name. Blocks."""
        return self._templates.pin(ref, target)

    async def _make_template(self, key: TemplateKey, memory_fd: int) -> bytes:
        """Boot a VM without a task up to its greeting, save its state, end it. Raises `DriverError`."""
        ground, vm = await self.ground(), self._making
        request = template_request(key, vm.name, memory_fd, tsc_khz=self._tsc_khz or 0)

        async def boot() -> QemuSandbox:
            vm.files.vm.mkdir(mode=0o700)
            ref = await launch(request, vm.files, ground.image, self._jail)
            sandbox = QemuSandbox(vm.spec, vm.files, ref, self._clock)
            async with let_go_on_failure(sandbox):
                await sandbox.attach(hello_timeout_s=BOOT_TIMEOUT_S)
            return sandbox

        async with vm.made(boot) as sandbox:
            return await sandbox.save_state()

    async def _boot_probe_guest(self, accelerator: str, limit_s: float) -> float:
        """Boot an empty guest under an accelerator; seconds until it answered. Raises `DriverError`."""
        image = await asyncio.to_thread(load_guest_image, self._guest_dir)
        ground = Ground(
            image=image, qemu_version="", accelerator=accelerator, verdict=Verdict(works=False), cpu=""
        )
        files = VmFiles(self._state_dir / "probe")
        vm = TasklessVm(files, f"probe{os.getpid()}", self._platform_id, self._jail)
        request = await self._request(vm.spec, accelerator)
        begun = self._clock.monotonic()
        wanted = _Wanted(spec=vm.spec, request=request, ground=ground)
        async with vm.made(partial(self._start, wanted, limit_s)):
            return self._clock.monotonic() - begun

    async def close(self) -> None:
        """End what is being made for later; VMs of tasks are not touched."""
        await self.spares.close()
        await self._templates.close()
