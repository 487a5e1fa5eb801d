"""A Firecracker process: its files, its jail, its start.

Files below the sandbox's directory: `vm/run/` is the monitor's own (`api.sock`, `agent.sock`, `agent.sock_1024`), and all
that it can write to besides the scratch disk; nothing there is trusted. `vm/firecracker.log` has its words and the guest's
console.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hutch.base.threads import in_thread
from hutch.base.units import MIB
from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.firecracker.config import (
    API_SOCKET,
    INITRD,
    KERNEL,
    RUN,
    SNAPSHOT,
    VmConfig,
    disk_place,
)
from hutch.host.drivers.firecracker.program import arguments
from hutch.host.drivers.microvm.jail import JailRequest, MonitorJail
from hutch.host.drivers.microvm.vm import MAX_QEMU_LOG_BYTES, GuestImage, VmFiles, tail
from hutch.host.kernel.jail import JailBind
from hutch.host.kernel.jail_root import JailRoot
from hutch.host.kernel.process import ProcessRef
from hutch.host.kernel.tap import own_tap


class FirecrackerFiles(VmFiles):
    """Places below a sandbox's directory."""

    def __init__(self, directory: str | Path) -> None:
        super().__init__(directory)
        self.run = self.vm / "run"
        self.api_socket = self.run / Path(API_SOCKET).name
        self.agent_socket = self.run / "agent.sock"
        self.qemu_log = self.vm / "firecracker.log"


class FirecrackerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A process to be started for a VM. `disks`: the files, in the order of the VM's; those that have none are empty."""

    name: str
    program: str
    config: VmConfig
    cpu_units: int
    disks: tuple[str, ...] = ()
    snapshot_directory: str = ""
    """Where it can write its memory and state to."""
    pass_fds: tuple[int, ...] = ()


def kernel_file(image: GuestImage) -> Path:
    """The guest's kernel as Firecracker wants it. Raises `DriverError` if the image was built without."""
    path = image.kernel.with_name("vmlinux")
    if not path.is_file():
        raise DriverError(
            "NoGuestImage",
            f"the guest image lacks {path}, which Firecracker boots",
            fix="build it with `make setup`",
        )
    return path


async def launch(
    request: FirecrackerRequest, files: FirecrackerFiles, image: GuestImage, jail: MonitorJail
) -> ProcessRef:
    """Start Firecracker in its jail; it has no VM yet. Raises `DriverError`; what was made by then is removed by
    `remove_vm`, for which there is nothing more to come once this has been cancelled."""
    root = await jail.root()
    return await in_thread(_launch, request, files, image, jail, root)


def _launch(
    request: FirecrackerRequest, files: FirecrackerFiles, image: GuestImage, jail: MonitorJail, root: JailRoot
) -> ProcessRef:
    try:
        if request.config.tap:
            own_tap(request.config.tap, jail.user_of(request.name))
        largest = max([MAX_QEMU_LOG_BYTES, *(os.stat(p).st_size for p in request.disks)])
        if request.snapshot_directory:
            largest = max(largest, request.config.memory_mib * MIB)
    except OSError as error:
        raise DriverError(
            "VmFilesUnavailable", f"can't open what the VM needs: {error.filename or ''} {error.strerror}"
        ) from None
    try:
        ref = jail.start(
            JailRequest(
                name=request.name,
                argv=arguments(request.program, request.name),
                pass_fds=request.pass_fds,
                output_path=str(files.qemu_log),
                accelerator="kvm",
                vcpus=request.config.vcpus,
                memory_mib=request.config.memory_mib,
                cpu_units=request.cpu_units,
                largest_file_bytes=largest,
                binds=_binds(request, files, image),
            ),
            root,
        )
    except DriverError as error:
        if said := tail(files.qemu_log):
            raise DriverError(error.kind, f"{error.message}: {said}", fix=error.fix) from None
        raise
    return ref


def _binds(request: FirecrackerRequest, files: FirecrackerFiles, image: GuestImage) -> Sequence[JailBind]:
    disks = (
        JailBind(source=path, place=disk_place(index), writable=index == 0)
        for index, path in enumerate(request.disks)
    )
    snapshot = (
        (JailBind(source=request.snapshot_directory, place=SNAPSHOT, writable=True),)
        if request.snapshot_directory
        else ()
    )
    return (
        JailBind(source=str(kernel_file(image)), place=KERNEL),
        JailBind(source=str(image.initrd), place=INITRD),
        JailBind(source=str(files.run), place=RUN, writable=True),
        *disks,
        *snapshot,
    )
