"""The host's drivers are looked at again when something happened that may have changed them, and then only."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.fleet_control import Host, make_container, make_task

from hutch.base.clock import SystemClock
from hutch.host.agent import driverwatch
from hutch.host.drivers.contract import DriverError, Handle, SandboxSpec
from hutch.host.drivers.fake import FakeDriver
from hutch.wire.facts import DriverFactMsg

ID = "0123456789abcdef0123456789abcdef"


class Sick(FakeDriver):
    """Its host lacks something."""

    def __init__(self) -> None:
        super().__init__(clock=SystemClock())
        self.healthy, self.looks = False, 0
        self.looked = asyncio.Event()

    async def fingerprint(self) -> DriverFactMsg:
        self.looks += 1
        self.looked.set()
        self._healthy = self.healthy
        return await super().fingerprint()

    async def create(self, spec: SandboxSpec) -> Handle:
        if not self.healthy:
            raise DriverError("Broken", "the program is gone")
        return await super().create(spec)


@pytest.fixture
async def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    monkeypatch.setattr(driverwatch, "SETTLE_S", 0.05)
    made = Host(tmp_path)
    await made.control.listen()
    yield made
    await made.close()


async def test_an_installation_heals_a_driver_at_once(host: Host) -> None:
    driver = Sick()
    await host.start_agent(driver)
    await host.control.until(lambda: bool(host.control.hellos))
    assert [d.healthy for d in host.control.hellos[0].fingerprint.drivers] == [False]
    driver.healthy = True
    for name in ("one", "two", "three"):
        (host.install_place / name).write_text("a program")
    await host.control.until(lambda: bool(host.control.fingerprints))
    told = host.control.fingerprints[0]
    assert [d.healthy for d in told.drivers] == [True] and told.attributes["hutch.drivers"] == driver.name
    looks = driver.looks
    assert looks <= 4, "few times at the start, once for the whole installation"
    (host.install_place / "four").write_text("of no interest to a healthy driver")
    host.control.assign(make_task(ID, make_container("app")))
    await host.control.until_status(ID, "RUNNING")
    assert driver.looks == looks


async def test_an_installation_that_does_not_help_is_no_news(host: Host) -> None:
    driver = Sick()
    await host.start_agent(driver)
    await host.control.until(lambda: bool(host.control.hellos))
    driver.looked.clear()
    (host.install_place / "one").write_text("")
    await asyncio.wait_for(driver.looked.wait(), 5)
    assert host.control.fingerprints == []


async def test_a_task_that_could_not_be_started_makes_the_agent_look(host: Host) -> None:
    driver = Sick()
    driver.healthy = True
    await host.start_agent(driver)
    await host.control.until(lambda: bool(host.control.hellos))
    driver.healthy = False
    host.control.assign(make_task(ID, make_container("app")))
    await host.control.until_status(ID, "STOPPED")
    await host.control.until(lambda: bool(host.control.fingerprints))
    assert [d.healthy for d in host.control.fingerprints[0].drivers] == [False]


async def test_a_new_connection_tells_what_is_true_then(host: Host) -> None:
    driver = Sick()
    await host.start_agent(driver)
    await host.control.until(lambda: len(host.control.hellos) == 1)
    driver.healthy = True
    await host.control.close()
    await host.control.listen()
    await host.control.until(lambda: len(host.control.hellos) == 2)
    if not host.control.hellos[1].fingerprint.drivers[0].healthy:
        await host.control.until(lambda: bool(host.control.fingerprints))
        assert host.control.fingerprints[0].drivers[0].healthy
