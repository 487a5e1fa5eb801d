"""File systems that several microVMs have at once, served by virtiofsd in a jail."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.host.test_task_parts import Room
from tests.support.driver_harness import MicrovmHarness

from hutch.host.drivers.contract import DriverError, SandboxExited
from hutch.host.drivers.file_trees import FIRST_ID, FileTrees
from hutch.host.kernel.process import find_processes
from hutch.wire.taskspec import FileSystemSpec, MountSpec, VolumeSpec

MOUNT = (MountSpec(volume="v", path="/v"),)
FS = "fs-0123456789abcdef0"


def volume(root: str = "/", owner: tuple[int, int, int] | None = None) -> tuple[VolumeSpec, ...]:
    return (VolumeSpec(name="v", file_system=FileSystemSpec(file_system_id=FS, root=root, owner=owner)),)


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


def servers() -> set[int]:
    return {ref.pid for ref in find_processes("sandbox=chroot")}


@pytest.mark.needs("root", "qemu", "guest_image", "virtiofsd")
async def test_tasks_see_each_others_files(rooms: list[Room]) -> None:
    first, second = rooms
    before = servers()
    writes = (
        "grep ' /v ' /proc/mounts; echo hello > /v/greeting; chown 5:6 /v/greeting; chmod 640 /v/greeting; "
        "ln -s /etc/shadow /v/link; mkdir /v/sub; echo deep > /v/sub/file; "
        "until test -e /v/answer; do sleep 0.1; done; cat /v/answer"
    )
    await first.make(first.script("a", writes, mounts=MOUNT), volumes=volume())
    waits = "until test -e /v/sub/file; do sleep 0.1; done"
    script = f"{waits}; stat -c '%u:%g %a' /v/greeting; cat /v/greeting; echo seen > /v/answer; mknod /v/null c 1 3"
    await second.make(second.script("b", script, mounts=MOUNT), volumes=volume())
    assert len(servers() - before) == 2
    for pid in servers() - before:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert set(status["Uid"].split()) == {str(FIRST_ID)} and status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) & (1 << 21) == 0, "it may administer its namespaces"
    told_first, told_second = await asyncio.gather(first.run("a"), second.run("b"))
    assert " virtiofs rw" in told_first and told_first.endswith("seen\n")
    assert told_second.startswith("5:6 640\nhello\n"), "the other's file is another one"
    tree = first.harness._state / "filesystems" / FS
    status = (tree / "greeting").lstat()
    assert (status.st_uid, status.st_gid) == (FIRST_ID + 5, FIRST_ID + 6)
    assert not (tree / "null").exists(), "a device was made"
    for room in rooms:
        await room.driver.destroy(room.handle)
    assert servers() == before
    assert (tree / "sub/file").read_text() == "deep\n"
    assert not list((Path(first.spec.directory) / "vm").glob("*"))


@pytest.mark.needs("root", "qemu", "guest_image", "virtiofsd")
async def test_a_vm_without_its_file_server_is_ended_and_says_so(rooms: list[Room]) -> None:
    room, before = rooms[0], servers()
    await room.make(room.script("a", "sleep 1000", mounts=MOUNT), volumes=volume())
    (server,) = servers() - before
    other = room.harness.new_driver()
    await room.driver.close()
    room.driver = other
    await other.adopt(room.handle, room.spec)
    os.kill(server, signal.SIGKILL)
    async with asyncio.timeout(20):
        events = [e async for e in other.events(room.handle)]
    assert isinstance(events[-1], SandboxExited) and events[-1].kind == "FileServerEnded"


def test_roots_are_made_and_found_without_following_links(tmp_path: Path) -> None:
    trees = FileTrees(tmp_path / "all")
    if os.geteuid() != 0:
        pytest.skip("files are given to others")
    spec = FileSystemSpec(file_system_id=FS)
    tree = trees.ready(spec)
    assert (tree.stat().st_uid, tree.stat().st_mode & 0o777) == (FIRST_ID, 0o755)
    with pytest.raises(DriverError) as missing:
        trees.ready(FileSystemSpec(file_system_id=FS, root="/a/b"))
    assert missing.value.kind == "FileSystemRootMissing"
    trees.ready(FileSystemSpec(file_system_id=FS, root="/a/b", owner=(7, 8, 0o750)))
    made = (tree / "a/b").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o7777) == (FIRST_ID + 7, FIRST_ID + 8, 0o750)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree / "link").symlink_to(outside)
    for owner in (None, (1, 1, 0o777)):
        with pytest.raises(DriverError):
            trees.ready(FileSystemSpec(file_system_id=FS, root="/link/x", owner=owner))
    assert list(outside.iterdir()) == []
    trees.remove(FS)
    trees.remove(FS)
    assert list((tmp_path / "all").iterdir()) == []
