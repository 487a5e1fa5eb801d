"""A VM on the host, whatever its monitor: what it boots, its files, its process found again by its name, ended, cleaned up.

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
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.kernel.process import find_processes, kill_and_wait

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
