"""Control groups that an OCI runtime makes below a task's (`hutch.host.kernel.cgroup`): what they use, how often the
OOM killer came, and the end of all processes in them.

A runtime makes its group in every hierarchy of version 1, also in those that hutch itself does not ask for.
"""

import asyncio
import contextlib
import errno
import os
import signal
from pathlib import Path

import msgspec

from hutch.host.kernel.cgroup import CGROUP_MOUNT
from hutch.host.kernel.process import process_ref, wait_gone

_CONTROLLERS = ("cpu", "memory", "pids")
_V1_NEEDED = ("memory", "cpu", "cpuacct", "pids")
_END_ROUNDS = 100
_RMDIR_TRIES = 40


class GroupUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a group uses; `memory_bytes` without the file pages that the kernel can drop at once."""

    cpu_ns: int = 0
    memory_bytes: int = 0
    pids: int = 0


class ContainerCgroups:
    """The groups of this host. Blocking but quick, except for the coroutines."""

    def __init__(self, root: Path = CGROUP_MOUNT) -> None:
        self._root = root
        self.version = 2 if (root / "cgroup.controllers").exists() else 1

    def missing(self) -> tuple[str, ...]:
        """Controllers that limits need and this host lacks."""
        if self.version == 2:
            there = _read(self._root / "cgroup.controllers").split()
            return tuple(c for c in _CONTROLLERS if c not in there)
        return tuple(c for c in _V1_NEEDED if not (self._root / c).is_dir())

    def use(self, path: str) -> GroupUse | None:
        """What the group and those below use; None if it is gone."""
        try:
            if self.version == 2:
                group = self._root / path.lstrip("/")
                memory = int(_read(group / "memory.current")) - _field(group / "memory.stat", "inactive_file")
                cpu_ns = _field(group / "cpu.stat", "usage_usec") * 1000
            else:
                group = self._v1("memory", path)
                cache = _field(group / "memory.stat", "total_inactive_file")
                memory = int(_read(group / "memory.usage_in_bytes")) - cache
                cpu_ns = int(_read(self._v1("cpuacct", path) / "cpuacct.usage"))
            pids = int(_read(self._of("pids", path) / "pids.current"))
        except OSError:
            return None
        return GroupUse(cpu_ns=cpu_ns, memory_bytes=max(memory, 0), pids=pids)

    def oom_kills(self, path: str) -> int:
        """How many processes of this very group the kernel has killed for want of memory; 0 if it is gone."""
        name = "memory.events.local" if self.version == 2 else "memory.oom_control"
        try:
            return _field(self._of("memory", path) / name, "oom_kill")
        except OSError:
            return 0

    def processes(self, path: str) -> tuple[int, ...]:
        """Pids of the group and those below; none if it is gone."""
        found: list[int] = []
        for base, _, _ in os.walk(self._of("pids", path)):
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in _read(Path(base) / "cgroup.procs").split()]
        return tuple(found)

    async def remove(self, path: str) -> None:
        """End all processes of the group and those below, and remove them; no error if it is gone.

        Raises `OSError` if something can't be ended (it hangs in the kernel).
        """
        await self._end_all(path)
        directories = await asyncio.to_thread(self._directories, path)
        for directory in directories:
            await _rmdir(directory)

    def remove_if_empty(self, path: str) -> None:
        """Remove a group that has no others below and no processes; else leave it."""
        for directory in self._places(path):
            with contextlib.suppress(OSError):
                directory.rmdir()

    async def _end_all(self, path: str) -> None:
        # Whatever forks must not win against us: nothing new can be made from here on.
        with contextlib.suppress(OSError):
            (self._of("pids", path) / "pids.max").write_text("0")
        for _ in range(_END_ROUNDS):
            refs = [process_ref(pid) for pid in await asyncio.to_thread(self.processes, path)]
            alive = [ref for ref in refs if ref is not None and ref.pid != os.getpid()]
            if not alive:
                return
            for ref in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(ref.pid, signal.SIGKILL)
            await asyncio.gather(*(wait_gone(ref) for ref in alive))
        raise OSError(errno.EBUSY, f"processes in {path} do not end")

    def _directories(self, path: str) -> list[Path]:
        """All directories of the group, the innermost first."""
        found: list[Path] = []
        for place in self._places(path):
            found += [Path(base) for base, _, _ in os.walk(place, topdown=False)]
        return found

    def _places(self, path: str) -> list[Path]:
        """Where the group may have a directory: version 1 has hierarchies under several names for the same."""
        if self.version == 2:
            return [self._root / path.lstrip("/")]
        seen: dict[tuple[int, int], Path] = {}
        for hierarchy in sorted(self._root.iterdir()):
            place = hierarchy / path.lstrip("/")
            with contextlib.suppress(OSError):
                status = place.stat()
                seen.setdefault((status.st_dev, status.st_ino), place)
        return list(seen.values())

    def _of(self, controller: str, path: str) -> Path:
        return self._root / path.lstrip("/") if self.version == 2 else self._v1(controller, path)

    def _v1(self, controller: str, path: str) -> Path:
        return self._root / controller / path.lstrip("/")


async def _rmdir(directory: Path) -> None:
    """The kernel lets go of a group some time after its last process was seen to end, and tells nobody when."""
    delay_s = 0.001
    for attempt in range(_RMDIR_TRIES):
        try:
            directory.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or attempt + 1 == _RMDIR_TRIES:
                raise
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, 0.1)


def _read(path: Path) -> str:
    return path.read_text().strip()


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
