"""Both versions of control groups, by one suite: version 1 on this host, version 2 on a tree of plain files that behaves
as the kernel's documentation says."""

import asyncio
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host.kernel import cgroup, cgroup_v2
from hutch.host.kernel.cgroup import CGROUP_MOUNT, CgroupLimits, Cgroups, platform_cgroup, task_cgroup
from hutch.host.kernel.cgroup_v1 import CgroupsV1
from hutch.host.kernel.cgroup_v2 import CgroupsV2
from hutch.host.kernel.process import process_ref

_V2_FILES = {
    "cgroup.procs": "",
    "cgroup.controllers": "cpu io memory pids",
    "cgroup.subtree_control": "",
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "cpu.stat": "usage_usec 7\nuser_usec 5\n",
    "memory.max": "max",
    "memory.swap.max": "max",
    "pids.max": "max",
    "io.max": "",
}


class Host:
    """One version to test: the groups, a platform's name, and how to look into them."""

    def __init__(self, cgroups: Cgroups, mount: Path) -> None:
        self.cgroups = cgroups
        self.platform_id = f"t{secrets.token_hex(3)}"
        self.task = task_cgroup(self.platform_id, "task")
        self.mount = mount

    def value(self, v1: str, v2: str) -> str:
        """A file of the task's group, by its name (with the controller) in either version."""
        controller, _, name = v1.partition("/")
        root = self.mount / controller if self.cgroups.version == 1 else self.mount
        return (root / self.task[1:] / (name if self.cgroups.version == 1 else v2)).read_text().strip()

    def left(self) -> list[Path]:
        return [p for p in self.mount.rglob("*") if self.platform_id in p.name and p.is_dir()]


@pytest.fixture(params=["v1", "v2"])
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    if request.param == "v1":
        if not (CGROUP_MOUNT / "memory" / "cgroup.procs").exists() or not _is_root():
            pytest.skip("needs cgroup version 1 and root")
        made = Host(CgroupsV1(CGROUP_MOUNT), CGROUP_MOUNT)
    else:
        _imitate_kernel(tmp_path, monkeypatch)
        made = Host(CgroupsV2(tmp_path), tmp_path)
    yield made
    made.cgroups.remove_if_empty(made.task)
    made.cgroups.remove_if_empty(platform_cgroup(made.platform_id))


def _is_root() -> bool:
    return Path("/proc/self").stat().st_uid == 0


