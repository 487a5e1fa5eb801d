"""How a task's VM comes to be: taken from the warm pool, else restored from a template, else booted."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.file_trees import FileTrees
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.accelerator import AcceleratorChoice, Verdict, qemu_version
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
from hutch.host.drivers.microvm.making import RESTORE_TIMEOUT_S, Phases, host_cpu, no_task, scratch_disk
from hutch.host.drivers.microvm.qemu import Memory
from hutch.host.drivers.microvm.sandbox import ENTROPY_BYTES, Origin, Restoration, Sandbox
from hutch.host.drivers.microvm.slots import LaunchSlot
from hutch.host.drivers.microvm.spares import Spares
from hutch.host.drivers.microvm.templates import (
    Template,
    TemplateKey,
    TemplateRef,
    TemplateStore,
    TemplateUnavailable,
)
from hutch.host.drivers.microvm.vm import (
    VmFiles,
    VmRequest,
    launch,
    load_guest_image,
    placeholder_link,
    remove_vm,
    vm_name,
)
from hutch.host.drivers.microvm.warm import WarmLimits
from hutch.host.drivers.volume_disks import VolumeStore, volume_disks
from hutch.host.kernel.copyfile import copy_file
from hutch.host.kernel.sealed import open_memory_file
from hutch.host.kernel.tap import open_placeholder_tap
from hutch.host.kernel.tsc import host_tsc_khz

log = get_logger(__name__)
BOOT_TIMEOUT_S = 120.0
TEMPLATE_NAME = "template"


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
        self._directory = state_dir / "templates"
        self._templates = TemplateStore(self._directory, self._make_template, clock)
        self.spares = Spares(
            platform_id=platform_id,
            directory=state_dir / "spares",
            limits=warm,
            templates=self._templates,
            ground=self.ground,
            jail=jail,
            clock=clock,
        )
        self._use_templates = use_templates
        self.volumes = VolumeStore(state_dir / "volumes")
        self.file_trees = file_trees
        self._servers = FileServers(state_dir, file_trees, jail)
        self._tsc_khz: int | None = None
        self._cleaned = asyncio.Lock()
        self._is_clean = False

    async def ground(self) -> Ground:
        """What VMs run on here. Raises `DriverError` if none can."""
        version = await qemu_version()
        image = await asyncio.to_thread(load_guest_image, self._guest_dir)
        accelerator, verdict = await self._choice.choose(f"{os.uname().release} {version} {image.key}")
        cpu = await asyncio.to_thread(host_cpu)
        return Ground(image=image, qemu_version=version, accelerator=accelerator, verdict=verdict, cpu=cpu)

    async def clean(self, ground: Ground) -> None:
        """Remove, once, what earlier agents left: half-made templates, templates that are of no more use, VMs that had no
        task."""
        async with self._cleaned:
            if not self._is_clean:
                await remove_vm(vm_name(self._platform_id, TEMPLATE_NAME), self._making, self._jail)
                await asyncio.to_thread(self._templates.clean, ground.origin)
                await asyncio.to_thread(self.volumes.clean)
                await asyncio.to_thread(self.file_trees.clean)
                await self.spares.clean()
                self._is_clean = True

    @property
    def _making(self) -> VmFiles:
        return VmFiles(self._directory / ".making")

    @property
    def toolbox(self) -> Path:
        """The root disk with a shell and tools, for containers whose images have none; it may not be there."""
        return self._guest_dir / "toolbox.erofs"

    async def launch(
        self, spec: SandboxSpec, slot: LaunchSlot, kept: Path | None = None
    ) -> tuple[Sandbox, Phases]:
        """A VM for a task, with its disks attached and its guest greeted. `kept`: it gets copies of the disks of a task that
        has ended, which are in that directory. Raises `DriverError`; what was made by then is the caller's to remove
        (`remove_vm`)."""
        phases = Phases(self._clock)
        ground = await self.ground()
        await self.clean(ground)
        if volume_disks(spec.task):
            await phases.measure("volumes", self._make_volumes(spec, kept))
        request = await self._request(spec, ground.accelerator)
        name, files = request.name, VmFiles(spec.directory)
        if plan.file_systems(spec.task):
            booting = self._booted_with_files(spec, request, ground)
            detail = "file systems need memory of its own"
            return await phases.measure("cold boot", booting, detail), phases
        key = template_key(request, ground)
        takes_spare = self._use_templates and kept is None
        if takes_spare and (sandbox := await self.spares.take(spec, request, key, phases)) is not None:
            return sandbox, phases
        template, refusal = await self._template(key, phases, slot)
        if template is not None:
            try:
                return await self._restored(spec, request, ground, template, phases, kept), phases
            except DriverError as error:
                if error.kind in ("VolumeInUse", "ScratchDiskFailed"):
                    raise
                refusal = f"not restored: {error.message}"[:500]
                log.warning("a VM could not be restored", task=spec.task.task_id, reason=error.message)
                self._templates.reject(template, refusal)
                await remove_vm(name, files, self._jail)
                # Those that go with the task were below what was just removed.
                await self._make_volumes(spec, kept)
        booting = self._booted(spec, request, ground, BOOT_TIMEOUT_S, kept)
        return await phases.measure("cold boot", booting, refusal), phases

    async def _make_volumes(self, spec: SandboxSpec, kept: Path | None) -> None:
        own = VmFiles(spec.directory).vm
        disks = volume_disks(spec.task)
        if kept is None:
            await asyncio.gather(*(self.volumes.make(d, own, spec.task.task_id) for d in disks))
            return
        try:
            own.mkdir(mode=0o700, exist_ok=True)
            for path in (self.volumes.place(d, own) for d in disks):
                await asyncio.to_thread(copy_file, kept / path.name, path)
        except OSError as error:
            raise DriverError("VolumeNotMade", f"a kept volume can't be copied: {error}") from None

    async def _template(
        self, key: TemplateKey, phases: Phases, slot: LaunchSlot
    ) -> tuple[Template | None, str]:
        """The template for a VM, or why there is none."""
        if not self._use_templates:
            return None, "templates are switched off"
        if (template := self._templates.loaded(key)) is not None:
            return template, ""
        if refusal := self._templates.refusal(key):
            return None, refusal
        try:
            # Whoever waits for a template keeps nobody from launching who has one.
            return await phases.measure("template", slot.lend(self._templates.get(key))), ""
        except TemplateUnavailable as error:
            return None, error.message

    async def _request(self, spec: SandboxSpec, accelerator: str) -> VmRequest:
        if self._tsc_khz is None:
            self._tsc_khz = await host_tsc_khz(self._clock) or 0
        name = vm_name(self._platform_id, spec.task.task_id)
        return task_request(spec, name, accelerator, self.volumes, tsc_khz=self._tsc_khz)

    async def _restored(
        self,
        spec: SandboxSpec,
        request: VmRequest,
        ground: Ground,
        template: Template,
        phases: Phases,
        kept: Path | None,
    ) -> Sandbox:
        memory = Memory(fd=template.memory_fd, shared=False)
        request = msgspec.structs.replace(request, memory=memory, incoming=True)
        state_fd = template.open_state()
        try:
            restoration = Restoration(state_fd=state_fd)
            sandbox = await self._start(
                spec, request, ground, RESTORE_TIMEOUT_S, restoration, phases, kept=kept
            )
            sandbox.origin = Origin(
                machine=machine_of(request, ground), template=template.ref, has_link=bool(request.tap)
            )
            return sandbox
        finally:
            os.close(state_fd)

    async def _booted(
        self,
        spec: SandboxSpec,
        request: VmRequest,
        ground: Ground,
        limit_s: float,
        kept: Path | None = None,
    ) -> Sandbox:
        return await self._start(spec, request, ground, limit_s, kept=kept)

    async def _booted_with_files(self, spec: SandboxSpec, request: VmRequest, ground: Ground) -> Sandbox:
        """A VM whose file systems are served by programs beside it, which must see its memory: a template's is private."""
        files = VmFiles(spec.directory)
        memory_fd = open_memory_file("hutch-shared", size=request.memory_mib << 20)
        try:
            wanted = plan.file_systems(spec.task)
            async with self._servers.serving(wanted, request.name, files, request.memory_mib) as fds:
                memory = Memory(fd=memory_fd, shared=True)
                request = msgspec.structs.replace(request, memory=memory, file_system_fds=fds)
                return await self._booted(spec, request, ground, BOOT_TIMEOUT_S)
        finally:
            os.close(memory_fd)

    async def _start(
        self,
        spec: SandboxSpec,
        request: VmRequest,
        ground: Ground,
        limit_s: float,
        restoration: Restoration | None = None,
        phases: Phases | None = None,
        *,
        kept: Path | None,
    ) -> Sandbox:
        """Start QEMU and wait for the guest's greeting, while the scratch disk is made. With `phases` its two halves are
        measured: the jail, up to QEMU's execution, and the rest."""
        files = VmFiles(spec.directory)
        async with scratch_disk(files, plan.scratch_bytes(spec.task), kept):
            begun = self._clock.now()
            ref = await launch(request, files, ground.image, self._jail)
            executed = self._clock.now()
            if phases is not None:
                phases.add("jail", begun)
            origin = Origin(machine=machine_of(request, ground), has_link=bool(request.tap))
            sandbox = Sandbox(spec, files, ref, self._clock, origin=origin)
            try:
                await sandbox.attach(
                    entropy=os.urandom(ENTROPY_BYTES), hello_timeout_s=limit_s, restoration=restoration
                )
            except BaseException:
                await sandbox.release()
                raise
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
    ) -> Sandbox:
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
            sandbox = Sandbox(spec, files, ref, self._clock, origin=origin, is_new=False)
            try:
                answer = await sandbox.attach(
                    entropy=os.urandom(ENTROPY_BYTES),
                    hello_timeout_s=RESTORE_TIMEOUT_S,
                    restoration=restoration,
                )
                told = () if copied else saved.manifest.told
                await sandbox.take_over(answer.containers, told, copied=copied)
            except BaseException:
                await sandbox.release()
                raise
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
        ground = await self.ground()
        name, files = vm_name(self._platform_id, TEMPLATE_NAME), self._making
        request = template_request(key, name, memory_fd, tsc_khz=self._tsc_khz or 0)
        spec = no_task(TEMPLATE_NAME, str(files.root))
        sandbox: Sandbox | None = None
        try:
            await remove_vm(name, files, self._jail)
            files.vm.mkdir(mode=0o700, parents=True)
            ref = await launch(request, files, ground.image, self._jail)
            sandbox = Sandbox(spec, files, ref, self._clock)
            await sandbox.attach(entropy=os.urandom(ENTROPY_BYTES), hello_timeout_s=BOOT_TIMEOUT_S)
            return await sandbox.save_state()
        finally:
            if sandbox is not None:
                await sandbox.release()
            await remove_vm(name, files, self._jail)
            await asyncio.to_thread(shutil.rmtree, files.root, True)

    async def _boot_probe_guest(self, accelerator: str, limit_s: float) -> float:
        """Boot an empty guest under an accelerator; seconds until it answered. Raises `DriverError`."""
        image = await asyncio.to_thread(load_guest_image, self._guest_dir)
        files = VmFiles(self._state_dir / "probe")
        spec = no_task(f"probe{os.getpid()}", str(files.root))
        ground = Ground(
            image=image, qemu_version="", accelerator=accelerator, verdict=Verdict(works=False), cpu=""
        )
        begun = self._clock.monotonic()
        sandbox: Sandbox | None = None
        request = await self._request(spec, ground.accelerator)
        try:
            files.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            sandbox = await self._booted(spec, request, ground, limit_s)
            return self._clock.monotonic() - begun
        finally:
            if sandbox is not None:
                await sandbox.release()
            await remove_vm(request.name, files, self._jail)
            await asyncio.to_thread(shutil.rmtree, files.root, True)

    async def close(self) -> None:
        """End what is being made for later; VMs of tasks are not touched."""
        await self.spares.close()
        await self._templates.close()
