"""How a task's VM comes to be: taken from the warm pool, else restored from a template, else booted."""

import asyncio
import contextlib
import hashlib
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
from hutch.host.drivers.microvm.image import Machine, Saved
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.making import Phases, host_cpu, no_task, scratch_disk
from hutch.host.drivers.microvm.qemu import (
    WARM_TCG_BUFFER_MIB,
    Memory,
    VmSpec,
    disk_slots,
    machine_traits,
    vm_memory_mib,
    vm_vcpus,
)
from hutch.host.drivers.microvm.sandbox import ENTROPY_BYTES, Empty, Origin, Restoration, Sandbox
from hutch.host.drivers.microvm.slots import LaunchSlot
from hutch.host.drivers.microvm.templates import (
    Template,
    TemplateKey,
    TemplateRef,
    TemplateStore,
    TemplateUnavailable,
)
from hutch.host.drivers.microvm.vm import (
    GuestImage,
    VmFiles,
    VmRequest,
    launch,
    load_guest_image,
    remove_vm,
    vm_name,
)
from hutch.host.drivers.microvm.warm import Spare, WarmLimits, WarmPool, WarmSize
from hutch.host.drivers.volume_disks import VolumeStore, volume_disks
from hutch.host.kernel.copyfile import copy_file
from hutch.host.kernel.sealed import open_memory_file
from hutch.host.kernel.tap import move_tap, open_placeholder_tap
from hutch.host.kernel.tsc import host_tsc_khz

log = get_logger(__name__)
BOOT_TIMEOUT_S = 120.0
RESTORE_TIMEOUT_S = 30.0
TEMPLATE_NAME = "template"


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What all VMs of this host have in common."""

    image: GuestImage
    qemu_version: str
    accelerator: str
    verdict: Verdict
    cpu: str

    @property
    def origin(self) -> str:
        """A word for all of it: templates of another one are of no use."""
        parts = (self.image.key, self.qemu_version, self.accelerator, self.cpu)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


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
        self._spares = state_dir / "spares"
        self._pool = WarmPool(warm, self._make_spare, self._end_spare, clock)
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
                for directory in self._spares.glob("*"):
                    await self._remove_spare(VmFiles(directory))
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
        request = await self._request(spec, ground)
        name, files = request.name, VmFiles(spec.directory)
        if plan.file_systems(spec.task):
            booting = self._booted_with_files(spec, request, ground)
            detail = "file systems need memory of its own"
            return await phases.measure("cold boot", booting, detail), phases
        key = _key(request, ground)
        takes_spare = self._use_templates and kept is None
        if takes_spare and (sandbox := await self._warm(spec, request, key, phases)) is not None:
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

    async def _warm(
        self, spec: SandboxSpec, request: VmRequest, key: TemplateKey, phases: Phases
    ) -> Sandbox | None:
        """A VM from the pool, if there is one that fits and it can be used."""
        if request.writable_disks > 1:
            # Its disks are claimed as they are opened, which is when QEMU starts.
            return None
        size = WarmSize(key=key, cpu_units=request.cpu_units, disk_bytes=plan.scratch_bytes(spec.task))
        spare = self._pool.take(size)
        if spare is None:
            return None
        try:
            return await phases.measure("warm", self._claim(spare, spec, request))
        except DriverError as error:
            log.warning("a spare microVM can't be used", task=spec.task.task_id, reason=error.message)
            return None

    async def _claim(self, spare: Spare, spec: SandboxSpec, request: VmRequest) -> Sandbox:
        """Make a spare the task's: disks and link are put in the place of empty ones. On failure it is gone."""
        files, sandbox = VmFiles(spec.directory), spare.sandbox
        ready = False
        try:
            # With this it is the task's, also for whoever comes after a crash.
            os.rename(spare.files.vm, files.vm)
            shutil.rmtree(spare.files.root)
            sandbox.assign(spec, files)
            async with scratch_disk(files, plan.scratch_bytes(spec.task)):
                moving = self._move_link(spare, request.tap)
                await asyncio.gather(moving, self._fill_disks(sandbox, request))
            ready = True
            return sandbox
        except OSError as error:
            raise DriverError("SpareNotUsed", str(error)) from None
        finally:
            os.close(spare.tap_fd)
            if not ready:
                await sandbox.release()
                await remove_vm(spare.name, files, self._jail)

    async def _move_link(self, spare: Spare, tap: str) -> None:
        if tap:
            await asyncio.to_thread(move_tap, spare.tap_fd, spare.tap_name, tap)

    async def _fill_disks(self, sandbox: Sandbox, request: VmRequest) -> None:
        for index, (path, read_only) in enumerate(request.disks):
            await sandbox.replace_disk(index, path, read_only=read_only)
        await sandbox.greet(entropy=os.urandom(ENTROPY_BYTES), timeout_s=RESTORE_TIMEOUT_S)

    async def _make_spare(self, size: WarmSize) -> Spare:
        """A restored VM without a task, that has been through a container's start. Raises `DriverError`."""
        ground = await self.ground()
        try:
            template = await self._templates.get(size.key)
        except TemplateUnavailable as error:
            raise DriverError("NoTemplate", error.message) from None
        spare_id = f"spare-{os.urandom(6).hex()}"
        files, name = VmFiles(self._spares / spare_id), vm_name(self._platform_id, spare_id)
        tap_name = self._placeholder_name()
        ready, sandbox, tap_fd = False, None, -1
        try:
            files.vm.mkdir(mode=0o700, parents=True)
            files.name.write_text(name)
            tap_fd = await asyncio.to_thread(open_placeholder_tap, tap_name)
            request = msgspec.structs.replace(
                _request_of(size, name), memory=Memory(fd=template.memory_fd, shared=False), tap_fd=tap_fd
            )
            ref = await launch(request, files, ground.image, self._jail)
            sandbox = Sandbox(no_task(spare_id, str(files.root)), files, ref, self._clock)
            await self._attach_restored(sandbox, template)
            sandbox.origin = Origin(machine=_machine(request, ground), template=template.ref, has_link=True)
            rehearsal = sandbox.session.request("start", Empty, **plan.rehearsal_members())
            await sandbox.while_alive(rehearsal, "rehearse")
            ready = True
        except OSError as error:
            raise DriverError("NoSpare", str(error)) from None
        finally:
            if not ready:
                if sandbox is not None:
                    await sandbox.release()
                if tap_fd >= 0:
                    os.close(tap_fd)
                await self._remove_spare(files)
        return Spare(size=size, name=name, files=files, sandbox=sandbox, tap_name=tap_name, tap_fd=tap_fd)

    async def _attach_restored(self, sandbox: Sandbox, template: Template) -> None:
        state_fd = template.open_state()
        try:
            await sandbox.attach(
                entropy=os.urandom(ENTROPY_BYTES),
                hello_timeout_s=RESTORE_TIMEOUT_S,
                restoration=Restoration(state_fd=state_fd),
            )
        finally:
            os.close(state_fd)

    async def _end_spare(self, spare: Spare) -> None:
        await spare.sandbox.release()
        os.close(spare.tap_fd)
        await remove_vm(spare.name, spare.files, self._jail)
        await asyncio.to_thread(shutil.rmtree, spare.files.root, True)

    async def _remove_spare(self, files: VmFiles) -> None:
        # One without a `vm` was taken by a task a moment before an agent was killed: it is not ours any more.
        if files.vm.exists():
            await remove_vm(vm_name(self._platform_id, files.root.name), files, self._jail)
        await asyncio.to_thread(shutil.rmtree, files.root, True)

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

    async def _request(self, spec: SandboxSpec, ground: Ground) -> VmRequest:
        if self._tsc_khz is None:
            self._tsc_khz = await host_tsc_khz(self._clock) or 0
        task = spec.task
        images = sorted({d.serial: d for d in plan.image_disks(spec).values()}.items(), key=_disk_number)
        files = VmFiles(spec.directory)
        own = (files.scratch, *(self.volumes.place(d, files.vm) for d in volume_disks(task)))
        disks = (*((str(p), False) for p in own), *((d.erofs_path, True) for _, d in images))
        return VmRequest(
            name=vm_name(self._platform_id, task.task_id),
            accelerator=ground.accelerator,
            vcpus=vm_vcpus(task.cpu_units),
            memory_mib=vm_memory_mib(task.memory_mib),
            cpu_units=task.cpu_units,
            disks=disks,
            disk_slots=disk_slots(len(disks)),
            writable_disks=len(own),
            tap=spec.attachment.tap,
            tsc_khz=self._tsc_khz,
        )

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
                machine=_machine(request, ground), template=template.ref, has_link=bool(request.tap)
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
            origin = Origin(machine=_machine(request, ground), has_link=bool(request.tap))
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
        request = await self._request(spec, ground)
        machine = _machine(request, ground)
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
                tap_fd = await asyncio.to_thread(open_placeholder_tap, self._placeholder_name())
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

    def _placeholder_name(self) -> str:
        """Of a new link that leads nowhere."""
        return f"h{self._platform_id[:4]}w{os.urandom(4).hex()}"

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
        request = VmRequest(
            name=name,
            accelerator=key.accelerator,
            vcpus=key.vcpus,
            memory_mib=key.memory_mib,
            disk_slots=key.disk_slots,
            writable_disks=key.writable_disks,
            tsc_khz=self._tsc_khz or 0,
            memory=Memory(fd=memory_fd, shared=True),
        )
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
        request = await self._request(spec, ground)
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
        await self._pool.close()
        await self._templates.close()


