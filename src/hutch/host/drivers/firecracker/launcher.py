"""How a task's Firecracker VM comes to be: its process is started, and told by its API what to be."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from stat import S_ISREG

import msgspec

from hutch.base.clock import Clock
from hutch.base.threads import in_thread
from hutch.base.units import MIB
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.firecracker.api import FirecrackerApi
from hutch.host.drivers.firecracker.config import (
    MEMORY,
    STATE,
    VmConfig,
    boot_requests,
    check_config,
    disk_serial,
    disk_slots,
    load_requests,
    machine_traits,
)
from hutch.host.drivers.firecracker.program import Firecracker, find_firecracker
from hutch.host.drivers.firecracker.sandbox import BringUp, FirecrackerSandbox
from hutch.host.drivers.firecracker.vm import FirecrackerFiles, FirecrackerRequest, kernel_file, launch
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.accelerator import AcceleratorChoice, Verdict
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.making import (
    RESTORE_TIMEOUT_S,
    Once,
    Phases,
    host_cpu,
    let_go_on_failure,
    scratch_disk,
)
from hutch.host.drivers.microvm.programs import ProgramVersion
from hutch.host.drivers.microvm.qemu import vm_memory_mib, vm_vcpus
from hutch.host.drivers.microvm.slots import LaunchSlot
from hutch.host.drivers.microvm.taskless import TasklessVm
from hutch.host.drivers.microvm.template_launch import TemplateLaunches
from hutch.host.drivers.microvm.templates import Template, TemplateKey, TemplateStore
from hutch.host.drivers.microvm.vm import GuestImage, load_guest_image, remove_vm, vm_name
from hutch.host.drivers.volume_disks import volume_disks
from hutch.host.guestlink.vsock import AGENT_PORT, GuestCall
from hutch.host.kernel.sealed import copy_sparse
from hutch.host.kernel.tap import make_tap, remove_tap

BOOT_TIMEOUT_S = 60.0
TEMPLATE_NAME = "fctemplate"
TAP_TRAIT = '"host_dev_name"'
MAX_STATE_BYTES = 16 * MIB


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What all VMs of this host have in common."""

    image: GuestImage
    firecracker: Firecracker
    verdict: Verdict
    cpu: str

    @property
    def origin(self) -> str:
        """A word for all of it: templates of another one are of no use."""
        parts = (os.uname().release, self.image.key, self.firecracker.version_text, self.cpu)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class FirecrackerLauncher:
    """Makes VMs with a guest that answers. All verbs from one event loop."""

    def __init__(
        self,
        *,
        platform_id: str,
        program: str,
        guest_dir: Path,
        state_dir: Path,
        clock: Clock,
        jail: MonitorJail,
        kvm_obstacle: Callable[[str], str],
        boot_timeout_s: float,
        probe_limit_s: float,
        use_templates: bool,
    ) -> None:
        """See `FirecrackerDriver`."""
        self._platform_id = platform_id
        self._program = program
        self._guest_dir = guest_dir
        self._state_dir = state_dir
        self._clock = clock
        self._jail = jail
        self._boot_timeout_s = boot_timeout_s
        templates = state_dir / "templates"
        self._making = TasklessVm(FirecrackerFiles(templates / ".making"), TEMPLATE_NAME, platform_id, jail)
        self._templates = TemplateStore(templates, self._make_template, clock)
        self._launches = TemplateLaunches(self._templates, enabled=use_templates)
        self._version = ProgramVersion(program)
        self._cleaned = Once()
        self._choice = AcceleratorChoice(
            "kvm",
            state_dir / "accelerator.json",
            self._boot_probe_guest,
            kvm_obstacle,
            probe_limit_s=probe_limit_s,
        )

    async def ground(self) -> Ground:
        """What VMs run on here. Raises `DriverError` if none can."""
        firecracker = await find_firecracker(self._version)
        image = await asyncio.to_thread(load_guest_image, self._guest_dir)
        await asyncio.to_thread(kernel_file, image)
        key = f"{os.uname().release} firecracker {firecracker.version_text} {image.key}"
        _, verdict = await self._choice.choose(key)
        cpu = await asyncio.to_thread(host_cpu)
        return Ground(image=image, firecracker=firecracker, verdict=verdict, cpu=cpu)

    async def clean(self, ground: Ground) -> None:
        """Remove, once, what earlier agents left: half-made templates, and those that are of no more use."""
        await self._cleaned.do(partial(self._clean, ground))

    async def _clean(self, ground: Ground) -> None:
        await self._remove_making()
        await asyncio.to_thread(self._templates.clean, ground.origin)

    async def launch(self, spec: SandboxSpec, slot: LaunchSlot) -> tuple[FirecrackerSandbox, Phases]:
        """A VM for a task, with its disks attached and its guest greeted. Raises `DriverError`; what was made by then is
        the caller's to remove (`remove_vm`)."""
        phases = Phases(self._clock)
        ground = await self.ground()
        await self.clean(ground)
        request = self._request(spec)
        check_config(request.config)
        key = _template_key(request.config, ground)
        sandbox = await self._launches.launch(
            key,
            spec.task.task_id,
            phases,
            slot,
            restore=lambda template: phases.measure(
                "restore", self._restore(spec, request, ground.image, template)
            ),
            boot=partial(self._boot, spec, request, ground.image, self._boot_timeout_s),
            undo=partial(remove_vm, request.name, FirecrackerFiles(spec.directory), self._jail),
            obstacle=_obstacle(request.config, ground.firecracker),
        )
        return sandbox, phases

    async def _boot(
        self, spec: SandboxSpec, request: FirecrackerRequest, image: GuestImage, limit_s: float
    ) -> FirecrackerSandbox:
        files = FirecrackerFiles(spec.directory)
        async with scratch_disk(files, plan.scratch_bytes(spec.task)):
            files.run.mkdir(mode=0o700)
            call = GuestCall(files.agent_socket, AGENT_PORT)
            try:
                return await self._start(spec, request, image, _booting(request.config, call), limit_s)
            finally:
                call.close()

    async def _restore(
        self, spec: SandboxSpec, request: FirecrackerRequest, image: GuestImage, template: Template
    ) -> FirecrackerSandbox:
        files = FirecrackerFiles(spec.directory)
        state_fd = template.open_state()
        try:
            request = msgspec.structs.replace(request, pass_fds=(template.memory_fd, state_fd))
            requests = load_requests(
                request.config,
                memory=f"/proc/self/fd/{template.memory_fd}",
                state=f"/proc/self/fd/{state_fd}",
            )
            async with scratch_disk(files, plan.scratch_bytes(spec.task)):
                files.run.mkdir(mode=0o700)
                return await self._start(
                    spec, request, image, lambda api: api.send_all(requests), RESTORE_TIMEOUT_S
                )
        finally:
            os.close(state_fd)

    async def _start(
        self,
        spec: SandboxSpec,
        request: FirecrackerRequest,
        image: GuestImage,
        bring_up: BringUp,
        limit_s: float,
    ) -> FirecrackerSandbox:
        """Start the process, make a VM in it, and greet its guest."""
        files = FirecrackerFiles(spec.directory)
        ref = await launch(request, files, image, self._jail)
        sandbox = FirecrackerSandbox(spec, files, ref, self._clock, bring_up=bring_up)
        async with let_go_on_failure(sandbox):
            await sandbox.attach(hello_timeout_s=limit_s)
        return sandbox

    async def _make_template(self, key: TemplateKey, memory_fd: int) -> bytes:
        """Boot a VM without a task up to its greeting, write it to the disk, end it; its memory goes to a file, its state
        is the answer. Raises `DriverError`."""
        ground, vm = await self.ground(), self._making
        tap = self._template_tap if TAP_TRAIT in key.machine else ""
        snapshot = vm.files.root / "snapshot"
        config = VmConfig(vcpus=key.vcpus, memory_mib=key.memory_mib, disks=key.disk_slots, tap=tap)
        request = FirecrackerRequest(
            name=vm.name,
            program=self._program,
            config=config,
            cpu_units=key.vcpus * 1024,
            disks=(str(vm.files.scratch),),
            snapshot_directory=str(snapshot),
        )

        async def boot() -> FirecrackerSandbox:
            snapshot.mkdir(mode=0o700)
            if tap:
                await in_thread(make_tap, tap, self._jail.user_of(vm.name))
            return await self._boot(vm.spec, request, ground.image, self._boot_timeout_s)

        try:
            async with vm.made(boot) as sandbox:
                await sandbox.save()
                return await in_thread(_take_snapshot, snapshot, memory_fd)
        finally:
            await asyncio.to_thread(remove_tap, self._template_tap)

    @property
    def _template_tap(self) -> str:
        return f"h{self._platform_id[:4]}fctemplate"[:15]

    async def _remove_making(self) -> None:
        await self._making.remove()
        # Whoever had it open is gone.
        await asyncio.to_thread(remove_tap, self._template_tap)

    async def close(self) -> None:
        """End what is being made for later; VMs of tasks are not touched."""
        await self._templates.close()

    def _request(self, spec: SandboxSpec) -> FirecrackerRequest:
        task = spec.task
        disks = disk_files(spec)
        config = VmConfig(
            vcpus=vm_vcpus(task.cpu_units),
            memory_mib=vm_memory_mib(task.memory_mib),
            disks=len(disks),
            tap=spec.attachment.tap,
        )
        return FirecrackerRequest(
            name=vm_name(self._platform_id, task.task_id),
            program=self._program,
            config=config,
            cpu_units=task.cpu_units,
            disks=tuple(path for _, path in disks),
        )

    async def _boot_probe_guest(self, _: str, limit_s: float) -> float:
        """Boot an empty guest; seconds until it answered. Raises `DriverError`."""
        image = await asyncio.to_thread(load_guest_image, self._guest_dir)
        files = FirecrackerFiles(self._state_dir / "probe")
        vm = TasklessVm(files, f"probe{os.getpid()}", self._platform_id, self._jail)
        request = self._request(vm.spec)
        begun = self._clock.monotonic()
        async with vm.made(partial(self._boot, vm.spec, request, image, limit_s)):
            return self._clock.monotonic() - begun


