"""How many VMs are launched at once, and that one which takes long holds up only itself."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.driver_harness import _container, _task

from hutch.base.clock import SystemClock
from hutch.host.drivers.contract import Attachment, Driver, DriverError, RootImage, SandboxSpec
from hutch.host.drivers.firecracker.driver import FirecrackerDriver
from hutch.host.drivers.microvm import vmdriver
from hutch.host.drivers.microvm.driver import MicrovmDriver
from hutch.host.drivers.microvm.slots import LaunchSlot, LaunchSlots

LAUNCHES = 20
AT_ONCE = (os.cpu_count() or 1) + 1
Make = Callable[[Path], Driver]


class Launches:
    """In the place of the driver's launcher: every launch takes a turn of the event loop and fails; those named `slow`
    take for ever, with the slot or, while they wait for a template, without."""

    def __init__(self, slow: dict[str, bool]) -> None:
        self.slow = slow
        self.now = self.most = 0
        self.ended: list[str] = []

    async def launch(self, spec: SandboxSpec, slot: LaunchSlot, kept: object = None) -> Any:
        task_id = spec.task.task_id
        if self.slow.get(task_id) is False:
            await slot.lend(asyncio.Event().wait())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await (asyncio.Event().wait() if task_id in self.slow else asyncio.sleep(0))
        finally:
            self.now -= 1
        self.ended.append(task_id)
        raise DriverError("Done", "as far as this test goes")


def _microvm(place: Path) -> MicrovmDriver:
    return MicrovmDriver(
        platform_id="t", guest_dir=place, state_dir=place, accelerator="tcg", clock=SystemClock()
    )


def _firecracker(place: Path) -> FirecrackerDriver:
    return FirecrackerDriver(
        platform_id="t", program="firecracker", guest_dir=place, state_dir=place, clock=SystemClock()
    )


@pytest.fixture(params=[_microvm, _firecracker])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param  # type: ignore[no-any-return]


async def _launch_all(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slow: dict[str, bool]
) -> Launches:
    """Many launches at once, the slow ones first; returns when all others have ended."""

    async def nothing_to_remove(*_: object) -> None:
        return None

    monkeypatch.setattr(vmdriver, "remove_vm", nothing_to_remove)
    driver = make(tmp_path)
    launches = Launches(slow)
    monkeypatch.setattr(driver, "_launcher", launches)
    image = RootImage(reference="x", digest="sha256:0", config={}, erofs_path="/x")
    names = [*slow, *(f"t{n}" for n in range(LAUNCHES))]

    async def create(name: str) -> None:
        task = _task(name, (_container("a"),))
        spec = SandboxSpec(task=task, directory=str(tmp_path), images={"a": image}, attachment=Attachment())
        with contextlib.suppress(DriverError):
            await driver.create(spec)

    works = {name: asyncio.create_task(create(name)) for name in names}
    async with asyncio.timeout(60):
        await asyncio.gather(*(w for name, w in works.items() if name not in slow))
    for name in slow:
        assert not works[name].done()
        works[name].cancel()
    await asyncio.gather(*works.values(), return_exceptions=True)
    assert launches.now == 0
    return launches


async def test_so_many_at_once_and_no_more_in_the_order_of_asking(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launches = await _launch_all(make, monkeypatch, tmp_path, {})
    assert launches.most == AT_ONCE
    assert launches.ended == [f"t{n}" for n in range(LAUNCHES)]


async def test_a_launch_that_hangs_holds_up_nobody_else(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launches = await _launch_all(make, monkeypatch, tmp_path, {"slow": True})
    assert launches.most == AT_ONCE and sorted(launches.ended) == sorted(f"t{n}" for n in range(LAUNCHES))


async def test_any_number_may_wait_for_a_template(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launches = await _launch_all(
        make, monkeypatch, tmp_path, {f"waits{n}": False for n in range(2 * AT_ONCE)}
    )
    assert launches.most == AT_ONCE and len(launches.ended) == LAUNCHES


async def test_a_slot_comes_back_however_the_work_it_was_lent_for_ends() -> None:
    slots = LaunchSlots(1)

    async def fails() -> None:
        raise DriverError("No", "no template")

    with pytest.raises(DriverError):
        async with slots.one() as slot:
            with pytest.raises(DriverError):
                await slot.lend(fails())
            assert slot.held and slots._free.locked(), (
                "a launch goes on without a template, but with its slot"
            )
            raise DriverError("No", "no VM")
    async with slots.one() as first:
        lent = asyncio.create_task(first.lend(asyncio.Event().wait()))
        async with asyncio.timeout(30), slots.one():
            lent.cancel()
            await asyncio.gather(lent, return_exceptions=True)
    assert not slots._free.locked()
    async with asyncio.timeout(30), slots.one():
        assert slots._free.locked(), "there is one slot, not two"
