"""Control groups of version 1, and of the hybrid layout: one tree for each controller, the same path in all of them."""

import errno
from functools import partial
from pathlib import Path

from hutch.host.kernel.cgroup import (
    CPU_PERIOD_US,
    CgroupError,
    CgroupLimits,
    cpu_quota_us,
    end_all,
    kill_processes,
    leaves_first,
    make_directory,
    platform_units,
    read_text,
    remove_directories,
    write_text,
)

CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "blkio")
MIN_SHARES, MAX_SHARES = 2, 262_144


class CgroupsV1:
    """Implements `hutch.host.kernel.cgroup.Cgroups`."""

    version = 1

    def __init__(self, mount: Path) -> None:
        roots = (mount / name for name in CONTROLLERS if (mount / name).is_dir())
        # cpu and cpuacct are often one tree under two names.
        self._roots = tuple({root.resolve(): root for root in roots}.values())
        self._mount = mount

    def make(self, path: str, limits: CgroupLimits) -> tuple[str, ...]:
        """See the contract."""
        parent = path.rpartition("/")[0]
        if parent:
            make_directory(self._mount / "cpu", parent)
            write_text(self._file("cpu", parent, "cpu.shares"), str(_shares(platform_units())))
        directories = [make_directory(root, path) for root in self._roots]
        self._limit_cpu(path, limits)
        if limits.memory_bytes:
            self._limit_memory(path, limits.memory_bytes)
        if limits.pids:
            write_text(self._file("pids", path, "pids.max"), str(limits.pids))
        if limits.disk_bytes_per_s and limits.disk is not None:
            value = f"{limits.disk[0]}:{limits.disk[1]} {limits.disk_bytes_per_s}"
            for direction in ("read", "write"):
                write_text(self._file("blkio", path, f"blkio.throttle.{direction}_bps_device"), value)
        return tuple(str(d / "cgroup.procs") for d in directories)

    def _limit_cpu(self, path: str, limits: CgroupLimits) -> None:
        write_text(self._file("cpu", path, "cpu.shares"), str(_shares(limits.cpu_units)))
        self.cap_cpu(path, limits.cpu_cap_units)

    def cap_cpu(self, path: str, cap_units: int) -> None:
        """See the contract."""
        period, quota = (self._file("cpu", path, f"cpu.cfs_{what}_us") for what in ("period", "quota"))
        if quota.exists() or not quota.parent.exists():
            write_text(period, str(CPU_PERIOD_US))
            write_text(quota, str(cpu_quota_us(cap_units) if cap_units else -1))
        elif cap_units:
            raise CgroupError("this host's kernel can't cap CPU (CONFIG_CFS_BANDWIDTH)")

    def _limit_memory(self, path: str, limit: int) -> None:
        # A limit with swap can't be below the one without it, neither before nor after.
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        files = [f for f in (self._file("memory", path, n) for n in names) if f.exists()]
        current = read_text(files[0]) or "0"
        for file in files if int(current) >= limit else reversed(files):
            write_text(file, str(limit))

    def processes(self, path: str) -> frozenset[int]:
        """See the contract."""
        found: set[int] = set()
        for root in self._roots:
            for directory in leaves_first(root / path.lstrip("/")):
                found |= {int(p) for p in (read_text(directory / "cgroup.procs") or "").split()}
        return frozenset(found)

    async def remove(self, path: str) -> None:
        """See the contract."""
        await end_all(partial(self._kill, path))
        for root in self._roots:
            await remove_directories(root / path.lstrip("/"))

    def _kill(self, path: str) -> frozenset[int]:
        pids = self.processes(path)
        kill_processes(pids)
        return pids

    def remove_if_empty(self, path: str) -> bool:
        """See the contract."""
        gone = True
        for root in self._roots:
            try:
                (root / path.lstrip("/")).rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                gone = False
        return gone

    def cpu_ns(self, path: str) -> int | None:
        """See the contract."""
        text = read_text(self._file("cpuacct", path, "cpuacct.usage"))
        return None if text is None else int(text)

    def _file(self, controller: str, path: str, name: str) -> Path:
        return self._mount / controller / path.lstrip("/") / name


def _shares(units: int) -> int:
    return min(MAX_SHARES, max(MIN_SHARES, units))