def _imitate_kernel(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New directories get the kernel's files, ended processes leave theirs, and a group is removed with its files."""

    def make_directory(above: Path, name: str) -> Path:
        directory = cgroup.make_directory(above, name)
        handed = (above / "cgroup.subtree_control").read_text().replace("+", "")
        for file, text in _V2_FILES.items():
            if file.partition(".")[0] in ("cgroup", *handed.split()) and not (directory / file).exists():
                (directory / file).write_text(handed if file == "cgroup.controllers" else text)
        return directory

    def read_text(path: Path) -> str | None:
        text = cgroup.read_text(path)
        if path.name == "cgroup.procs" and text:
            return "\n".join(p for p in text.split() if process_ref(int(p)) is not None)
        return text

    def write_text(path: Path, value: str) -> None:
        assert path.exists(), f"the kernel has no {path}"
        path.write_text(value)

    def remove_directory(path: Path) -> None:
        if any(p.is_dir() for p in path.iterdir()):
            raise OSError(39, "Directory not empty")
        shutil.rmtree(path)

    for name, text in _V2_FILES.items():
        if name.startswith("cgroup."):
            (root / name).write_text(text)
    monkeypatch.setattr(cgroup_v2, "make_directory", make_directory)
    monkeypatch.setattr(cgroup_v2, "read_text", read_text)
    monkeypatch.setattr(cgroup_v2, "write_text", write_text)
    monkeypatch.setattr(Path, "rmdir", remove_directory)


async def test_limits_are_set_and_set_again(host: Host) -> None:
    limits = CgroupLimits(cpu_units=512, cpu_cap_units=512, memory_bytes=64 << 20, pids=10)
    host.cgroups.make(host.task, limits)
    assert host.value("cpu/cpu.shares", "cpu.weight") in ("512", "50")
    assert host.value("cpu/cpu.cfs_quota_us", "cpu.max") in ("50000", "50000 100000")
    assert host.value("memory/memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert host.value("pids/pids.max", "pids.max") == "10"
    for memory in (128 << 20, 32 << 20):
        host.cgroups.make(host.task, CgroupLimits(cpu_units=4096, memory_bytes=memory, pids=20))
        assert host.value("memory/memory.limit_in_bytes", "memory.max") == str(memory)
    assert host.value("cpu/cpu.shares", "cpu.weight") in ("4096", "400")
    assert host.value("cpu/cpu.cfs_quota_us", "cpu.max") in ("-1", "max 100000")
    await host.cgroups.remove(host.task)


async def test_a_share_is_a_part_of_what_the_host_has(host: Host) -> None:
    """Between themselves tasks share by their units; all together weigh as much as the host's CPUs."""
    host.cgroups.make(host.task, CgroupLimits(cpu_units=256))
    above = platform_cgroup(host.platform_id)[1:]
    root = host.mount / "cpu" if host.cgroups.version == 1 else host.mount
    weight = int((root / above / ("cpu.shares" if host.cgroups.version == 1 else "cpu.weight")).read_text())
    unit = 1024 if host.cgroups.version == 1 else 100
    assert weight == cgroup.platform_units() // 1024 * unit
    await host.cgroups.remove(host.task)


async def test_removal_kills_all_that_is_inside_and_leaves_nothing(host: Host) -> None:
    files = host.cgroups.make(host.task, CgroupLimits(cpu_units=256, pids=10))
    process = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        for file in files:
            Path(file).write_text(str(process.pid))
        assert host.cgroups.processes(host.task) == {process.pid}
        assert host.cgroups.cpu_ns(host.task) is not None
        assert not host.cgroups.remove_if_empty(platform_cgroup(host.platform_id))
        await host.cgroups.remove(host.task)
        assert process_ref(process.pid) is None
    finally:
        process.kill()
        process.wait()
    assert host.cgroups.cpu_ns(host.task) is None
    assert host.cgroups.remove_if_empty(platform_cgroup(host.platform_id))
    assert host.left() == []


async def test_removal_of_what_is_not_there_is_no_error(host: Host) -> None:
    await host.cgroups.remove(host.task)
    assert host.cgroups.processes(host.task) == frozenset()
    assert host.cgroups.remove_if_empty(host.task)


def test_units_beyond_what_the_kernel_knows_are_bounded(host: Host) -> None:
    for units in (1, 10_000_000):
        host.cgroups.make(host.task, CgroupLimits(cpu_units=units))
        assert host.value("cpu/cpu.shares", "cpu.weight") in ("2", "1", "262144", "10000")


def test_a_host_without_control_groups_is_told(tmp_path: Path) -> None:
    with pytest.raises(cgroup.CgroupError, match="mount cgroup2"):
        cgroup.host_cgroups(tmp_path)


async def test_a_cap_can_come_and_go_later(host: Host) -> None:
    host.cgroups.make(host.task, CgroupLimits(cpu_units=512, memory_bytes=64 << 20))
    for units, v1, v2 in ((256, "25000", "25000 100000"), (0, "-1", "max 100000")):
        host.cgroups.cap_cpu(host.task, units)
        assert host.value("cpu/cpu.cfs_quota_us", "cpu.max") == (v1 if host.cgroups.version == 1 else v2)
    assert host.value("memory/memory.limit_in_bytes", "memory.max") == str(64 << 20), (
        "nothing else is touched"
    )
    await host.cgroups.remove(host.task)
    with pytest.raises((cgroup.CgroupError, AssertionError), match=r"cpu\."):
        host.cgroups.cap_cpu(host.task, 256)


async def test_the_smallest_cap_is_one_that_the_kernel_takes(host: Host) -> None:
    """A period of 100 ms has quotas from 1 ms on."""
    host.cgroups.make(host.task, CgroupLimits(cpu_units=1, cpu_cap_units=1))
    assert host.value("cpu/cpu.cfs_quota_us", "cpu.max") in ("1000", "1000 100000")
    host.cgroups.make(host.task, CgroupLimits(cpu_units=4096, cpu_cap_units=4096))
    assert host.value("cpu/cpu.cfs_quota_us", "cpu.max") in ("400000", "400000 100000")
    await host.cgroups.remove(host.task)


_BURN = "import time\nwhile time.process_time() < 0.25: pass"


@pytest.mark.parametrize("cap_units", [0, 256])
async def test_a_cap_holds_on_an_idle_host_and_only_if_there_is_one(host: Host, cap_units: int) -> None:
    """A quarter of a CPU for 0.25 s of work takes ten periods of 100 ms; fewer are cut short where others take the CPU."""
    if host.cgroups.version == 2:
        pytest.skip("plain files throttle nobody")
    files = host.cgroups.make(host.task, CgroupLimits(cpu_units=256, cpu_cap_units=cap_units))
    enter = "".join(f"echo $$ > {file}\n" for file in files)
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", f"{enter}exec {sys.executable} -c '{_BURN}'"
    )
    assert await process.wait() == 0
    periods = dict(line.split() for line in host.value("cpu/cpu.stat", "cpu.stat").splitlines())
    assert int(periods["nr_throttled"]) >= 2 if cap_units else int(periods["nr_throttled"]) == 0
    await host.cgroups.remove(host.task)
