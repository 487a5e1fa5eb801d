"""The event log and its loops on a store in memory, with a clock that is moved by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from hutch.base.clock import ManualClock
from hutch.base.errors import Invalid, Unavailable
from hutch.base.ids import SeededIds
from hutch.control.events import publishing
from hutch.control.events.deadlines import DeadlineLoop
from hutch.control.events.delivery import DeliveryLoop, pause_s
from hutch.control.events.loop import EventLoop
from hutch.control.events.publishing import Publisher
from hutch.control.events.reading import EventReader
from hutch.control.events.scheduling import ScheduleLoop
from hutch.control.events.shapes import EVENT, EventShapes
from hutch.control.events.webhook import WebhookClient
from hutch.control.ops.events import EventOps
from hutch.control.ops.instances import InstanceView
from hutch.control.ops.schedules import ScheduleOps
from hutch.model.event import Delivery, EventRule, LogEntry, Schedule, ScheduleRun, Target
from hutch.model.record import Cause
from hutch.model.task import Task
from hutch.store import tables
from hutch.store.contract import Tx
from hutch.store.memory import MemoryStore

CAUSE = Cause(id="1", actor="test", action="test")
WHERE = {"region": "us-east-1", "account_id": "000000000000"}


class PlainShapes:
    """ECS's shapes, as far as these tests look."""

    def task(self, task: Task) -> dict[str, Any]:
        return {"taskArn": task.task_id, "lastStatus": task.last_status, "version": task.event_version}

    def instance(self, view: InstanceView) -> dict[str, Any]:
        return {"containerInstanceArn": view.instance.instance_id}


class World:
    def __init__(self) -> None:
        self.store, self.clock, self.ids = MemoryStore(), ManualClock(), SeededIds()
        self.shapes = EventShapes(PlainShapes(), **WHERE)
        self.publisher = Publisher(self.shapes, self.clock, self.ids)
        self.reader = EventReader(self.store, self.shapes)

    def loop(self) -> EventLoop:
        return EventLoop(self.store, self.publisher, self.clock, self.ids)

    async def put_task(self, task: Task) -> Task:
        return await self.store.write(CAUSE, lambda tx: tx.put(tables.TASKS, task))

    def deliveries(self) -> list[Delivery]:
        with self.store.read() as reader:
            return reader.scan(tables.DELIVERIES, index="by_due")


@pytest.fixture
def world() -> World:
    return World()


def task(number: int, **more: Any) -> Task:
    return Task(task_id=f"{number:032x}", cluster="c", family="f", revision=1, launch_type="FARGATE", cpu=256,
                memory_mib=512, created_at=1.0, **more)  # fmt: skip


async def test_a_loop_that_starts_again_tells_nothing_twice_and_leaves_nothing_out(world: World) -> None:
    first = world.loop()
    stored = await world.put_task(task(1))
    await first.once()
    await world.put_task(replace(stored, last_status="PENDING", event_version=2))
    await world.put_task(task(2))
    second = world.loop()
    await second.once()
    await world.loop().once()
    # The first one, which was thought dead, still holds its old position.
    await first.once()
    events, number = world.reader.newest(100)
    assert [(e["detail"]["taskArn"][-1], e["detail"]["version"]) for e in events] == [
        ("1", 1),
        ("1", 2),
        ("2", 1),
    ]
    assert len({e["id"] for e in events}) == 3
    assert [e["id"] for e in world.reader.after(0)[0]] == [e["id"] for e in events]
    assert world.reader.after(number) == ([], number, False)
    assert [e["detail"]["version"] for e in world.reader.newest(100, f"{1:032x}")[0]] == [1, 2]


