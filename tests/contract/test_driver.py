"""The rules of `hutch.host.drivers.contract`, for every driver."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.support.driver_harness import HARNESSES, DriverHarness

from hutch.host.criformat import parse_line
from hutch.host.drivers.contract import (
    ContainerExited,
    Driver,
    DriverError,
    Handle,
    SandboxEvent,
    SandboxExited,
    SandboxGone,
    SandboxSpec,
    SupportsExec,
)
from hutch.wire.taskspec import ContainerSpec, FilesSpec, MountSpec, VolumesFromSpec, VolumeSpec

EVENT_TIMEOUT_S = 60


@pytest.fixture(params=[pytest.param(make, id=name, marks=marks) for name, make, marks in HARNESSES])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> DriverHarness:
    made: DriverHarness = request.param(tmp_path)
    return made


@pytest.fixture
async def driver(harness: DriverHarness) -> AsyncIterator[Driver]:
    """A driver; after the test nothing of the task may be left once it is destroyed."""
    made = harness.new_driver()
    yield made
    spec = harness.sandbox(harness.runs("a"))
    await made.destroy_leftovers(spec.directory, harness.task_id)
    await made.close()
    assert harness.remains() == []


async def _next(events: AsyncIterator[SandboxEvent]) -> SandboxEvent:
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        return await anext(events)


async def _exit_of(driver: Driver, spec: SandboxSpec, container: ContainerSpec) -> ContainerExited:
    handle = await driver.create(spec)
    events = driver.events(handle)
    await driver.start_container(handle, container)
    event = await _next(events)
    assert isinstance(event, ContainerExited)
    await driver.destroy(handle)
    return event


async def test_fingerprint_says_what_the_capabilities_say(driver: Driver) -> None:
    fact = await driver.fingerprint()
    assert fact.name == driver.name
    assert fact.launch_types == driver.capabilities.launch_types
    assert fact.healthy or fact.reason
    assert driver.capabilities.root_format in ("erofs", "directory")
    assert driver.capabilities.network in ("tap", "netns")


async def test_a_container_ends_with_its_exit_code_told_once(driver: Driver, harness: DriverHarness) -> None:
    ends, stays = harness.exits("ends", 3), harness.runs("stays")
    handle = await driver.create(harness.sandbox(ends, stays))
    events = driver.events(handle)
    started, running = await asyncio.gather(*(driver.start_container(handle, c) for c in (ends, stays)))
    assert started.runtime_id and started.runtime_id != running.runtime_id
    first = await _next(events)
    assert isinstance(first, ContainerExited)
    assert (first.container, first.runtime_id) == ("ends", started.runtime_id)
    assert (first.status.exit_code, first.status.signal, first.status.oom) == (3, 0, False)
    await driver.signal_container(handle, "stays", signal.SIGKILL)
    second = await _next(events)
    assert isinstance(second, ContainerExited)
    assert second.runtime_id == running.runtime_id, "the first exit was told twice"


async def test_a_signal_that_kills_is_in_the_exit(driver: Driver, harness: DriverHarness) -> None:
    stubborn = harness.ignores_sigterm("a")
    handle = await driver.create(harness.sandbox(stubborn))
    events = driver.events(handle)
    await driver.start_container(handle, stubborn)
    await driver.signal_container(handle, "a", signal.SIGTERM)
    await driver.signal_container(handle, "a", signal.SIGKILL)
    event = await _next(events)
    assert isinstance(event, ContainerExited)
    assert (event.status.exit_code, event.status.signal) == (137, 9)
    await driver.signal_container(handle, "a", signal.SIGKILL)


async def test_a_container_can_be_started_again_after_its_exit(
    driver: Driver, harness: DriverHarness
) -> None:
    ends = harness.exits("a", 0)
    handle = await driver.create(harness.sandbox(ends))
    events = driver.events(handle)
    for _ in range(2):
        started = await driver.start_container(handle, ends)
        event = await _next(events)
        assert isinstance(event, ContainerExited)
        assert event.runtime_id == started.runtime_id
        assert event.at >= started.started_at - 1


async def test_the_oom_killer_is_seen(driver: Driver, harness: DriverHarness) -> None:
    if not harness.can_simulate_oom:
        pytest.skip("this driver can't be made to run out of memory here")
    hungry = harness.is_killed_for_memory("a")
    event = await _exit_of(driver, harness.sandbox(hungry), hungry)
    assert event.status.oom and event.status.exit_code == 137
    assert event.status.oom_process


async def test_what_cannot_start_says_why(driver: Driver, harness: DriverHarness) -> None:
    broken = harness.cannot_start("a")
    handle = await driver.create(harness.sandbox(broken))
    with pytest.raises(DriverError) as caught:
        await driver.start_container(handle, broken)
    assert caught.value.kind and '"a"' in caught.value.message
    assert caught.value.aws_prefix == "CannotStartContainerError"


async def test_probe(driver: Driver, harness: DriverHarness) -> None:
    runs = harness.runs("a")
    handle = await driver.create(harness.sandbox(runs))
    await driver.start_container(handle, runs)
    good = await driver.probe(handle, "a", harness.probe_that_succeeds, 20)
    bad = await driver.probe(handle, "a", harness.probe_that_fails, 20)
    assert (good.exit_code, good.timed_out) == (0, False)
    assert bad.exit_code != 0 and len(bad.output) <= 4096


async def test_files_of_a_volume_are_there_and_nobodys_to_change(
    driver: Driver, harness: DriverHarness
) -> None:
    if not harness.has_files:
        pytest.skip("this driver's containers see no files")
    long = "é" * 30_000
    volumes = (
        VolumeSpec(
            name="texts", files=FilesSpec(texts={"app.conf": "one\ntwo\n", "sub/long": long, "empty": ""})
        ),
        VolumeSpec(
            name="keys",
            files=FilesSpec(secret_names=("key",), secrets={"key": "hidden"}, mode=0o400, uid=7, gid=8),
        ),
    )
    mounts = (MountSpec(volume="texts", path="/texts"), MountSpec(volume="keys", path="/bin/keys"))
    ends = replace(harness.exits("a", 0), mounts=mounts)
    runs = replace(harness.runs("b"), mounts=mounts[1:], volumes_from=(VolumesFromSpec(container="a"),))
    spec = harness.sandbox(ends, runs)
    spec = replace(spec, task=replace(spec.task, volumes=volumes))
    handle = await driver.create(spec)
    events = driver.events(handle)
    for _ in range(2):
        await driver.start_container(handle, ends)
        await _next(events)
    await driver.start_container(handle, runs)
    look = (
        "cd /texts; cat app.conf; wc -c sub/long empty; stat -c '%a %u %g' app.conf sub/long . sub /bin/keys/*;"
        "cat /bin/keys/key; ls /bin/keys; exec 2> /dev/null; (echo x > new) || echo kept; chmod 600 app.conf || echo kept"
    )
    result = await driver.probe(handle, "b", ("/bin/sh", "-c", look), 20)
    words = result.output.split()
    assert words[:8] == ["one", "two", "60000", "sub/long", "0", "empty", "60000", "total"], result.output
    assert words[8:23] == [
        "444",
        "0",
        "0",
        "444",
        "0",
        "0",
        "755",
        "0",
        "0",
        "755",
        "0",
        "0",
        "400",
        "7",
        "8",
    ], result.output
    assert result.output.count("hidden") == 1 and words.count("kept") == 2, result.output


async def test_stats_name_the_containers(driver: Driver, harness: DriverHarness) -> None:
    runs = harness.runs("a")
    handle = await driver.create(harness.sandbox(runs))
    await driver.start_container(handle, runs)
    stats = await driver.stats(handle)
    assert set(stats.containers) == {"a"}
    assert stats.host_memory_bytes > 0 and stats.containers["a"].memory_bytes > 0


async def test_logs_are_in_the_cri_format(driver: Driver, harness: DriverHarness) -> None:
    talks = harness.exits("a", 0, text="hello out there")
    spec = harness.sandbox(talks)
    await _exit_of(driver, spec, talks)
    path = Path(spec.directory) / "logs" / "a.log"
    lines = [parse_line(raw) for raw in path.read_bytes().splitlines()]
    texts = [line.text for line in lines if line is not None and line.stream == "stdout"]
    assert b"hello out there" in texts
    assert None not in lines


async def test_adopt_from_another_instance(driver: Driver, harness: DriverHarness) -> None:
    runs, ends = harness.runs("runs"), harness.exits_after("ends", 5, 0.3)
    spec = harness.sandbox(runs, ends)
    handle = await driver.create(spec)
    first = await driver.start_container(handle, runs)
    second = await driver.start_container(handle, ends)
    await driver.close()
    other = harness.new_driver()
    try:
        found = {c.name: c for c in await other.adopt(handle, spec)}
        assert found["runs"].running and found["runs"].runtime_id == first.runtime_id
        assert found["runs"].started_at == pytest.approx(first.started_at, abs=2)
        event = await _next(other.events(handle))
        assert isinstance(event, ContainerExited)
        assert (event.container, event.runtime_id) == ("ends", second.runtime_id)
        assert event.status.exit_code == 5
        await other.destroy(handle)
        assert harness.remains() == []
    finally:
        await other.close()


async def test_an_exit_while_no_agent_was_there_is_told(driver: Driver, harness: DriverHarness) -> None:
    ends, watched = harness.exits_after("a", 7, 0.2), harness.exits_after("b", 0, 0.6)
    spec = harness.sandbox(ends, watched)
    handle = await driver.create(spec)
    events = driver.events(handle)
    await driver.start_container(handle, ends)
    await driver.start_container(handle, watched)
    seen = await _next(events)
    assert isinstance(seen, ContainerExited)
    await driver.close()
    other = harness.new_driver()
    try:
        await other.adopt(handle, spec)
        events = other.events(handle)
        codes = {}
        while len(codes) < 2:
            event = await _next(events)
            assert isinstance(event, ContainerExited) and event.container not in codes
            codes[event.container] = event.status.exit_code
        assert codes == {"a": 7, "b": 0}, "each agent life hears of every exit once"
    finally:
        await other.destroy(handle)
        await other.close()


async def test_a_sandbox_that_is_gone_cannot_be_adopted(driver: Driver, harness: DriverHarness) -> None:
    spec = harness.sandbox(harness.runs("a"))
    handle = await driver.create(spec)
    await driver.destroy(handle)
    other = harness.new_driver()
    with pytest.raises(SandboxGone):
        await other.adopt(handle, spec)
    await other.close()


async def test_destroy_twice_and_from_the_handle_alone(driver: Driver, harness: DriverHarness) -> None:
    runs = harness.runs("a")
    spec = harness.sandbox(runs)
    handle = await driver.create(spec)
    await driver.start_container(handle, runs)
    await driver.close()
    other = harness.new_driver()
    await other.destroy(handle)
    assert harness.remains() == []
    await other.destroy(handle)
    assert os.path.isdir(spec.directory), "the directory is the agent's"
    await other.close()


async def test_leftovers_go_by_name_alone(driver: Driver, harness: DriverHarness) -> None:
    runs = harness.runs("a")
    spec = harness.sandbox(runs)
    handle = await driver.create(spec)
    await driver.start_container(handle, runs)
    await driver.close()
    other = harness.new_driver()
    await other.destroy_leftovers(spec.directory, harness.task_id)
    assert harness.remains() == []
    await other.destroy_leftovers(spec.directory, harness.task_id)
    await other.close()


async def test_a_create_that_is_cancelled_leaves_nothing(driver: Driver, harness: DriverHarness) -> None:
    creating = asyncio.create_task(driver.create(harness.sandbox(harness.runs("a"))))
    await asyncio.sleep(0)
    creating.cancel()
    await asyncio.gather(creating, return_exceptions=True)
    if not creating.cancelled():
        await driver.destroy(creating.result())
    assert harness.remains() == []


async def test_events_end_when_the_sandbox_is_destroyed(driver: Driver, harness: DriverHarness) -> None:
    handle: Handle = await driver.create(harness.sandbox(harness.runs("a")))
    events = driver.events(handle)
    waiting = asyncio.ensure_future(_rest(events))
    await asyncio.sleep(0)
    await driver.destroy(handle)
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        rest = await waiting
    assert all(isinstance(e, SandboxExited) for e in rest)


async def _rest(events: AsyncIterator[SandboxEvent]) -> list[SandboxEvent]:
    return [e async for e in events]


def test_exec_is_either_whole_or_not_there(harness: DriverHarness) -> None:
    made = harness.new_driver()
    assert isinstance(made, SupportsExec) == callable(getattr(made, "exec", None))
