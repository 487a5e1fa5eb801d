"""QEMU's process: started in its jail, with everything that it needs as open descriptors."""

import contextlib
import os
from pathlib import Path

import msgspec

from hutch.base.threads import in_thread
from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.microvm.jail import JailRequest, MonitorJail
from hutch.host.drivers.microvm.qemu import (
    DISK_SLOTS,
    TCG_BUFFER_MIB,
    Disk,
    Memory,
    VmSpec,
    inherited_fds,
    qemu_argv,
)
from hutch.host.drivers.microvm.vm import MAX_QEMU_LOG_BYTES, GuestImage, VmFiles, tail
from hutch.host.guestlink.unix import listen_unix
from hutch.host.kernel.jail_root import JailRoot
from hutch.host.kernel.locks import lock_open_file
from hutch.host.kernel.process import ProcessRef, is_alive
from hutch.host.kernel.tap import open_tap


class VmRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A VM to be launched. `disks`: (path, read-only), the writable ones first; all but the first one are only ever one VM's
    at a time."""

    name: str
    accelerator: str
    vcpus: int
    memory_mib: int
    cpu_units: int = 0
    """Its share of the host's CPUs, 1,024 for each; 0: one for each vCPU."""
    disks: tuple[tuple[str, bool], ...] = ()
    disk_slots: int = DISK_SLOTS[0]
    writable_disks: int = 1
    tap: str = ""
    tap_fd: int | None = None
    """Instead of a tap's name: one that is open."""
    disk_bytes: int = 0
    """The size to which its writable disk may grow if that is attached later."""
    tsc_khz: int = 0
    memory: Memory | None = None
    file_system_fds: tuple[int, ...] = ()
    """As in `VmSpec`; whoever asks has them open."""
    tcg_buffer_mib: int = TCG_BUFFER_MIB
    incoming: bool = False
    """It waits for its state (see `restore.py`) and does not boot."""
    devices_only: bool = False
    """As in `VmSpec`."""


async def launch(request: VmRequest, files: VmFiles, image: GuestImage, jail: MonitorJail) -> ProcessRef:
    """Start QEMU in its jail; its sockets can be connected to at once.

    Raises `DriverError`. Nothing is left open here; files, process and jail are removed by `remove_vm`, for which there is
    nothing more to come once this has been cancelled.
    """
    root = await jail.root()
    return await in_thread(_launch, request, files, image, jail, root)


def _launch(
    request: VmRequest, files: VmFiles, image: GuestImage, jail: MonitorJail, root: JailRoot
) -> ProcessRef:
    with contextlib.ExitStack() as stack:
        try:
            spec = _open_all(request, files, image, stack)
        except OSError as error:
            raise DriverError(
                "VmFilesUnavailable", f"can't open what the VM needs: {error.filename or ''} {error.strerror}"
            ) from None
        writable = [d.fd for d in spec.disks if not d.read_only]
        ref = jail.start(
            JailRequest(
                name=request.name,
                argv=qemu_argv(spec),
                pass_fds=inherited_fds(spec),
                output_path=str(files.qemu_log),
                accelerator=request.accelerator,
                vcpus=request.vcpus,
                memory_mib=request.memory_mib,
                cpu_units=request.cpu_units or request.vcpus * 1024,
                largest_file_bytes=max(
                    [MAX_QEMU_LOG_BYTES, request.disk_bytes, *(os.fstat(fd).st_size for fd in writable)]
                ),
                early=request.incoming,
            ),
            root,
        )
    # It is reaped through its pidfd (`wait_gone`), as a VM that an earlier agent started is.
    if not is_alive(ref):
        raise DriverError("VmFailed", f"QEMU ended at once: {tail(files.qemu_log)}")
    return ref


def _open_all(request: VmRequest, files: VmFiles, image: GuestImage, stack: contextlib.ExitStack) -> VmSpec:
    def opened(path: Path | str, flags: int = os.O_RDONLY) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        return fd

    disks = tuple(
        Disk(fd=opened(path, os.O_RDONLY if read_only else os.O_RDWR), read_only=read_only)
        for path, read_only in request.disks
    )
    for disk in disks[1:]:
        if not disk.read_only:
            _claim_disk(disk.fd)
    tap_fd = request.tap_fd
    if request.tap:
        tap_fd = open_tap(request.tap)
        stack.callback(os.close, tap_fd)
    return VmSpec(
        name=request.name,
        accelerator=request.accelerator,
        vcpus=request.vcpus,
        memory_mib=request.memory_mib,
        kernel_fd=None if request.incoming else opened(image.kernel),
        initrd_fd=None if request.incoming else opened(image.initrd),
        agent_fd=stack.enter_context(listen_unix(files.agent_socket)).fileno(),
        qmp_fd=stack.enter_context(listen_unix(files.qmp_socket)).fileno(),
        disks=disks,
        disk_slots=request.disk_slots,
        writable_disks=request.writable_disks,
        tap_fd=tap_fd,
        file_system_fds=request.file_system_fds,
        tsc_khz=request.tsc_khz,
        memory=request.memory,
        incoming=request.incoming,
        tcg_buffer_mib=request.tcg_buffer_mib,
        devices_only=request.devices_only,
    )


def _claim_disk(fd: int) -> None:
    """From now on the disk is this VM's: QEMU alone inherits the open file, so the lock lasts as long as QEMU does, whoever is
    killed. Raises `DriverError`."""
    if not lock_open_file(fd):
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).stem
        raise DriverError(
            "VolumeInUse",
            f'the disk of volume "{name}" is attached to another task, and a microVM has a disk for itself',
            fix="stop that task, or use launch type EC2, whose tasks share a volume",
            aws_prefix="ResourceInitializationError",
            retryable=True,
        )