def _booting(config: VmConfig, call: GuestCall) -> BringUp:
    async def bring_up(api: FirecrackerApi) -> None:
        await api.send_all(boot_requests(config))
        await call.wait()

    return bring_up


def _obstacle(config: VmConfig, firecracker: Firecracker) -> str:
    """Why such a VM can't be restored from a template; "" if nothing speaks against it."""
    if not config.tap or firecracker.restores_with_other_taps:
        return ""
    return f"Firecracker {firecracker.version_text} can't restore a VM with another tap"


def _template_key(config: VmConfig, ground: Ground) -> TemplateKey:
    slots = disk_slots(config.disks)
    return TemplateKey(
        origin=ground.origin,
        machine=machine_traits(msgspec.structs.replace(config, disks=slots)),
        accelerator="kvm",
        vcpus=config.vcpus,
        memory_mib=config.memory_mib,
        disk_slots=slots,
    )


def _take_snapshot(directory: Path, memory_fd: int) -> bytes:
    """Copy the memory that Firecracker wrote, without its zeros; its state. Both came from a process that its guest could
    have taken over: only plain files of a sane size are read. Raises `DriverError`."""
    try:
        with contextlib.ExitStack() as stack:
            fds = []
            for place in (MEMORY, STATE):
                fd = os.open(directory / Path(place).name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                fds.append(fd)
            memory, state = (os.fstat(fd) for fd in fds)
            expected = os.fstat(memory_fd).st_size
            if not (S_ISREG(memory.st_mode) and S_ISREG(state.st_mode)) or state.st_size > MAX_STATE_BYTES:
                raise DriverError("VmNotSaved", "Firecracker's snapshot is not what it should be")
            if memory.st_size != expected:
                raise DriverError(
                    "VmNotSaved",
                    f"the memory has {memory.st_size} bytes in Firecracker's snapshot, not {expected}",
                )
            copy_sparse(fds[0], memory_fd)
            return os.pread(fds[1], MAX_STATE_BYTES, 0)
    except OSError as error:
        raise DriverError("VmNotSaved", f"Firecracker's snapshot can't be read: {error}") from None


def disk_files(spec: SandboxSpec) -> list[tuple[str, str]]:
    """A task's disks in their order: (serial in `plan`, file), the writable one first. Raises `DriverError`."""
    if volume_disks(spec.task):
        raise DriverError(
            "NotServed",
            "volumes on disks of their own need QEMU: Firecracker's disks are not flushed",
            fix="start hutch with --drivers microvm",
            aws_prefix="CannotCreateVolumeError",
        )
    if plan.file_systems(spec.task):
        raise DriverError(
            "NotServed",
            "file systems need QEMU: Firecracker has no device for them",
            fix="start hutch with --drivers microvm",
            aws_prefix="ResourceInitializationError",
        )
    scratch = (plan.SCRATCH_SERIAL, str(FirecrackerFiles(spec.directory).scratch))
    return [scratch, *plan.image_files(spec)]


def disk_mounts(spec: SandboxSpec) -> list[dict[str, object]]:
    """`mounts` of the `disks` request, with the serials that Firecracker gives the files. Blocks. Raises `DriverError`."""
    serials = {}
    for name, path in disk_files(spec):
        try:
            status = os.stat(path)
        except OSError as error:
            raise DriverError("VmFilesUnavailable", f"{path}: {error.strerror}") from None
        serials[name] = disk_serial(status.st_dev, status.st_rdev, status.st_ino)
    if len(set(serials.values())) < len(serials):
        raise DriverError(
            "DisksNotDistinct", "two disks of the VM have the same serial, which the guest can't tell apart"
        )
    return [{**mount, "serial": serials[mount["serial"]]} for mount in plan.disk_mounts(spec)]
