"""The rules of `ExecStream`, for every driver that supports exec."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.driver_harness import HARNESSES, DriverHarness

from hutch.host.drivers.contract import Driver, DriverError, ExecStream, Handle, SandboxGone, SupportsExec
from hutch.model.exec import STDERR, STDOUT, ExecSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMIT_S = 120


class Room:
    """A running container to exec in."""

    def __init__(self, driver: Driver, handle: Handle, fake: bool) -> None:
        assert isinstance(driver, SupportsExec)
        self.driver = driver
        self.handle = handle
        self.is_fake = fake
        self.open: list[ExecStream] = []

    async def exec(self, fake: tuple[str, ...], shell: str, **changes: object) -> ExecStream:
        """Run a program of the fake driver, or what is the same as a shell script."""
        command = fake if self.is_fake else ("/bin/sh", "-c", shell)
        spec = ExecSpec(command=command, **changes)  # type: ignore[arg-type]
        assert isinstance(self.driver, SupportsExec)
        stream = await self.driver.exec(self.handle, "a", spec)
        self.open.append(stream)
        return stream


@contextlib.asynccontextmanager
async def room_of(make: Callable[[Path], DriverHarness], directory: Path) -> AsyncIterator[Room]:
    """A sandbox with a container that runs; afterwards nothing of it is left."""
    harness = make(directory)
    driver = harness.new_driver()
    container = harness.runs("a")
    spec = harness.sandbox(container)
    try:
        handle = await driver.create(spec)
        await driver.start_container(handle, container)
        yield Room(driver, handle, driver.name == "fake")
    finally:
        await driver.destroy_leftovers(spec.directory, harness.task_id)
        await driver.close()
    assert harness.remains() == []


@pytest.fixture(
    scope="module",
    params=[pytest.param(m, id=n, marks=k) for n, m, k in HARNESSES if n != "microvm-booted"],
)
def harness_maker(request: pytest.FixtureRequest) -> Callable[[Path], DriverHarness]:
    maker: Callable[[Path], DriverHarness] = request.param
    return maker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_room(
    harness_maker: Callable[[Path], DriverHarness], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Room]:
    """One for all tests of a driver: none of them needs a sandbox in which nothing has run, and a VM takes its time."""
    async with room_of(harness_maker, tmp_path_factory.mktemp("exec")) as room:
        yield room


@pytest_asyncio.fixture(loop_scope="module")
async def room(shared_room: Room) -> AsyncIterator[Room]:
    """The shared one; what a test has opened is closed after it."""
    yield shared_room
    async with asyncio.timeout(LIMIT_S):
        while shared_room.open:
            await shared_room.open.pop().close()


async def _collect(stream: ExecStream) -> tuple[int, dict[int, bytes]]:
    """(exit code, what it wrote on each stream)."""
    said = {STDOUT: b"", STDERR: b""}
    async with asyncio.timeout(LIMIT_S):
        async for kind, data in stream.output():
            said[kind] += data
        return await stream.wait(), said


async def _until(output: AsyncIterator[tuple[int, bytes]], text: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(LIMIT_S):
        while text not in seen:
            seen += (await anext(output))[1]
    return seen


async def test_output_and_exit_code(room: Room) -> None:
    assert await _collect(await room.exec(("echo", "hello"), "echo hello")) == (
        0,
        {STDOUT: b"hello\n", STDERR: b""},
    )
    assert (await _collect(await room.exec(("fail", "7"), "exit 7")))[0] == 7
    _, said = await _collect(await room.exec(("warn", "careful"), "echo careful >&2"))
    assert said == {STDOUT: b"", STDERR: b"careful\n"}


async def test_input_comes_back_and_ends(room: Room) -> None:
    """More than any buffer on the way holds."""
    stream = await room.exec(("cat",), "cat")
    sent = bytes(range(256)) * 2048
    collecting = asyncio.create_task(_collect(stream))
    async with asyncio.timeout(LIMIT_S):
        for start in range(0, len(sent), 30_000):
            await stream.write(sent[start : start + 30_000])
        await stream.close_input()
        code, said = await collecting
    assert code == 0 and said[STDOUT] == sent


async def test_without_stdin_the_input_is_at_its_end(room: Room) -> None:
    assert (await _collect(await room.exec(("cat",), "cat", stdin=False)))[0] == 0


async def test_a_terminal_has_its_size_and_takes_another(room: Room) -> None:
    script = "stty size; trap 'stty size' WINCH; while :; do sleep 0.1; done"
    stream = await room.exec(("size",), script, tty=True, rows=33, cols=101)
    output = stream.output()
    await _until(output, b"33 101")
    # A shell that has printed is not yet one that has set its trap: the size is set until it is noticed.
    async with asyncio.timeout(LIMIT_S):
        noticed = asyncio.create_task(_until(output, b"12 34"))
        rows = 20
        while not noticed.done():
            rows = 12 if rows == 20 else 20
            await stream.resize(rows, 34)
            await asyncio.wait({noticed}, timeout=0.5)
        await noticed


async def test_control_c_interrupts(room: Room) -> None:
    stream = await room.exec(("cat",), "echo ready; cat", tty=True)
    output = stream.output()
    if not room.is_fake:
        await _until(output, b"ready")
    await stream.write(b"typed\n")
    await _until(output, b"typed")
    await stream.write(b"\x03")
    async with asyncio.timeout(LIMIT_S):
        async for _ in output:
            pass
        assert await stream.wait() == 130


async def test_a_signal_reaches_the_process(room: Room) -> None:
    stream = await room.exec(("sleep",), "echo ready; exec sleep 1000")
    if not room.is_fake:
        await _until(stream.output(), b"ready")
    await stream.signal(15)
    async with asyncio.timeout(LIMIT_S):
        assert await stream.wait() == 143


async def test_who_does_not_read_stops_the_process_and_nothing_else(room: Room) -> None:
    flood = await room.exec(("flood", "3000000"), "head -c 3000000 /dev/zero")
    assert await _collect(await room.exec(("echo", "through"), "echo through")) == (
        0,
        {STDOUT: b"through\n", STDERR: b""},
    )
    code, said = await _collect(flood)
    assert code == 0 and len(said[STDOUT]) >= 3_000_000


async def test_closing_ends_a_process_that_runs(room: Room) -> None:
    stream = await room.exec(("sleep",), "trap '' HUP; echo ready; while :; do sleep 1; done")
    if not room.is_fake:
        await _until(stream.output(), b"ready")
    async with asyncio.timeout(LIMIT_S):
        await stream.close()
    if not room.is_fake:
        pgrep = "for i in $(seq 100); do n=$(ps | grep -c '[t]rap .. HUP'); [ $n = 0 ] && exit 0; sleep 0.1; done; exit 1"
        assert (await _collect(await room.exec((), pgrep)))[0] == 0


async def test_what_is_not_there_cannot_be_run(room: Room) -> None:
    assert isinstance(room.driver, SupportsExec)
    spec = ExecSpec(command=("/no/such/program",), stdin=False)
    with pytest.raises(DriverError) as caught:
        stream = await room.driver.exec(room.handle, "a", spec)
        room.open.append(stream)
        await _collect(stream)
    assert caught.value.kind == "ExecNotFound"
    with pytest.raises(DriverError):
        await room.driver.exec(room.handle, "nobody", ExecSpec(command=("true",)))


async def test_another_user(room: Room) -> None:
    if room.is_fake:
        pytest.skip("the fake driver has no users")
    _, said = await _collect(await room.exec((), "id -u; id -g", user="1234:4321"))
    assert said[STDOUT] == b"1234\n4321\n"


async def test_the_end_of_the_sandbox_ends_it(
    harness_maker: Callable[[Path], DriverHarness], tmp_path: Path
) -> None:
    async with room_of(harness_maker, tmp_path) as own:
        stream = await own.exec(("sleep",), "sleep 1000")
        collecting = asyncio.create_task(_collect(stream))
        await own.driver.destroy(own.handle)
        with pytest.raises(SandboxGone):
            await collecting
        async with asyncio.timeout(LIMIT_S):
            await stream.close()
