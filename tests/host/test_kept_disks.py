"""Disks of stopped tasks on a host with the fake driver: what is kept, for how long, and who may look into it."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.fleet_control import Host, make_container, make_task

from hutch.base.clock import SystemClock
from hutch.base.units import MIB
from hutch.host.agent.kept import MAX_LOOKS, KeptDisks, KeptLimits
from hutch.host.agent.taskfile import TaskFile
from hutch.host.drivers.contract import Attachment, ExecStream, HostFault, RootImage, SandboxSpec
from hutch.host.drivers.fake import FakeDriver
from hutch.host.drivers.fake_host import FakeImages
from hutch.host.drivers.fake_sandbox import STATE_FILE
from hutch.model.exec import ExecSpec
from hutch.wire.facts import KeptDiskFact
from hutch.wire.fleet import Reply

FAILED, CLEAN = "a" * 32, "b" * 32
DAY_S = 86400.0
ROOMY = KeptLimits(bytes=64 * MIB, life_s=DAY_S)
DISK_BYTES = 4096
"""What the fake driver's file takes of a disk."""


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    made.kept_disks = ROOMY
    await made.control.listen()
    yield made
    await made.close()


async def _shown(host: Host, task_id: str) -> Reply:
    return await host.control.request("disk.show", task_id=task_id)


async def test_a_disk_outlives_its_task_and_the_agent_with_its_images(host: Host) -> None:
    await host.start_agent()
    secret = make_container(RUN_MS=1, EXIT=3, secret_names=("PASSWORD",), secrets={"PASSWORD": "hunter2"})
    host.control.assign(make_task(FAILED, secret))
    await host.control.until_status(FAILED, "STOPPED")
    shown = (await _shown(host, FAILED)).result
    assert shown["is_kept"] and shown["until"] == shown["kept_at"] + DAY_S
    assert not (host.directory / "tasks" / FAILED / STATE_FILE).exists()
    assert host.images.used[FAILED]

    await host.kill_agent()
    await host.start_agent()
    await host.control.until(lambda: len(host.control.hellos) == 2)
    assert (await _shown(host, FAILED)).result == shown
    assert [d["task_id"] for d in (await host.control.request("disk.list")).result["disks"]] == [FAILED]
    assert (host.directory / "kept-disks").stat().st_mode & 0o077 == 0
    kept = b"".join(p.read_bytes() for p in (host.directory / "kept-disks").rglob("*") if p.is_file())
    assert b"hunter2" not in kept

    assert not (await host.control.request("disk.remove", task_id=FAILED)).error
    gone = (await _shown(host, FAILED)).result
    assert not gone["is_kept"] and gone["reason"] == "it was removed on request" and gone["since"]
    assert FAILED not in host.images.used and not (host.directory / "kept-disks" / FAILED).exists()
    assert "not kept" in (await host.control.request("disk.remove", task_id=FAILED)).error


async def test_an_agent_that_was_killed_while_it_moved_a_disk(host: Host) -> None:
    """The next one finds a part of it moved and the sandbox gone, and goes on."""
    await host.start_agent()
    host.control.assign(make_task(FAILED))
    await host.control.until_status(FAILED, "RUNNING")
    await host.kill_agent()
    place = host.directory / "kept-disks" / FAILED / "disk"
    place.mkdir(parents=True)
    shutil.move(host.directory / "tasks" / FAILED / STATE_FILE, place)
    stranger = host.directory / "kept-disks" / ("c" * 32)
    stranger.mkdir()
    await host.start_agent()
    await host.control.until_status(FAILED, "STOPPED")
    assert (await _shown(host, FAILED)).result["is_kept"] and not stranger.exists()


async def test_nothing_is_kept_where_nothing_is_to_be(host: Host) -> None:
    host.kept_disks = KeptLimits()
    await host.start_agent()
    host.control.assign(make_task(FAILED, make_container(RUN_MS=1, EXIT=3)))
    await host.control.until_status(FAILED, "STOPPED")
    shown = (await _shown(host, FAILED)).result
    assert not shown["is_kept"] and "--kept-disks-mib" in shown["reason"]
    assert host.remains(FAILED) == []


