"""Hosts that say nothing, that go, that stay away: who is taken for connected, and when its tasks are given up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.test_fleet_credentials import CAUSE, Control

from hutch.base.clock import SystemClock
from hutch.base.errors import Conflict, NotFound, StorageFull
from hutch.control import host_session, rounds
from hutch.control.controllers.host_loss import HostLossLoop
from hutch.control.ops.host_loss import HostLossOps
from hutch.model.host import Host, Reservation
from hutch.model.record import Cause
from hutch.model.task import Task
from hutch.store import tables
from hutch.store.contract import Tx
from hutch.wire import fleet as wire
from hutch.wire.codec import read_message, write_message
from hutch.wire.facts import Fingerprint

LIMIT_S = 60
SILENCE_S = 2.0
"""Long beside what a busy machine keeps a test waiting for."""
TASKS = 250


class JumpingClock(SystemClock):
    """The machine's clock, until this process seems to have stood still for a while."""

    jump_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.jump_s


class Fleet(Control):
    """A control plane with hosts h1 and h2; h1 has many tasks, h2 one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.clock = JumpingClock()
        self.hosts = self.fleet._context.hosts
        self.loop: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await super().open()

        def work(tx: Tx) -> None:
            for n in range(TASKS - 2):
                some = tx.get(tables.TASKS, "default", "a" * 32)
                assert some is not None
                tx.put(tables.TASKS, msgspec.structs.replace(some, version=0, task_id=f"{n:032d}"))
            tx.put(tables.RESERVATIONS, Reservation(host_id="h1", cpu_units=256 * TASKS, task_count=TASKS))

        await self.store.write(CAUSE, work)

    def lose_after(self, seconds: float) -> HostLossLoop:
        made = HostLossLoop(self.store, self.hosts, self.clock, self.ids, lost_after_s=seconds)
        self.loop = asyncio.create_task(made.run())
        return made

    async def connect(self, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As an agent does; returns when it is taken in."""
        reader, writer = await asyncio.open_unix_connection(self.socket)
        facts = Fingerprint(
            name=f"name-{host}", agent_version="1", architecture="x86_64", cpu_units=1024, memory_mib=1024,
            disk_gib=1, drivers=(),
        )  # fmt: skip
        write_message(writer, wire.Hello(protocol=1, host_id=host, fingerprint=facts, task_ids=()))
        assert isinstance(await read_message(reader, wire.ToHost), wire.Welcome)
        return reader, writer

    def host(self, host_id: str = "h1") -> Host:
        found = self.hosts.get(host_id)
        assert found is not None
        return found

    def tasks(self, host_id: str) -> list[Task]:
        """Those that are not stopped."""
        with self.store.read() as reader:
            return reader.scan(tables.TASKS, host_id, index="by_host")

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while True:
                seen = self.store.last_seq()
                if holds():
                    return
                await self.store.wait_for_change(seen)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path)
    await made.open()
    yield made
    if made.loop is not None:
        assert not made.loop.done()
        made.loop.cancel()
    await made.fleet.close()


async def seen_away(loop: HostLossLoop) -> None:
    """Wait until the loop counts h1's time."""
    async with asyncio.timeout(LIMIT_S):
        while loop.gives_up_at("h1") is None:
            await asyncio.sleep(0)


async def test_a_host_that_says_nothing_is_not_connected_and_one_that_says_so_is(fleet: Fleet) -> None:
    fleet.fleet._context = msgspec.structs.replace(fleet.fleet._context, silence_s=SILENCE_S)
    reader, writer = await fleet.connect("h1")
    _, speaking = await fleet.connect("h2")
    assert fleet.host("h1").connected and fleet.host("h2").connected
    began = fleet.clock.now()

    async def speak() -> None:
        while True:
            write_message(speaking, wire.Alive())
            await asyncio.sleep(SILENCE_S / 20)

    speaks = asyncio.create_task(speak())
    await fleet.until(lambda: not fleet.host("h1").connected)
    speaks.cancel()
    assert fleet.host("h1").last_seen_at < began + SILENCE_S / 2, "heard of, not given up on"
    assert fleet.host("h2").connected
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        while True:
            await read_message(reader, wire.ToHost)
    assert len(fleet.tasks("h1")) == TASKS, "they go on"
    for each in (writer, speaking):
        each.close()


async def test_the_end_of_an_older_connection_says_nothing_about_its_host(fleet: Fleet) -> None:
    old, _ = await fleet.connect("h1")
    _, newer = await fleet.connect("h1")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        while True:
            await read_message(old, wire.ToHost)
    assert fleet.host().connected
    newer.close()
    await fleet.until(lambda: not fleet.host().connected)


