"""What a VM monitor's jail looks like: which files, how much memory, how many threads; QEMU's, unless another monitor is
named. The jail itself: `host/kernel/jail.py`."""

import asyncio
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from hutch.base.errors import HutchError
from hutch.base.units import MIB
from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.microvm.qemu import PROGRAM, TCG_BUFFER_MIB
from hutch.host.kernel.cgroup import CgroupError, CgroupLimits, host_cgroups, whole_disk
from hutch.host.kernel.jail import JailBind, Jailer, JailFailed, JailSpec
from hutch.host.kernel.jail_root import JailRoot, RootUnavailable, prepare_root, remove_other_roots
from hutch.host.kernel.process import ProcessRef, process_ref, wait_gone
from hutch.host.kernel.run import CommandFailed
from hutch.host.kernel.users import UserLeases

MONITOR_MEMORY_MIB = 256
"""QEMU's own memory, measured at 60 MiB while idle, with room for its queues; the host's page cache of its disks is
counted too, but gives way."""
MONITOR_THREADS = 96
"""Besides the vCPUs: QEMU's disk workers are at most 64."""
_FIRMWARE = ("bios-microvm.bin", "linuxboot_dma.bin", "kvmvapic.bin", "pvh.bin")
_DEVICES = {"tcg": ("/dev/urandom",), "kvm": ("/dev/urandom", "/dev/kvm")}


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """What the host's owner decided about all jails."""

    user_ids: tuple[int, int] = (1_879_048_192, 1_895_825_407)
    """First and last of the range that monitors run as."""
    cap_cpu: bool = False
    """Every task gets its share of CPU and never more; else those that ask for it."""
    disk_bytes_per_s: int = 0
    """For reads and for writes, each, of each task; 0: no limit."""


class MonitorProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A program that runs VMs, and what it must find in its jail."""

    title: str
    program: str
    """Its name on the path, or its path."""
    fix: str
    """What to do if it is not there."""
    version_arguments: Callable[[str], Sequence[str]]
    """With which it tells its version, for a jail of this name."""
    extra_files: Callable[[], Sequence[Path]] = lambda: ()
    devices: dict[str, tuple[str, ...]]
    """By accelerator."""
    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    """Places where something can be bound."""
    host_network: bool = False


class JailRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One monitor to be jailed."""

    name: str
    argv: Sequence[str]
    pass_fds: Sequence[int]
    output_path: str
    accelerator: str
    vcpus: int
    memory_mib: int
    """Of the VM."""
    cpu_units: int
    largest_file_bytes: int
    early: bool = False
    """As in `JailSpec`: only for a VM that does not run before it is told to."""
    binds: Sequence[JailBind] = ()