class Room:
    """`KeptDisks` over a fake driver, without an agent."""

    def __init__(self, directory: Path, limits: KeptLimits) -> None:
        self.directory = directory
        self.limits = limits
        self.images = FakeImages()
        self.driver = FakeDriver(clock=SystemClock())
        self.kept = self.made()

    def made(self) -> KeptDisks:
        place = self.directory / "kept"
        return KeptDisks(place, (self.driver,), self.images, SystemClock(), self.limits)

    async def keep(self, task_id: str, *, failed: bool = True) -> KeptDiskFact:
        """A task that has run and ended."""
        spec = make_task(task_id, make_container())
        directory = self.directory / task_id
        directory.mkdir()
        image = RootImage(reference="i", digest="sha256:0", config={}, directory="/")
        sandbox = SandboxSpec(
            task=spec, directory=str(directory), images={"app": image}, attachment=Attachment()
        )
        handle = await self.driver.create(sandbox)
        content = TaskFile(
            spec=spec, handle=handle, attachment=sandbox.attachment, images=sandbox.images, driver="fake"
        )
        await self.kept.keep(self.driver, content, is_failure=failed)
        await self.driver.destroy(handle)
        return self.kept.describe(task_id)

    async def exec(self, task_id: str, *command: str) -> ExecStream:
        return await self.kept.exec(task_id, "app", ExecSpec(command=command, stdin=True))

    def looks(self) -> list[str]:
        return [p.parent.name for p in (self.directory / "kept").glob("*/look")]


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(tmp_path, ROOMY)
    await made.kept.start(frozenset())
    yield made
    await made.kept.close()
    assert made.looks() == []
    await made.driver.close()


async def test_one_sandbox_for_all_who_look_and_none_after_the_last(room: Room) -> None:
    assert (await room.keep(FAILED)).is_kept
    first = await room.exec(FAILED, "cat")
    second = await room.exec(FAILED, "echo", "hello")
    assert room.looks() == [FAILED] and room.kept.describe(FAILED).is_open
    assert [text async for _, text in second.output()] == [b"hello\n"]
    await second.close()
    assert room.looks() == [FAILED]
    await first.close()
    await first.close()
    assert room.looks() == [] and not room.kept.describe(FAILED).is_open
    with pytest.raises(HostFault, match="not found"):
        await room.exec(FAILED, "nothing-such")
    assert room.looks() == []
    with pytest.raises(HostFault, match="no container"):
        await room.kept.exec(FAILED, "other", ExecSpec(command=("true",)))


async def test_few_are_looked_into_at_a_time(room: Room) -> None:
    names = [f"{n:032x}" for n in range(MAX_LOOKS + 1)]
    for name in names:
        await room.keep(name)
    streams = [await room.exec(name, "cat") for name in names[:-1]]
    with pytest.raises(HostFault) as caught:
        await room.exec(names[-1], "cat")
    assert caught.value.kind == "TooManyLooks"
    await streams.pop().close()
    streams.append(await room.exec(names[-1], "cat"))
    for stream in streams:
        await stream.close()


async def test_the_oldest_makes_room_and_one_that_is_open_stays(tmp_path: Path) -> None:
    room = Room(tmp_path, KeptLimits(bytes=2 * DISK_BYTES, life_s=DAY_S))
    await room.kept.start(frozenset())
    await room.keep(FAILED)
    await room.keep(CLEAN, failed=False)
    stream = await room.exec(CLEAN, "cat")
    await room.keep("c" * 32)
    await room.kept.settled()
    assert "made room" in room.kept.describe(FAILED).reason and room.kept.has(CLEAN)
    # Whoever looks into it is hung up on if it is removed.
    await room.kept.remove(CLEAN)
    await stream.close()
    with pytest.raises(HostFault, match="removed on request"):
        await room.exec(CLEAN, "cat")
    await room.kept.close()
    again = room.made()
    await again.start(frozenset())
    assert again.has("c" * 32) and "made room" in again.describe(FAILED).reason
    await again.close()
    await room.driver.close()


async def test_what_is_too_old_goes_at_the_next_start(room: Room) -> None:
    await room.keep(FAILED)
    room.images.acquire("sha256:0", FAILED)
    await room.kept.close()
    room.limits = KeptLimits(bytes=MIB, life_s=0.0)
    again = room.made()
    await again.start(frozenset())
    assert not again.has(FAILED) and "--kept-disks-hours" in again.describe(FAILED).reason
    assert FAILED not in room.images.used
    await again.close()


async def test_a_sandbox_that_a_killed_agent_left_is_removed(room: Room) -> None:
    await room.keep(FAILED)
    await room.exec(FAILED, "cat")
    assert room.looks() == [FAILED]
    again = room.made()
    await again.start(frozenset())
    assert room.looks() == [] and again.has(FAILED)
    await again.close()