async def test_the_log_is_bounded_by_number_and_by_size(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MAX_LOG_ENTRIES", 10)
    monkeypatch.setattr(publishing, "MAX_LOG_BYTES", 4000)

    async def publish(count: int, size: int) -> None:
        body = msgspec.json.encode({"detail": "x" * size})
        entries = [LogEntry(EVENT, str(n), 1.0, "", body) for n in range(count)]
        await world.store.write(CAUSE, lambda tx: world.publisher.publish(tx, entries))

    for _ in range(20):
        await publish(2, 10)
    events, number = world.reader.newest(1000)
    assert len(events) == 10 and number == 40
    assert len(world.reader.after(0)[0]) == 10, "who asks for what is gone gets what is left"
    for _ in range(10):
        await publish(1, 1000)
    assert len(world.reader.newest(1000)[0]) == 3
    with world.store.read() as reader:
        cursor = reader.get(tables.EVENT_CURSOR, "events")
    assert cursor is not None and 0 < cursor.log_bytes <= 4000


async def test_a_full_queue_gives_up_visibly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "MAX_PENDING_DELIVERIES", 3)
    ops = EventOps(world.store, world.publisher, world.clock, world.ids)
    await ops.put_rule(CAUSE, EventRule(name="r", pattern='{"source": ["s"]}', created_at=0.0))
    await ops.put_targets(CAUSE, "default", "r", [Target(target_id="1", arn="http://x/")])
    entry = {"Source": "s", "DetailType": "t", "Detail": "{}"}
    await ops.put_events(CAUSE, [entry] * 5)
    assert len(world.deliveries()) == 3
    with world.store.read() as reader:
        count = reader.get(tables.DELIVERY_COUNTS, "rule/default/r")
    assert count is not None and count.failed == 2 and "too many" in count.last_error


