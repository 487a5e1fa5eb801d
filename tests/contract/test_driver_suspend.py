"""The rules of suspend, resume and fork, for every driver that offers them."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest
from msgspec.structs import replace
from tests.support.driver_harness import HARNESSES, DriverHarness

from hutch.host.drivers.contract import (
    ContainerExited,
    Driver,
    DriverError,
    SandboxEvent,
    SandboxSpec,
    SupportsFork,
    SupportsSuspend,
)
from hutch.wire.taskspec import FilesSpec, MountSpec, VolumeSpec

EVENT_TIMEOUT_S = 60
CAN_SUSPEND = [h for h in HARNESSES if h[0] in ("fake", "microvm", "microvm-booted")]


class SuspendingDriver(Driver, SupportsSuspend, SupportsFork, Protocol):
    """What is tested here."""


@pytest.fixture(params=[pytest.param(make, id=name, marks=marks) for name, make, marks in CAN_SUSPEND])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> DriverHarness:
    made: DriverHarness = request.param(tmp_path)
    return made


@pytest.fixture
async def driver(harness: DriverHarness) -> AsyncIterator[SuspendingDriver]:
    """A driver; after the test nothing of the task may be left once it is destroyed."""
    made = new_driver(harness)
    yield made
    spec = harness.sandbox(harness.runs("a"))
    await made.destroy_leftovers(spec.directory, harness.task_id)
    await made.close()
    assert harness.remains() == []


def new_driver(harness: DriverHarness) -> SuspendingDriver:
    made = harness.new_driver()
    assert isinstance(made, SupportsSuspend) and isinstance(made, SupportsFork)
    return made  # type: ignore[return-value]


def with_secret(spec: SandboxSpec, value: str | None) -> SandboxSpec:
    """The sandbox with a volume that is a secret as a file, whose content is known or not."""
    files = FilesSpec(secret_names=("key",), secrets={"key": value} if value is not None else {})
    return replace(spec, task=replace(spec.task, volumes=(VolumeSpec(name="keys", files=files),)))


async def next_event(events: AsyncIterator[SandboxEvent]) -> SandboxEvent:
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        return await anext(events)


async def all_events(events: AsyncIterator[SandboxEvent]) -> list[SandboxEvent]:
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        return [e async for e in events]


async def test_what_ran_goes_on_and_what_ended_is_not_told_again(
    driver: SuspendingDriver, harness: DriverHarness
) -> None:
    runs, ends = harness.runs("runs"), harness.exits("ends", 3)
    spec = harness.sandbox(runs, ends)
    handle = await driver.create(spec)
    first = await driver.start_container(handle, runs)
    await driver.start_container(handle, ends)
    events = driver.events(handle)
    seen = await next_event(events)
    assert isinstance(seen, ContainerExited) and seen.container == "ends"
    assert not await driver.is_suspended(handle)
    await driver.suspend(handle)
    assert await all_events(events) == []
    with pytest.raises(DriverError):
        await driver.signal_container(handle, "runs", signal.SIGKILL)
    assert await driver.is_suspended(handle)
    for _ in range(2):  # once more: what was resumed can be suspended again
        handle = await driver.resume(handle, spec)
        assert not await driver.is_suspended(handle)
        assert (await driver.probe(handle, "runs", harness.probe_that_succeeds, 30)).exit_code == 0
        await driver.suspend(handle)
    handle = await driver.resume(handle, spec)
    events = driver.events(handle)
    await driver.signal_container(handle, "runs", signal.SIGKILL)
    exited = await next_event(events)
    assert isinstance(exited, ContainerExited)
    assert (exited.container, exited.runtime_id) == ("runs", first.runtime_id)
    assert exited.status.exit_code == 137
    # And it can be started again, as after any exit.
    again = await driver.start_container(handle, runs)
    assert again.runtime_id != first.runtime_id


async def test_another_agent_resumes_and_a_third_takes_over_by_the_old_handle(
    driver: SuspendingDriver, harness: DriverHarness
) -> None:
    runs = replace(harness.runs("a"), mounts=(MountSpec(volume="keys", path="/keys"),))
    spec = with_secret(harness.sandbox(runs), "hidden")
    handle = await driver.create(spec)
    started = await driver.start_container(handle, runs)
    await driver.suspend(handle)
    await driver.close()
    # An agent that was started anew does not know what is in secrets.
    spec = with_secret(spec, None)
    second = new_driver(harness)
    assert await second.is_suspended(handle)
    await second.resume(handle, spec)
    await second.close()
    # Killed before the new handle was durable.
    third = new_driver(harness)
    try:
        assert not await third.is_suspended(handle)
        (found,) = await third.adopt(handle, spec)
        assert found.running and found.runtime_id == started.runtime_id
        assert (await third.probe(handle, "a", harness.probe_that_succeeds, 30)).exit_code == 0
        if harness.has_files:
            assert (await third.probe(handle, "a", ("/bin/cat", "/keys/key"), 30)).output == "hidden"
    finally:
        await third.close()


async def test_a_suspended_sandbox_is_destroyed_from_the_handle_alone(
    driver: SuspendingDriver, harness: DriverHarness
) -> None:
    runs = harness.runs("a")
    spec = harness.sandbox(runs)
    handle = await driver.create(spec)
    await driver.start_container(handle, runs)
    await driver.suspend(handle)
    await driver.close()
    other = new_driver(harness)
    await other.destroy(handle)
    assert harness.remains() == []
    assert not await other.is_suspended(handle)
    await other.close()


def another(spec: SandboxSpec, directory: Path, task_id: str) -> SandboxSpec:
    directory.mkdir(mode=0o700)
    return replace(spec, directory=str(directory), task=replace(spec.task, task_id=task_id))


async def test_forks_run_beside_their_original(
    driver: SuspendingDriver, harness: DriverHarness, tmp_path: Path
) -> None:
    runs = harness.runs("a")
    spec = harness.sandbox(runs)
    handle = await driver.create(spec)
    started = await driver.start_container(handle, runs)
    await driver.snapshot(handle, str(tmp_path / "snapshot"))
    seen = {started.runtime_id}
    forks = []
    for number in range(2):
        other = another(spec, tmp_path / f"fork{number}", f"{number}" * 32)
        fork, (container,) = await driver.fork(str(tmp_path / "snapshot"), other)
        forks.append(fork)
        assert container.running and container.name == "a"
        seen.add(container.runtime_id)
    assert len(seen) == 3
    events = driver.events(forks[0])
    await driver.signal_container(forks[0], "a", signal.SIGKILL)
    exited = await next_event(events)
    assert isinstance(exited, ContainerExited) and exited.status.exit_code == 137
    for each in (handle, forks[1]):
        assert (await driver.probe(each, "a", harness.probe_that_succeeds, 30)).exit_code == 0
    for each in forks:
        await driver.destroy(each)