class MonitorJail:
    """Starts VM monitors in jails, for one platform."""

    def __init__(
        self,
        *,
        platform_id: str,
        state_dir: Path,
        confinement: Confinement,
        monitor: MonitorProgram | None = None,
    ) -> None:
        """`state_dir`: what is made once for all jails of one kind of monitor goes below it."""
        self._monitor = monitor or QEMU
        self._place = state_dir / "jail"
        self._confinement = confinement
        self._root: JailRoot | None = None
        self._proven = False
        self._lock = asyncio.Lock()
        self._platform_id = platform_id
        self._users = UserLeases(*confinement.user_ids)
        self._made: Jailer | None = None

    @property
    def _jailer(self) -> Jailer:
        if self._made is None:
            try:
                cgroups = host_cgroups()
            except CgroupError as error:
                raise DriverError("JailFailed", error.message, fix="see `hutch doctor`") from None
            self._made = Jailer(platform_id=self._platform_id, users=self._users, cgroups=cgroups)
        return self._made

    async def check(self) -> None:
        """Prove, once, that the monitor can be jailed on this host, by asking it for its version in there. Raises
        `DriverError` with what this host lacks."""
        if self._proven:
            return
        for device in next(iter(self._monitor.devices.values())):
            _check_device(device)
        root = await self.root()
        output = self._place / "check.log"
        name = f"hutch-{self._platform_id}-check"
        request = JailRequest(
            name=name,
            argv=[self._monitor.program, *self._monitor.version_arguments(name)],
            pass_fds=(),
            output_path=str(output),
            accelerator=next(iter(self._monitor.devices)),
            vcpus=1,
            memory_mib=0,
            cpu_units=1024,
            largest_file_bytes=MIB,
        )
        try:
            exit_code = await wait_gone(await asyncio.to_thread(self.start, request, root))
            if exit_code:
                told = await asyncio.to_thread(output.read_text, errors="replace")
                raise DriverError(
                    "JailFailed",
                    f"{self._monitor.title} does not run in its jail (exit code {exit_code}): {told[-500:]}",
                )
        finally:
            await self.remove(request.name)
            output.unlink(missing_ok=True)
        self._proven = True

    async def root(self) -> JailRoot:
        """The monitor's root, made when it is first needed (30 ms). Raises `DriverError`."""
        async with self._lock:
            if self._root is None:
                try:
                    self._root = await prepare_root(
                        self._place,
                        self._monitor.program,
                        extra=self._monitor.extra_files(),
                        devices=self._monitor.devices["kvm"],
                        files=self._monitor.files,
                        directories=self._monitor.directories,
                    )
                except (RootUnavailable, CommandFailed) as error:
                    raise DriverError(
                        "VmMonitorMissing",
                        f"{self._monitor.title} can't be jailed: {error.message}",
                        fix=self._monitor.fix,
                    ) from None
                if not self._jailer.are_there_any():
                    await asyncio.to_thread(remove_other_roots, self._place, self._root)
            return self._root

    def user_of(self, name: str) -> int:
        """The user that the monitor of this name runs as, also before it is started. Raises `DriverError`."""
        try:
            return self._users.lease(name)
        except (HutchError, OSError) as error:
            raise DriverError("JailFailed", str(error)) from None

    def start(self, request: JailRequest, root: JailRoot) -> ProcessRef:
        """Start a monitor; it runs when this returns. Blocking, about 10 ms. Raises `DriverError`."""
        translated_mib = TCG_BUFFER_MIB if request.accelerator == "tcg" else 0
        limits = CgroupLimits(
            cpu_units=request.cpu_units,
            memory_bytes=(request.memory_mib + translated_mib + MONITOR_MEMORY_MIB) * MIB,
            pids=request.vcpus + MONITOR_THREADS,
            disk_bytes_per_s=self._confinement.disk_bytes_per_s,
            disk=self._disk(),
        )
        spec = JailSpec(
            name=request.name,
            arguments=request.argv[1:],
            pass_fds=request.pass_fds,
            output_path=request.output_path,
            root=root,
            devices=self._monitor.devices[request.accelerator],
            binds=request.binds,
            host_network=self._monitor.host_network,
            limits=limits,
            largest_file_bytes=request.largest_file_bytes,
            early=request.early,
        )
        try:
            return self._jailer.start(spec)
        except JailFailed as error:
            raise DriverError("JailFailed", error.message, fix="see `hutch doctor`") from None

    def start_beside(self, spec: JailSpec) -> ProcessRef:
        """Start another program for a VM, in a jail of its own; `remove` takes its name as well. Blocking. Raises
        `DriverError`."""
        try:
            return self._jailer.start(spec)
        except JailFailed as error:
            raise DriverError("JailFailed", error.message, fix="see `hutch doctor`") from None

    @property
    def user_ids(self) -> tuple[int, int]:
        """First and last of the range that monitors run as."""
        return self._confinement.user_ids

    def processes(self, name: str) -> tuple[ProcessRef, ...]:
        """What runs in the jail of that name."""
        found = (process_ref(pid) for pid in self._jailer.processes(name))
        return tuple(ref for ref in found if ref is not None)

    def _disk(self) -> tuple[int, int] | None:
        if not self._confinement.disk_bytes_per_s:
            return None
        disk = whole_disk(self._place)
        if disk is None:
            raise DriverError(
                "DiskNotLimited",
                f"the kernel can't limit the disk that {self._place} is on",
                fix="use --vm-disk-mib-per-s 0, or put --data-dir on a disk's own file system",
            )
        return disk

    @property
    def caps_cpu(self) -> bool:
        """Whether no task may have more CPU than its share."""
        return self._confinement.cap_cpu

    def cap_cpu(self, name: str, cpu_units: int) -> None:
        """From now on, what runs in the jail of that name gets so much CPU and never more. Blocking, below a millisecond.
        Idempotent. Raises `DriverError`."""
        try:
            self._jailer.cap_cpu(name, cpu_units)
        except CgroupError as error:
            raise DriverError(
                "CpuNotCapped",
                f"the task can't be held to its share of CPU: {error.message}",
                fix="run it without hutch:cpuBurst=off, or start hutch with --cpu-burst on",
            ) from None

    async def remove(self, name: str) -> None:
        """End whatever runs in the jail of that name, and leave nothing of it. Idempotent. Raises `DriverError`."""
        try:
            await self._jailer.remove(name)
        except CgroupError as error:
            raise DriverError("JailStays", error.message, retryable=True) from None

    def cpu_ns(self, name: str) -> int | None:
        """CPU time used in the jail of that name."""
        return self._jailer.cpu_ns(name)

    def close(self) -> None:
        """Remove what the platform has on the host if no jail is left."""
        if self._made is not None:
            self._made.close()


def _check_device(device: str) -> None:
    """Raises `DriverError` unless a user without rights can open it, as one of its group if it has one."""
    try:
        status = os.stat(device)
    except OSError:
        raise DriverError("JailFailed", f"{device} is not there", fix="load its kernel module") from None
    wanted = 0o004 if device.endswith("random") else 0o006  # only read from
    allowed = status.st_mode & wanted == wanted or (status.st_gid and status.st_mode & 0o060 == 0o060)
    if not allowed:
        raise DriverError(
            "JailFailed", f"only root can open {device}", fix=f"chmod 0666 {device}, as udev has it"
        )


def _files() -> list[Path]:
    """Besides QEMU itself: its accelerators, which are modules in Debian, and the firmware of its machine."""
    modules = Path(f"/usr/lib/{platform.machine()}-linux-gnu/qemu").glob("accel-tcg-*.so")
    firmware = (Path("/usr/share/qemu", name) for name in _FIRMWARE)
    return [*modules, *(f for f in firmware if f.exists())]


QEMU = MonitorProgram(
    title="QEMU",
    program=PROGRAM,
    fix="install qemu-system-x86",
    version_arguments=lambda name: ("-name", name, "--version"),
    extra_files=_files,
    devices=_DEVICES,
)
