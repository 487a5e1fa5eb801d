"""How a task's Firecracker VM comes to be: its process is started, and told by its API what to be."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from hutch.base.clock import Clock
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.firecracker.api import FirecrackerApi
from hutch.host.drivers.firecracker.config import VmConfig, boot_requests, check_config, disk_serial
from hutch.host.drivers.firecracker.program import Firecracker, find_firecracker
from hutch.host.drivers.firecracker.sandbox import BringUp, FirecrackerSandbox
from hutch.host.drivers.firecracker.vm import FirecrackerFiles, FirecrackerRequest, kernel_file, launch
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.accelerator import AcceleratorChoice, Verdict
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.making import Phases, no_task, scratch_disk
from hutch.host.drivers.microvm.qemu import vm_memory_mib, vm_vcpus
from hutch.host.drivers.microvm.sandbox import ENTROPY_BYTES
from hutch.host.drivers.microvm.vm import GuestImage, load_guest_image, remove_vm, vm_name
from hutch.host.guestlink.vsock import AGENT_PORT, GuestCall

BOOT_TIMEOUT_S = 60.0


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What all VMs of this host have in common."""

    image: GuestImage
    firecracker: Firecracker
    verdict: Verdict


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
    ) -> None:
        """See `FirecrackerDriver`."""
        self._platform_id = platform_id
        self._program = program
        self._guest_dir = guest_dir
        self._state_dir = state_dir
        self._clock = clock
        self._jail = jail
        self._boot_timeout_s = boot_timeout_s
        self._choice = AcceleratorChoice(
            "kvm", state_dir / "accelerator.json", self._boot_probe_guest, kvm_obstacle
        )

    async def ground(self) -> Ground:
        """What VMs run on here. Raises `DriverError` if none can."""
        firecracker = await find_firecracker(self._program)
        image = await asyncio.to_thread(load_guest_image, self._guest_dir)
        await asyncio.to_thread(kernel_file, image)
        key = f"{os.uname().release} firecracker {firecracker.version_text} {image.key}"
        _, verdict = await self._choice.choose(key)
        return Ground(image=image, firecracker=firecracker, verdict=verdict)

    async def launch(self, spec: SandboxSpec) -> tuple[FirecrackerSandbox, Ground, Phases]:
        """A VM for a task, with its disks attached and its guest greeted. Raises `DriverError`; what was made by then is
        the caller's to remove (`remove_vm`)."""
        phases = Phases(self._clock)
        ground = await self.ground()
        booting = self._boot(spec, ground.image, self._boot_timeout_s)
        return await phases.measure("cold boot", booting, "Firecracker"), ground, phases

    async def _boot(self, spec: SandboxSpec, image: GuestImage, limit_s: float) -> FirecrackerSandbox:
        files, request = FirecrackerFiles(spec.directory), self._request(spec)
        check_config(request.config)
        async with scratch_disk(files, plan.scratch_bytes(spec.task)):
            files.run.mkdir(mode=0o700)
            call = GuestCall(files.agent_socket, AGENT_PORT)
            try:
                ref = await launch(request, files, image, self._jail)
                sandbox = FirecrackerSandbox(
                    spec, files, ref, self._clock, bring_up=_booting(request.config, call)
                )
                try:
                    await sandbox.attach(entropy=os.urandom(ENTROPY_BYTES), hello_timeout_s=limit_s)
                except BaseException:
                    await sandbox.release()
                    raise
            finally:
                call.close()
        return sandbox

    def _request(self, spec: SandboxSpec) -> FirecrackerRequest:
        task = spec.task
        disks = disk_files(spec)
        config = VmConfig(
            vcpus=vm_vcpus(task.cpu_units),
            memory_mib=vm_memory_mib(task.memory_mib),
            disks=tuple(read_only for _, _, read_only in disks),
            tap=spec.attachment.tap,
        )
        return FirecrackerRequest(
            name=vm_name(self._platform_id, task.task_id),
            program=self._program,
            config=config,
            cpu_units=task.cpu_units,
            disks=tuple(path for _, path, _ in disks),
        )

    async def _boot_probe_guest(self, _: str, limit_s: float) -> float:
        """Boot an empty guest; seconds until it answered. Raises `DriverError`."""
        image = await asyncio.to_thread(load_guest_image, self._guest_dir)
        files = FirecrackerFiles(self._state_dir / "probe")
        spec = no_task(f"probe{os.getpid()}", str(files.root))
        name = vm_name(self._platform_id, spec.task.task_id)
        sandbox: FirecrackerSandbox | None = None
        begun = self._clock.monotonic()
        try:
            await remove_vm(name, files, self._jail)
            files.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            sandbox = await self._boot(spec, image, limit_s)
            return self._clock.monotonic() - begun
        finally:
            if sandbox is not None:
                await sandbox.release()
            await remove_vm(name, files, self._jail)


def _booting(config: VmConfig, call: GuestCall) -> BringUp:
    async def bring_up(api: FirecrackerApi) -> None:
        await api.send_all(boot_requests(config))
        await call.wait()

    return bring_up


def disk_files(spec: SandboxSpec) -> list[tuple[str, str, bool]]:
    """A task's disks in their order: (serial in `plan`, file, read-only). Raises `DriverError`."""
    images = {d.serial: d.erofs_path for d in plan.image_disks(spec.images).values()}
    scratch = (plan.SCRATCH_SERIAL, str(FirecrackerFiles(spec.directory).scratch), False)
    by_number = sorted(images.items(), key=lambda item: int(item[0].removeprefix("disk")))
    return [scratch, *((serial, path, True) for serial, path in by_number)]


def disk_mounts(spec: SandboxSpec) -> list[dict[str, object]]:
    """`mounts` of the `disks` request, with the serials that Firecracker gives the files. Blocks. Raises `DriverError`."""
    serials = {}
    for name, path, _ in disk_files(spec):
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
