"""Volumes on disks of their own, in real VMs: formatted, attached to one VM at a time, kept and removed as they should be."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.host.test_task_parts import Room
from tests.support.driver_harness import ContainerHarness, MicrovmHarness

from hutch.host.drivers.contract import DriverError, SandboxExited, SupportsVolumes
from hutch.host.kernel.process import find_processes
from hutch.wire.taskspec import DiskSpec, MountSpec, VolumeSpec

pytestmark = pytest.mark.needs("root", "qemu", "guest_image", "xfs", "runc")
MOUNT = (MountSpec(volume="v", path="/v"),)


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[list[Room]]:
    """Two tasks on the same host."""
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Room(MicrovmHarness(tmp_path / name)))
        made[-1].harness._state = tmp_path / "state"
        made[-1].driver = made[-1].harness.new_driver()
    yield made
    for room in made:
        await room.destroy()


def shared(name: str = "data") -> tuple[VolumeSpec, ...]:
    return (VolumeSpec(name="v", shared_name=name),)


async def test_a_shared_volume_outlives_its_task_and_has_one_vm_at_a_time(rooms: list[Room]) -> None:
    first, second = rooms
    writes = first.script("a", "cat /v/passwd | wc -l; ls -a /v; echo kept > /v/file",
                          mounts=(MountSpec(volume="v", path="/etc"), MountSpec(volume="v", path="/v")))  # fmt: skip
    await first.make(writes, volumes=shared())
    assert "lost+found" not in await first.run("a")
    reads = second.script("b", "cat /v/file; df /v", mounts=MOUNT)
    with pytest.raises(DriverError, match='"data" is attached to another task') as caught:
        await second.make(reads, volumes=shared())
    assert caught.value.kind == "VolumeInUse" and caught.value.retryable
    await first.driver.destroy(first.handle)
    await second.make(reads, volumes=shared())
    assert (await second.run("b")).startswith("kept\n"), "it was not flushed when the task ended"


@pytest.mark.parametrize("filesystem", ["ext3", "ext4", "xfs"])
async def test_a_disk_of_its_own(rooms: list[Room], filesystem: str) -> None:
    room = rooms[0]
    disk = DiskSpec(disk_id="vol-1", size_gib=3, filesystem=filesystem, keep=filesystem == "xfs")
    script = room.script(
        "a", "grep ' /v ' /proc/mounts; df -m /v | tail -n 1; echo x > /v/x && cat /v/x", mounts=MOUNT
    )
    begun = time.monotonic()
    await room.make(script, volumes=(VolumeSpec(name="v", disk=disk),))
    print(f"{filesystem}: {time.monotonic() - begun:.2f} s")
    seen = await room.run("a")
    kind = "ext4" if filesystem == "ext3" else filesystem
    assert f" {kind} rw" in seen and seen.endswith("x\n")
    size_mib = int(seen.splitlines()[1].split()[1])
    assert 2800 < size_mib <= 3072
    await room.driver.destroy(room.handle)
    assert list((room.harness._state / "volumes").rglob("*.img")) == (
        [room.harness._state / "volumes/disks/vol-1.img"] if disk.keep else []
    )
    assert not list((Path(room.spec.directory) / "vm").glob("*"))


async def test_a_vm_with_disks_is_neither_copied_nor_put_aside(rooms: list[Room]) -> None:
    room = rooms[0]
    await room.make(room.script("a", "sleep 1000", mounts=MOUNT), volumes=shared("other"))
    driver = room.driver
    with pytest.raises(DriverError, match="can't be suspended"):
        await driver.suspend(room.handle)  # type: ignore[attr-defined]
    with pytest.raises(DriverError, match="can't be copied"):
        await driver.snapshot(room.handle, str(room.harness._directory / "copy"))  # type: ignore[attr-defined]


async def test_a_name_that_leads_elsewhere_is_refused(rooms: list[Room]) -> None:
    for volume in shared("../x"), (VolumeSpec(name="v", disk=DiskSpec(disk_id="/etc/x", size_gib=1)),):
        with pytest.raises(DriverError) as caught:
            await rooms[0].make(rooms[0].script("a", "true"), volumes=volume)
        assert caught.value.kind == "InvalidName"


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[list[Room]]:
    """Two tasks on the shared kernel."""
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Room(ContainerHarness(tmp_path / name)))
        made[-1].harness._state = tmp_path / "state"
        made[-1].driver = made[-1].harness.new_driver()
    yield made
    for room in made:
        await room.destroy()


async def test_containers_share_a_volume_that_stays(plain: list[Room]) -> None:
    first, second = plain
    mounts = (MountSpec(volume="v", path="/etc"),)
    await first.make(first.script("a", "echo kept > /etc/file", mounts=mounts), volumes=shared())
    await second.make(
        second.script("b", "cat /etc/file; grep -c app /etc/passwd", mounts=mounts), volumes=shared()
    )
    await first.run("a")
    assert await second.run("b") == "kept\n1\n"
    for room in plain:
        await room.driver.destroy(room.handle)
    assert (first.harness._state / "volumes/shared/data/file").read_text() == "kept\n"
    assert not list((first.harness._state / "volumes").rglob(".new-*"))


async def test_a_disk_of_its_own_on_the_shared_kernel(plain: list[Room]) -> None:
    room = plain[0]
    volumes = (
        VolumeSpec(name="v", disk=DiskSpec(disk_id="vol-1", size_gib=1)),
        VolumeSpec(name="w", disk=DiskSpec(disk_id="vol-2", size_gib=1, filesystem="xfs", keep=True)),
    )
    mounts = (*MOUNT, MountSpec(volume="w", path="/w"))
    await room.make(
        room.script("a", "df -m /v /w | tail -n 2; echo x > /w/x", mounts=mounts), volumes=volumes
    )
    sizes = [int(line.split()[1]) for line in (await room.run("a")).splitlines()]
    assert len(sizes) == 2 and all(900 < s <= 1024 for s in sizes)
    await room.driver.destroy(room.handle)
    files = [p.relative_to(room.harness._state) for p in (room.harness._state / "volumes").rglob("*.img")]
    assert files == [Path("volumes/disks/vol-2.img")]


async def test_what_was_synced_survives_a_vm_that_is_killed(rooms: list[Room]) -> None:
    first, second = rooms
    writes = first.script("a", "head -c 3000000 /dev/urandom > /v/big; cp /v/big /v/copy; sync /v/big /v/copy; "
                          "echo synced; sleep 1000", mounts=MOUNT)  # fmt: skip
    await first.make(writes, volumes=shared("crash"))
    await first.start("a")
    await first.written("a", "synced")
    (vm,) = find_processes(f"hutch-{first.harness._platform_id}-{first.harness.task_id}")
    os.kill(vm.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        assert isinstance(await anext(first.events), SandboxExited)
    await second.make(
        second.script("b", "cmp /v/big /v/copy && echo same", mounts=MOUNT), volumes=shared("crash")
    )
    assert await second.run("b") == "same\n"


async def test_a_half_made_disk_is_made_anew(rooms: list[Room]) -> None:
    room = rooms[0]
    drafts = room.harness._state / "volumes/shared"
    drafts.mkdir(parents=True)
    (drafts / ".new-data-gone").write_bytes(b"half")
    await room.make(room.script("a", "echo fine > /v/x && cat /v/x", mounts=MOUNT), volumes=shared())
    assert await room.run("a") == "fine\n"
    assert [p.name for p in drafts.iterdir()] == ["data.img"]


async def test_volumes_are_listed_and_removed_unless_a_vm_has_them(rooms: list[Room]) -> None:
    room = rooms[0]
    disk = DiskSpec(disk_id="vol-1", size_gib=1, filesystem="ext4", keep=True)
    volumes = (*shared("mine"), VolumeSpec(name="w", disk=disk))
    await room.make(room.script("a", "true"), volumes=volumes)
    driver = room.driver
    assert isinstance(driver, SupportsVolumes)
    assert [(v.kind, v.name) for v in await driver.volumes()] == [("shared", "mine"), ("disk", "vol-1")]
    with pytest.raises(DriverError, match='"mine" is attached to a VM'):
        await driver.remove_volume("mine")
    await driver.destroy(room.handle)
    for name in ("mine", "vol-1", "vol-1"):
        await driver.remove_volume(name)
    assert await driver.volumes() == ()


async def test_a_directory_is_removed_with_all_that_is_in_it(plain: list[Room]) -> None:
    room = plain[0]
    await room.make(
        room.script("a", "mkdir -p /v/deep; ln -s /etc /v/deep/link", mounts=MOUNT), volumes=shared()
    )
    await room.run("a")
    await room.driver.destroy(room.handle)
    driver = room.driver
    assert isinstance(driver, SupportsVolumes)
    assert [v.name for v in await driver.volumes()] == ["data"]
    await driver.remove_volume("data")
    assert await driver.volumes() == () and Path("/etc/passwd").exists()