async def test_the_tasks_of_a_host_that_stays_away_are_given_up_and_no_others(fleet: Fleet) -> None:
    loop = fleet.lose_after(0.2)
    _, writer = await fleet.connect("h1")
    _, other = await fleet.connect("h2")
    assert loop.gives_up_at("h1") is None
    writer.close()
    await fleet.until(lambda: not fleet.host().connected)
    gone_at = fleet.host().last_seen_at
    await fleet.until(lambda: not fleet.tasks("h1"))
    assert len(fleet.tasks("h2")) == 1
    with fleet.store.read() as reader:
        promised = reader.get(tables.RESERVATIONS, "h1")
        lost = reader.get(tables.TASKS, "default", "a" * 32)
    assert promised is not None and (promised.task_count, promised.cpu_units) == (0, 0)
    assert lost is not None
    assert (lost.stop_code, lost.stopped_reason) == (
        "TerminationNotice",
        "Host EC2 (instance h1) terminated.",
    )
    (cause,) = lost.causes
    assert cause.kind == "HostLost" and "name-h1" in cause.text and cause.fix
    assert cause.evidence["last_seen_at"].startswith("20") and cause.evidence["host_id"] == "h1"
    assert lost.stopped_at is not None and lost.stopped_at >= gone_at + 0.2
    assert loop.gives_up_at("h1") is None
    other.close()


async def test_a_host_that_comes_back_in_time_keeps_its_tasks(fleet: Fleet) -> None:
    loop = fleet.lose_after(2.0)
    _, writer = await fleet.connect("h1")
    writer.close()
    await seen_away(loop)
    _, writer = await fleet.connect("h1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.5):
            await fleet.until(lambda: len(fleet.tasks("h1")) < TASKS)
    writer.close()


async def test_nobody_is_blamed_for_the_time_in_which_the_control_plane_did_not_run(fleet: Fleet) -> None:
    loop = fleet.lose_after(0.3)
    _, writer = await fleet.connect("h1")
    writer.close()
    await seen_away(loop)
    fleet.clock.jump_s = 1000.0
    began = asyncio.get_running_loop().time()
    await fleet.until(lambda: not fleet.tasks("h1"))
    assert asyncio.get_running_loop().time() - began >= 0.3, "it had its time once more"


async def test_without_a_limit_only_somebody_gives_a_host_up(fleet: Fleet) -> None:
    loop, ops = fleet.lose_after(0), HostLossOps(fleet.store, fleet.clock)
    with pytest.raises(NotFound):
        await ops.give_up(CAUSE, "h3", "was given up by me")
    _, writer = await fleet.connect("h1")
    with pytest.raises(Conflict, match="is connected"):
        await ops.give_up(CAUSE, "h1", "was given up by me")
    writer.close()
    await fleet.until(lambda: not fleet.host().connected)
    assert loop.gives_up_at("h1") is None
    assert await ops.give_up(CAUSE, "h1", "was given up by me") == TASKS
    assert await ops.give_up(CAUSE, "h1", "was given up by me") == 0
    assert fleet.tasks("h1") == []


async def test_more_tasks_than_one_message_holds_are_assigned_one_by_one(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [t.task_id for t in fleet.tasks("h1")]
    to_end = names[-1]

    def end(tx: Tx) -> None:
        task = tx.get(tables.TASKS, "default", to_end)
        assert task is not None
        tx.put(tables.TASKS, msgspec.structs.replace(task, desired_status="STOPPED"))

    await fleet.store.write(CAUSE, end)
    monkeypatch.setattr(host_session, "MAX_ASSIGNMENTS_BYTES", 20_000)
    reader, writer = await fleet.connect("h1")
    first = await read_message(reader, wire.ToHost)
    assert isinstance(first, wire.Assignments)
    got = [t.task_id for t in first.tasks]
    assert 1 < len(got) < TASKS and sorted([*got, *first.later]) == sorted(names)
    for name in first.later:
        message = await read_message(reader, wire.ToHost)
        assert isinstance(message, wire.Assign) and message.task.task_id == name
    assert first.later[-1] == to_end
    stop = await read_message(reader, wire.ToHost)
    assert isinstance(stop, wire.Stop) and stop.task_id == to_end
    writer.close()


async def test_the_end_of_a_connection_is_recorded_once_the_disk_has_room(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a host that went while the disk was full would get tasks for ever."""
    monkeypatch.setattr(rounds, "RETRY_AFTER_STORAGE_FULL_S", 0.0)
    write, refused = fleet.store.write, 0

    async def full(cause: Cause, work: Callable[[Tx], Any]) -> Any:
        nonlocal refused
        if cause.action == "disconnect" and refused < 3:
            refused += 1
            raise StorageFull("no space left")
        return await write(cause, work)

    monkeypatch.setattr(fleet.store, "write", full)
    _, writer = await fleet.connect("h1")
    await fleet.until(lambda: fleet.host("h1").connected)
    writer.close()
    await fleet.until(lambda: not fleet.host("h1").connected)
    assert refused == 3