def _disk_number(item: tuple[str, plan.ImageDisk]) -> int:
    return int(item[0].removeprefix("disk"))


def _key(request: VmRequest, ground: Ground) -> TemplateKey:
    return TemplateKey(
        origin=ground.origin,
        machine=machine_traits(_plain_spec(request)),
        accelerator=request.accelerator,
        vcpus=request.vcpus,
        memory_mib=request.memory_mib,
        disk_slots=request.disk_slots,
        writable_disks=request.writable_disks,
    )


def _machine(request: VmRequest, ground: Ground) -> Machine:
    """What a VM is, as far as its saved state depends on it."""
    traits = machine_traits(_plain_spec(request))
    return Machine(
        traits=hashlib.sha256(traits.encode()).hexdigest(),
        qemu_version=ground.qemu_version,
        accelerator=request.accelerator,
        cpu=hashlib.sha256(ground.cpu.encode()).hexdigest()[:16],
    )


def _request_of(size: WarmSize, name: str) -> VmRequest:
    return VmRequest(
        name=name,
        accelerator=size.key.accelerator,
        vcpus=size.key.vcpus,
        memory_mib=size.key.memory_mib,
        cpu_units=size.cpu_units,
        disk_slots=size.key.disk_slots,
        writable_disks=size.key.writable_disks,
        disk_bytes=size.disk_bytes,
        tcg_buffer_mib=WARM_TCG_BUFFER_MIB,
        incoming=True,
    )


def _plain_spec(request: VmRequest) -> VmSpec:
    return VmSpec(
        name="",
        accelerator=request.accelerator,
        vcpus=request.vcpus,
        memory_mib=request.memory_mib,
        agent_fd=0,
        qmp_fd=0,
        disk_slots=request.disk_slots,
        writable_disks=request.writable_disks,
    )
