"""Control groups of version 2: one tree. Written from the kernel's documentation and tested on a tree of plain files;
not yet run on such a host."""

import errno
from functools import partial
from pathlib import Path

from hutch.host.kernel.cgroup import (
    CPU_PERIOD_US,
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

CONTROLLERS = ("cpu", "memory", "pids", "io")
MIN_WEIGHT, MAX_WEIGHT = 1, 10_000


class CgroupsV2:
    """Implements `hutch.host.kernel.cgroup.Cgroups`."""

    version = 2

    def __init__(self, mount: Path) -> None:
        self._mount = mount

    def make(self, path: str, limits: CgroupLimits) -> tuple[str, ...]:
        """See the contract."""
        above = self._mount
        self._hand_down(above)
        names = path.strip("/").split("/")
        for name in names[:-1]:
            above = make_directory(above, name)
            self._hand_down(above)
        if above != self._mount:
            write_text(above / "cpu.weight", str(_weight(platform_units())))
        directory = make_directory(above, names[-1])
        self._limit(directory, limits)
        return (str(directory / "cgroup.procs"),)

    def _hand_down(self, directory: Path) -> None:
        """Let the groups below this one have limits."""
        there = set((read_text(directory / "cgroup.controllers") or "").split())
        handed = set((read_text(directory / "cgroup.subtree_control") or "").split())
        if missing := [c for c in CONTROLLERS if c in there - handed]:
            write_text(directory / "cgroup.subtree_control", " ".join(f"+{c}" for c in missing))

    def _limit(self, directory: Path, limits: CgroupLimits) -> None:
        write_text(directory / "cpu.weight", str(_weight(limits.cpu_units)))
        self._cap_cpu(directory, limits.cpu_cap_units)
        write_text(directory / "memory.max", str(limits.memory_bytes or "max"))
        if (directory / "memory.swap.max").exists():
            write_text(directory / "memory.swap.max", "0" if limits.memory_bytes else "max")
        write_text(directory / "pids.max", str(limits.pids or "max"))
        if limits.disk_bytes_per_s and limits.disk is not None:
            rate, (major, minor) = limits.disk_bytes_per_s, limits.disk
            write_text(directory / "io.max", f"{major}:{minor} rbps={rate} wbps={rate}")

    def cap_cpu(self, path: str, cap_units: int) -> None:
        """See the contract."""
        self._cap_cpu(self._directory(path), cap_units)

    @staticmethod
    def _cap_cpu(directory: Path, cap_units: int) -> None:
        quota = str(cpu_quota_us(cap_units)) if cap_units else "max"
        write_text(directory / "cpu.max", f"{quota} {CPU_PERIOD_US}")

    def processes(self, path: str) -> frozenset[int]:
        """See the contract."""
        directories = leaves_first(self._directory(path))
        texts = (read_text(d / "cgroup.procs") or "" for d in directories)
        return frozenset(int(p) for text in texts for p in text.split())

    async def remove(self, path: str) -> None:
        """See the contract."""
        await end_all(partial(self._kill, path))
        await remove_directories(self._directory(path))

    def _kill(self, path: str) -> frozenset[int]:
        pids = self.processes(path)
        # Linux 5.14 has a file that kills all at once, also what forks meanwhile.
        if pids and (self._directory(path) / "cgroup.kill").exists():
            write_text(self._directory(path) / "cgroup.kill", "1")
            return pids
        kill_processes(pids)
        return pids

    def remove_if_empty(self, path: str) -> bool:
        """See the contract."""
        try:
            self._directory(path).rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            return False
        return True

    def cpu_ns(self, path: str) -> int | None:
        """See the contract."""
        text = read_text(self._directory(path) / "cpu.stat")
        fields = dict(line.split() for line in (text or "").splitlines())
        return int(fields["usage_usec"]) * 1000 if "usage_usec" in fields else None

    def _directory(self, path: str) -> Path:
        return self._mount / path.lstrip("/")


def _weight(units: int) -> int:
    """100 for one CPU, which is also what every other group of the host has by default."""
    return min(MAX_WEIGHT, max(MIN_WEIGHT, units * 100 // 1024))
