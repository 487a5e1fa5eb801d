"""Control groups: what a task may take of the host. One contract over version 1 (and hybrid) and version 2.

Names: `/hutch-<platform>` holds all of a platform, `/hutch-<platform>/<task>` one task; a driver that has several
processes for a task makes its own groups below. All is found again, and removed, by these names alone.
"""

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from hutch.base.errors import HutchError
from hutch.host.kernel.process import process_ref, wait_gone

CGROUP_MOUNT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
MIN_QUOTA_US = 1_000
"""The kernel refuses less."""
REMOVAL_TIMEOUT_S = 5.0
_ROUNDS = 50


class CgroupError(HutchError):
    """A control group can't be made, limited or removed; the message names the file."""


class CgroupLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a group may have. CPU units: 1,024 are one CPU; 0 means no limit, except for `cpu_units`."""

    cpu_units: int
    """A share that is guaranteed when the host is busy; more than it is free to take when the host is idle."""
    cpu_cap_units: int = 0
    """Never more than this, even on an idle host."""
    memory_bytes: int = 0
    pids: int = 0
    disk_bytes_per_s: int = 0
    """For reads and for writes, each, of `disk`."""
    disk: tuple[int, int] | None = None
    """Device numbers of a whole disk."""


class Cgroups(Protocol):
    """The host's control groups. Blocking, each call below a millisecond, except `remove`. Paths begin with a slash."""

    version: int

    def make(self, path: str, limits: CgroupLimits) -> tuple[str, ...]:
        """Make a group, and those above it, or take the one that is there, and set its limits.

        Returns the files into which a process id is to be written. Raises `CgroupError`.
        """
        ...

    def cap_cpu(self, path: str, cap_units: int) -> None:
        """Never more CPU than this for a group that is there; 0: no cap. Raises `CgroupError`."""
        ...

    def processes(self, path: str) -> frozenset[int]:
        """Pids in the group and in those below it; none if there is no such group."""
        ...

    async def remove(self, path: str) -> None:
        """Kill all that runs in the group and below it, wait until it is gone, remove the groups. Idempotent.

        Raises `CgroupError`.
        """
        ...

    def remove_if_empty(self, path: str) -> bool:
        """Remove a group without processes and groups in it; whether it is gone."""
        ...

    def cpu_ns(self, path: str) -> int | None:
        """CPU time that the group has used, ended processes included; None if there is no such group."""
        ...


def platform_cgroup(platform_id: str) -> str:
    """The group above all groups of a platform."""
    return f"/hutch-{platform_id}"


def task_cgroup(platform_id: str, task_id: str) -> str:
    """The group of a task."""
    return f"{platform_cgroup(platform_id)}/{task_id}"


def host_cgroups(mount: Path = CGROUP_MOUNT) -> Cgroups:
    """The version that this host's controllers are in. Raises `CgroupError` if it has none."""
    from hutch.host.kernel.cgroup_v1 import CgroupsV1
    from hutch.host.kernel.cgroup_v2 import CgroupsV2

    if (mount / "cgroup.controllers").exists():
        return CgroupsV2(mount)
    if (mount / "memory").is_dir():
        return CgroupsV1(mount)
    raise CgroupError(f"there are no cgroup controllers below {mount}: mount cgroup2 there")


def platform_units(cpus: int | None = None) -> int:
    """CPU units of the group above all tasks: together they weigh what the host has, so that tasks hold their own
    against the host's other programs."""
    return 1024 * (cpus or os.cpu_count() or 1)


def cpu_quota_us(cap_units: int) -> int:
    """What a group may use of each `CPU_PERIOD_US`, all CPUs together, for a cap in CPU units (at least 1)."""
    return max(MIN_QUOTA_US, cap_units * CPU_PERIOD_US // 1024)


def read_text(path: Path) -> str | None:
    """A small file of the kernel's; None if it, or what it tells of, is gone."""
    try:
        return path.read_text()
    except OSError:
        return None


def write_text(path: Path, value: str) -> None:
    """Write one of the kernel's files in one go. Raises `CgroupError`."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CgroupError(f"can't write {value!r} to {path}: {error.strerror}") from None


def make_directory(root: Path, path: str) -> Path:
    """A group's directory below a hierarchy's root, those above it included. Raises `CgroupError`."""
    directory = root / path.lstrip("/")
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise CgroupError(f"can't make the control group {directory}: {error.strerror}") from None
    return directory


def leaves_first(directory: Path) -> list[Path]:
    """A group's directory and all below it, in the order in which they can be removed."""
    return [Path(d) for d, _, _ in os.walk(directory, topdown=False)]


async def end_all(kill: Callable[[], frozenset[int]]) -> None:
    """Until nothing is left: `kill` (blocking) ends all processes that there are, and says which; what they made meanwhile
    is the next round's."""
    for _ in range(_ROUNDS):
        pids = await asyncio.to_thread(kill)
        if not pids:
            break
        for pid in pids:
            if (ref := process_ref(pid)) is not None:
                await wait_gone(ref)


def kill_processes(pids: Iterable[int]) -> None:
    """SIGKILL; those that are gone already are no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def remove_directories(directory: Path) -> None:
    """Remove a group and those below it, in which no process is listed any more. Raises `CgroupError`.

    A process that has ended, and been reaped, is not listed but keeps its group until the CPU has switched away from it,
    and nobody tells when that is: so a busy group is tried again, at first after a millisecond.
    """
    for each in await asyncio.to_thread(leaves_first, directory):
        delay_s = 0.001
        while True:
            try:
                each.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or delay_s > REMOVAL_TIMEOUT_S:
                    raise CgroupError(f"can't remove the control group {each}: {error.strerror}") from None
            else:
                break
            await asyncio.sleep(delay_s)
            delay_s *= 2


def whole_disk(path: Path) -> tuple[int, int] | None:
    """Device numbers of the disk that holds a path; None if the kernel can't limit it (overlay, tmpfs, ...)."""
    device = os.stat(path).st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not node.exists():
        return None
    real = node.resolve()
    numbers = read_text((real.parent if (real / "partition").exists() else real) / "dev")
    if numbers is None:
        return None
    major, _, minor = numbers.strip().partition(":")
    return int(major), int(minor)
