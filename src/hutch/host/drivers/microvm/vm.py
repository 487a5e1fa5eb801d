"""The VM's process: started with everything it needs as open descriptors, found again by its name, ended,
cleaned up.

Files below the sandbox's directory: `vm/agent.sock`, `vm/qmp.sock`, `vm/scratch.img`, `vm/qemu.log`, and
`console.log`, the end of the guest's console, which stays when the VM is gone.
"""

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

import msgspec

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
from hutch.host.guestlink.unix import listen_unix
from hutch.host.kernel.jail_root import JailRoot
from hutch.host.kernel.locks import lock_open_file
from hutch.host.kernel.process import ProcessRef, find_processes, is_alive, kill_and_wait
from hutch.host.kernel.tap import open_tap

SERVER_LOG = "fs"
MAX_QEMU_LOG_BYTES = 1024 * 1024


class GuestImage(msgspec.Struct, frozen=True, kw_only=True):
    """What every VM boots: kernel, initial root, and what they were made from."""

    kernel: Path
    initrd: Path
    key: str
    kernel_version: str


class VmFiles:
    """Places below a sandbox's directory."""

    def __init__(self, directory: str | Path) -> None:
        self.root = Path(directory)
        self.vm = self.root / "vm"
        self.agent_socket = self.vm / "agent.sock"
        self.qmp_socket = self.vm / "qmp.sock"
        self.scratch = self.vm / "scratch.img"
        self.qemu_log = self.vm / "qemu.log"
        self.name = self.vm / "name"
        self.console = self.root / "console.log"
        self.logs = self.root / "logs"
        self.suspended = self.root / "suspended"
        self.suspending = self.root / "suspending"
        self.resumed = self.root / "resumed"

    def read_name(self) -> str:
        """The name of the VM's process if it was made before it had a task; else ""."""
        try:
            return self.name.read_text()[:100]
        except OSError:
            return ""


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


def load_guest_image(directory: Path) -> GuestImage:
    """The guest image in a directory. Raises `DriverError` if it is missing or damaged."""
    fix = "build it with `make setup`, or say where it is with --guest-dir"
    try:
        document = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=dict[str, str | int])
        key, version = str(document["key"]), str(document.get("kernel_version", ""))
    except (OSError, msgspec.MsgspecError, KeyError) as error:
        raise DriverError(
            "NoGuestImage", f"there is no guest image in {directory}: {error}", fix=fix
        ) from None
    image = GuestImage(
        kernel=directory / "vmlinuz", initrd=directory / "initrd.img", key=key, kernel_version=version
    )
    for path in (image.kernel, image.initrd):
        if not path.is_file():
            raise DriverError("NoGuestImage", f"the guest image lacks {path}", fix=fix)
    return image


def vm_name(platform_id: str, task_id: str) -> str:
    """The name on QEMU's command line by which it is found again."""
    return f"hutch-{platform_id}-{task_id}"


def placeholder_link(platform_id: str) -> str:
    """The name of a new link that leads nowhere."""
    return f"h{platform_id[:4]}w{os.urandom(4).hex()}"


def server_name(vm: str, log_name: str) -> str:
    """The name of a program that serves a VM, by its log's: whose log is there is removed with the VM."""
    return f"{vm}.{log_name.removesuffix('.log')}"


def server_logs(files: VmFiles) -> list[Path]:
    """The logs of the programs that serve a VM."""
    return list(files.vm.glob(f"{SERVER_LOG}*.log"))


async def launch(request: VmRequest, files: VmFiles, image: GuestImage, jail: MonitorJail) -> ProcessRef:
    """Start QEMU in its jail; its sockets can be connected to at once.

    Raises `DriverError`. Nothing is left open here; files, process and jail are removed by `remove_vm`.
    """
    root = await jail.root()
    return await asyncio.to_thread(_launch, request, files, image, jail, root)


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


async def remove_vm(name: str, files: VmFiles, jail: MonitorJail) -> None:
    """End every process of that name, remove its jail and the VM's files; logs and console stay. Idempotent.

    Raises `DriverError` if the jail can't be removed.
    """
    await end_vm(name, files, jail)
    for directory in (files.vm, files.suspending, files.suspended, files.resumed):
        await asyncio.to_thread(shutil.rmtree, directory, True)


async def end_vm(name: str, files: VmFiles, jail: MonitorJail) -> None:
    """End every process of that name and remove its jail and sockets; its disk stays. Idempotent. Raises `DriverError`."""
    for each in {name, files.read_name() or name}:
        for ref in await asyncio.to_thread(find_processes, each):
            await kill_and_wait(ref)
        await jail.remove(each)
        for told in server_logs(files):
            await jail.remove(server_name(each, told.name))
    for path in (files.agent_socket, files.qmp_socket, files.name):
        path.unlink(missing_ok=True)


def tail(path: Path, count: int = 4000) -> str:
    """The end of a file as text; "" if there is none."""
    try:
        with path.open("rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - count))
            return f.read(count).decode("utf-8", "replace")
    except OSError:
        return ""


def bound_qemu_log(files: VmFiles) -> None:
    """A guest can make QEMU complain without end: keep what it says within `MAX_QEMU_LOG_BYTES`."""
    with contextlib.suppress(OSError):
        if files.qemu_log.stat().st_size > MAX_QEMU_LOG_BYTES:
            os.truncate(files.qemu_log, 0)


def write_console(files: VmFiles, data: bytes) -> None:
    """Keep the end of the guest's console (bounded by QEMU's ring) for people, mode 0600."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(files.console, flags, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def allocated_bytes(path: Path) -> int | None:
    """What a sparse file really takes of the disk; None if it is not there."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return None
