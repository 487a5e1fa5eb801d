"""The rules of `SupportsKeptDisks`, for every driver that has it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.support.driver_harness import HARNESSES, DriverHarness

from hutch.host.drivers.contract import (
    ContainerExited,
    Driver,
    DriverError,
    Handle,
    SandboxSpec,
    SupportsExec,
    SupportsKeptDisks,
)
from hutch.model.exec import STDOUT, ExecSpec
from hutch.wire.taskspec import ContainerSpec

LIMIT_S = 60


class Bench:
    """A driver, and directories for what is kept and for who looks into it."""

    def __init__(self, harness: DriverHarness, root: Path) -> None:
        self.harness = harness
        self.driver: Driver = harness.new_driver()
        self.kept, self.look = root / "kept", root / "look"
        for directory in (self.kept, self.look):
            directory.mkdir(mode=0o700)
        self.is_fake = self.driver.name == "fake"
        self.spec: SandboxSpec | None = None

    def container(self) -> ContainerSpec:
        made = self.harness.exits("a", 3)
        if self.is_fake:
            return made
        script = "echo evidence > /left; exit 3"
        return msgspec.structs.replace(made, command=("/bin/sh", "-c", script))

    async def run_to_its_end(self, container: ContainerSpec) -> Handle:
        self.spec = self.harness.sandbox(container)
        handle = await self.driver.create(self.spec)
        await self.driver.start_container(handle, container)
        async with asyncio.timeout(LIMIT_S):
            event = await anext(self.driver.events(handle))
        assert isinstance(event, ContainerExited) and event.status.exit_code == 3
        return handle

    async def open(self, container: ContainerSpec) -> Handle:
        assert isinstance(self.driver, SupportsKeptDisks) and self.spec is not None
        task = msgspec.structs.replace(self.spec.task, task_id=f"{self.harness.task_id}-look")
        spec = msgspec.structs.replace(self.spec, task=task, directory=str(self.look))
        handle = await self.driver.open_disk(str(self.kept), spec)
        await self.driver.hold_container(handle, container)
        await self.driver.hold_container(handle, container)
        return handle

    async def say(self, handle: Handle, fake: tuple[str, ...], shell: str) -> str:
        """What a command says in the container that is held."""
        assert isinstance(self.driver, SupportsExec)
        command = fake if self.is_fake else ("/.hutch/toolbox/sh", "-c", shell)
        stream = await self.driver.exec(handle, "a", ExecSpec(command=command, stdin=False))
        said = b""
        async with asyncio.timeout(LIMIT_S):
            async for kind, data in stream.output():
                said += data if kind == STDOUT else b""
            assert await stream.wait() == 0
        await stream.close()
        return said.decode()


DRIVERS = ("fake", "microvm", "container", "gvisor")
TOOLBOX = pytest.mark.needs("toolbox")


@pytest.fixture(params=[pytest.param(m, id=n, marks=(*k, TOOLBOX)) for n, m, k in HARNESSES if n in DRIVERS])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    harness: DriverHarness = request.param(tmp_path)
    made = Bench(harness, tmp_path)
    try:
        yield made
    finally:
        await made.driver.destroy_leftovers(str(made.look), f"{harness.task_id}-look")
        if made.spec is not None:
            await made.driver.destroy_leftovers(made.spec.directory, harness.task_id)
        await made.driver.close()
    assert harness.remains() == []
    assert [p for name in ("vm", "box", "fake.json") for p in made.look.glob(name)] == []


async def test_what_was_written_can_be_looked_into_and_stays_as_it_is(bench: Bench) -> None:
    driver, container = bench.driver, bench.container()
    assert isinstance(driver, SupportsKeptDisks)
    handle = await bench.run_to_its_end(container)
    assert 0 < await driver.keep_disk(handle, str(bench.kept)) < 64 * 2**20
    await driver.destroy(handle)
    assert bench.harness.remains() == []
    # Another agent, which was killed before it could say so, finds all of it moved.
    assert await driver.keep_disk(handle, str(bench.kept)) > 0

    look = await bench.open(container)
    script = "cat /left; echo changed > /left; sed -n 's/.*\\(eth0\\).*/\\1/p' /proc/net/dev"
    assert await bench.say(look, ("echo", "x"), script) == ("x\n" if bench.is_fake else "evidence\n")
    await driver.destroy(look)

    look = await bench.open(container)
    seen = await bench.say(
        look, ("echo", "x"), "cat /left; mount | grep -c toolbox; ps | grep -c evidenc[e]; :"
    )
    assert seen == ("x\n" if bench.is_fake else "evidence\n1\n0\n")
    await driver.destroy(look)


async def test_what_is_not_kept_cannot_be_opened(bench: Bench) -> None:
    assert isinstance(bench.driver, SupportsKeptDisks)
    bench.spec = bench.harness.sandbox(bench.container())
    with pytest.raises(DriverError) as caught:
        await bench.open(bench.container())
    assert caught.value.kind == "NoDiskKept"