class Sender:
    """Fails as it is told."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.sent: list[str] = []

    async def send(self, delivery: Delivery) -> tuple[str, str]:
        self.sent.append(delivery.delivery_id)
        if self.errors:
            raise self.errors.pop(0)
        return "DELIVERED", ""


@contextlib.asynccontextmanager
async def running(loop: Any) -> AsyncIterator[asyncio.Task[None]]:
    runner = asyncio.create_task(loop.run())
    yield runner
    runner.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await runner


async def queued(world: World, **target: Any) -> str:
    def work(tx: Tx) -> None:
        world.publisher.queue(
            tx, "rule/default/r", Target(arn="http://x/", **target), "{}", world.clock.now()
        )

    await world.store.write(CAUSE, work)
    return world.deliveries()[0].delivery_id


async def settled(world: World, sender: Sender, times: int) -> None:
    """Wait until so many tries were written down."""
    async with asyncio.timeout(30):
        while len(sender.sent) < times or any(d.attempts < times for d in world.deliveries()):
            await world.store.wait_for_change(world.store.last_seq())


@pytest.mark.parametrize(
    ("errors", "target", "tries", "failed"),
    [
        ([], {}, 1, 0),
        ([Invalid("no")], {}, 1, 1),
        ([Unavailable("later")], {"max_retries": 0}, 1, 1),
        ([Unavailable("later")] * 2, {"max_retries": 1}, 2, 1),
        ([Unavailable("later")], {"max_retries": 1}, 2, 0),
        ([Unavailable("later")] * 9, {"max_age_s": 60}, 2, 1),
    ],
)
async def test_tries(
    world: World, errors: list[Exception], target: dict[str, Any], tries: int, failed: int
) -> None:
    sender = Sender(*errors)
    await queued(world, **target)
    for number in range(1, tries + 1):
        # Started anew each time, as after a kill: what is to be done is in the store alone.
        async with running(DeliveryLoop(world.store, sender, world.clock, world.ids)):  # type: ignore[arg-type]
            await settled(world, sender, number)
        world.clock.advance(60.0)
    assert len(sender.sent) == tries and world.deliveries() == []
    with world.store.read() as reader:
        count = reader.get(tables.DELIVERY_COUNTS, "rule/default/r")
    assert (count.failed if count else 0) == failed


def test_pauses_grow_and_are_bounded() -> None:
    low, high = "0000", "ffff"
    assert [pause_s(n, low) for n in (1, 2, 3, 50)] == [0.5, 1.0, 2.0, 300.0]
    assert all(pause_s(n, low) < pause_s(n, high) <= 2 * pause_s(n, low) for n in range(1, 60))


async def test_a_schedule_is_run_once_however_often_the_loop_is_started(world: World) -> None:
    ops = ScheduleOps(world.store, world.clock, **WHERE)
    wanted = Schedule(name="s", expression="rate(1 hour)", target=Target(arn="http://x/"), created_at=0.0,
                      modified_at=0.0, anchor=0.0)  # fmt: skip
    await ops.create(CAUSE, wanted)

    def loop() -> ScheduleLoop:
        return ScheduleLoop(world.store, world.publisher, world.clock, world.ids)

    assert [await loop().once(), await loop().once(), len(world.deliveries())] == [1, 0, 1]
    world.clock.advance(3600.0)
    assert [await loop().once(), await loop().once(), len(world.deliveries())] == [1, 0, 2]
    world.clock.advance(10 * 3600.0)
    assert [await loop().once(), await loop().once(), len(world.deliveries())] == [1, 0, 3]
    runs, _ = ops.runs("schedule/default/s")
    assert [r.missed_before for r in runs] == [9, 0, 0]
    start = runs[-1].nominal_at
    assert [r.nominal_at - start for r in runs] == [11 * 3600.0, 3600.0, 0.0], "no drift"


async def test_a_task_is_stopped_at_its_deadline(world: World) -> None:
    now = world.clock.now()
    await world.put_task(task(1, last_status="RUNNING", host_id="h", started_at=now, max_runtime_s=60))
    await world.put_task(task(2, last_status="RUNNING", host_id="h", started_at=now))
    loop = DeadlineLoop(world.store, world.clock, world.ids)
    world.clock.advance(59.0)
    assert await loop.once() == 0
    world.clock.advance(1.0)
    # As after a restart: another loop finds it.
    assert await DeadlineLoop(world.store, world.clock, world.ids).once() == 1
    assert await loop.once() == 0
    with world.store.read() as reader:
        ended, other = (reader.get(tables.TASKS, "c", f"{n:032x}") for n in (1, 2))
    assert ended is not None and other is not None
    assert (ended.desired_status, other.desired_status) == ("STOPPED", "RUNNING")
    assert ended.causes[0].kind == "MaxRuntimeExceeded" and "longest time of 60 s" in ended.stopped_reason


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Oh\r\n\r\n", 500),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"", "bytes read"),
        (b"HTTP/1.1 200" + b"x" * 100_000, "limit"),
        (None, "no answer within"),
    ],
)
async def test_whatever_a_web_server_answers_is_bounded(answer: bytes | None, expected: int | str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = WebhookClient(timeout_s=0.5)
    call = client.post(f"http://127.0.0.1:{port}/", b"{}", {}, {}, "id")
    async with server:
        if isinstance(expected, int):
            assert (await call).status == expected
        else:
            with pytest.raises(Unavailable, match=expected):
                await call


async def test_runs_are_kept_for_a_number_and_a_time(world: World) -> None:
    async def run(owner: str, at: float) -> None:
        wanted = ScheduleRun(owner=owner, nominal_at=at, fired_at=at, outcome="QUEUED")
        await world.store.write(CAUSE, lambda tx: publishing.record_run(tx, wanted))

    for number in range(150):
        await run("schedule/default/often", 1000.0 + number)
    await run("schedule/default/once", 1200.0)
    with world.store.read() as reader:
        assert len(reader.scan(tables.SCHEDULE_RUNS, "schedule/default/often")) == publishing.KEPT_RUNS
    for number in range(100):
        await run("schedule/default/later", 1300.0 + publishing.KEPT_RUNS_S + number)
    with world.store.read() as reader:
        assert {r.owner for r in reader.scan(tables.SCHEDULE_RUNS)} == {"schedule/default/later"}
