"""Rounds of the control loops: what failed is done again, and nothing that it had found is lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from hutch.base.clock import ManualClock, SystemClock
from hutch.base.errors import Invalid, StaleWrite, StorageFull
from hutch.base.ids import SeededIds
from hutch.control import rounds
from hutch.control.controllers.placement import PlacementLoop
from hutch.control.ops.placing import PlacementLimits
from hutch.model.host import Host
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Reader
from hutch.store.memory import MemoryStore

CAUSE = Cause(id="1", actor="test", action="test")
LIMITS = PlacementLimits(cpu_overcommit=1.0, memory_reserve_mib=0, ingress_ports=(20000, 20100))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "RETRY_AFTER_STORAGE_FULL_S", 0.0)


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def put_host(store: MemoryStore) -> None:
    await store.write(CAUSE, lambda tx: tx.put(tables.HOSTS, Host(host_id="h", name="h")))


@pytest.mark.parametrize("failure", [StaleWrite("changed"), StorageFull("full")])
async def test_what_may_pass_is_tried_again_and_nothing_else(failure: Exception) -> None:
    async def fails(error: Exception) -> None:
        raise error

    async def works() -> None:
        pass

    assert not await rounds.is_done(lambda: fails(failure), "it")
    assert await rounds.is_done(works, "it")
    with pytest.raises(Invalid):
        await rounds.is_done(lambda: fails(Invalid("no")), "it")


async def test_a_round_begins_when_something_is_due_and_when_a_change_made_it_so() -> None:
    store, moments = MemoryStore(), [0.0]
    begun: asyncio.Queue[int] = asyncio.Queue()

    async def one_round() -> None:
        moments.pop()
        begun.put_nowait(len(moments))

    def next_at(reader: Reader) -> float | None:
        return moments[-1] if moments else None

    work = rounds.run_when_due(
        store, SystemClock(), one_round, "it", tables={tables.HOSTS.name}, next_at=next_at
    )
    async with asyncio.timeout(30), running(work):
        assert await begun.get() == 0, "it was due already"
        moments.append(1.0)
        await put_host(store)
        assert await begun.get() == 0, "the change brought one that is due"


async def test_room_that_was_found_while_the_disk_was_full_is_found_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    loop = PlacementLoop(store, ManualClock(), SeededIds(), LIMITS)
    asked: asyncio.Queue[str] = asyncio.Queue()
    failures = [StorageFull("full")]

    async def place(index: str) -> int:
        asked.put_nowait(index)
        if index == "unplaced" and failures:
            raise failures.pop()
        return 0

    monkeypatch.setattr(loop, "_place", place)
    await put_host(store)
    async with asyncio.timeout(30), running(loop.run()):
        assert await asked.get() == "unplaced"
        assert await asked.get() == "unplaced", "all that waits is looked at again, not only what is new"
