"""What every log back end must bear: to hang, to refuse, to be reset in the middle. A container's output never waits for
it; what is dropped is counted; and once it is well again, logs go on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
from tests.support.log_servers import HANGS, REFUSES, RESETS, TAKES, ForwardServer, LogServer, SyslogServer

from hutch.host.agent.logship import LogShipper
from hutch.host.criformat import encode_lines
from hutch.host.kernel.inotify import FileWatcher
from hutch.host.logs.awslogs import AwslogsSink
from hutch.host.logs.connections import dial
from hutch.host.logs.contract import LogSink
from hutch.host.logs.forward import ForwardSink
from hutch.host.logs.lines import PlainLines
from hutch.host.logs.syslog import SyslogSink
from hutch.rules.logdrivers import syslog
from hutch.rules.logdrivers.options import Address, Delivery
from hutch.wire.facts import LogEvent

T0_NS = 1_700_000_000_123_456_789
BUFFER_BYTES = 64 * 1024


class Backend(Protocol):
    """A back end with dials, and the sink that leads to it."""

    got: list[str]

    def sink(self) -> LogSink: ...

    async def become(self, way: str) -> None: ...

    async def until(self, holds: Callable[[], bool]) -> None: ...

    async def close(self) -> None: ...


class AwslogsBackend:
    """The control plane's end of it."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self._well = asyncio.Event()
        self._well.set()
        self._breaks = False
        self._news = asyncio.Condition()
        self.asked = 0

    def sink(self) -> LogSink:
        return AwslogsSink(self._send)

    async def become(self, way: str) -> None:
        self._breaks = way == RESETS
        if way in (HANGS, REFUSES):
            self._well.clear()
        else:
            self._well.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(holds)

    async def close(self) -> None:
        pass

    async def _send(self, events: tuple[LogEvent, ...]) -> str:
        # As the agent's: away or silent, it waits; a batch whose answer was lost is sent again.
        self.asked += 1
        async with self._news:
            self._news.notify_all()
        await self._well.wait()
        self.got += [e.message for e in events] * (2 if self._breaks else 1)
        self._breaks = False
        async with self._news:
            self._news.notify_all()
        return ""


class ServerBackend:
    """A server on the loopback interface."""

    def __init__(self, server: LogServer, make: Callable[[Address], LogSink]) -> None:
        self.server = server
        self.got = server.got
        self.until = server.until
        self.become = server.become
        self.close = server.close
        self._make = make

    def sink(self) -> LogSink:
        return self._make(Address(transport="tcp", host="127.0.0.1", port=self.server.port))


def fluentd_sink(address: Address, *, acks: bool = True) -> LogSink:
    return ForwardSink(
        partial(dial, address),
        target="fluentd",
        tag="t",
        fields={},
        acks=acks,
        longest_delay_s=0.05,
        limit_s=0.5,
    )


def syslog_sink(address: Address) -> LogSink:
    options = syslog.SyslogOptions(address=address, format="rfc3164")
    return SyslogSink(
        partial(dial, address), options=options, host="h", tag="t", longest_delay_s=0.05, limit_s=0.5
    )


@pytest.fixture(params=["awslogs", "fluentd", "fluentd-without-acks", "syslog"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    made: Backend
    if request.param == "awslogs":
        made = AwslogsBackend()
    else:
        server: LogServer = SyslogServer() if request.param == "syslog" else ForwardServer()
        await server.listen()
        acks = request.param == "fluentd"
        sink = syslog_sink if request.param == "syslog" else partial(fluentd_sink, acks=acks)
        made = ServerBackend(server, sink)
    yield made
    await made.close()


class Container:
    """What a container writes, and its shipper."""

    def __init__(self, directory: Path, backend: Backend, *, blocking: bool = False) -> None:
        self.path = directory / "logs" / "app.log"
        self.path.parent.mkdir()
        self._watcher = FileWatcher()
        delivery = Delivery(blocking=blocking, buffer_bytes=BUFFER_BYTES)
        self.shipper = LogShipper(self.path, delivery, PlainLines(), backend.sink(), self._watcher)
        self.task = asyncio.create_task(self.shipper.run())

    def write(self, *lines: str) -> None:
        with self.path.open("ab") as f:
            f.write(b"".join(encode_lines(T0_NS, 1, line.encode() + b"\n") for line in lines))

    async def finish(self) -> None:
        self.shipper.end()
        async with asyncio.timeout(20):
            await self.task
        self._watcher.close()


@pytest.fixture
async def container(tmp_path: Path, backend: Backend) -> AsyncIterator[Container]:
    made = Container(tmp_path, backend)
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)


async def test_lines_arrive_in_order_and_the_last_ones_at_the_end(
    container: Container, backend: Backend
) -> None:
    container.write("one", "two")
    await backend.until(lambda: backend.got == ["one", "two"])
    container.write("three", "", "fünf")
    await container.finish()
    await backend.until(lambda: len(backend.got) == 5)
    assert backend.got == ["one", "two", "three", "", "fünf"]
    status = container.shipper.status()
    assert (status.waiting_bytes, status.dropped_bytes, status.problem) == (0, 0, "")


@pytest.mark.parametrize("way", [HANGS, REFUSES])
async def test_a_back_end_that_takes_nothing_costs_the_oldest_lines_and_they_are_counted(
    container: Container, backend: Backend, way: str
) -> None:
    container.write("first")
    await backend.until(lambda: backend.got == ["first"])
    await backend.become(way)
    lines = [f"{n:06d} {'x' * 1000}" for n in range(3000)]
    for line in lines:
        container.write(line)
    status = container.shipper.status()
    assert 0 < status.waiting_bytes <= BUFFER_BYTES + 1_000_000
    assert status.dropped_bytes > 1_000_000
    assert not container.task.done()
    await backend.become(TAKES)
    await container.finish()
    await backend.until(lambda: backend.got[-1] == lines[-1])
    arrived = [g for g in backend.got[1:] if g in set(lines)]
    missing = set(lines) - set(arrived)
    per_line = len(encode_lines(T0_NS, 1, lines[0].encode() + b"\n"))
    dropped = container.shipper.status().dropped_bytes
    assert missing and dropped > 0
    if type(backend.sink()) is AwslogsSink:
        assert dropped == len(missing) * per_line
    else:
        # A batch that was under way when nothing was acknowledged may or may not have arrived.
        assert abs(dropped - len(missing) * per_line) <= 600 * per_line
    assert arrived == sorted(arrived)


async def test_a_reset_in_the_middle_is_got_over(container: Container, backend: Backend) -> None:
    """Without acknowledgements the lines that a reset swallowed are gone; what comes after it is not."""
    await backend.become(RESETS)
    container.write(*(f"line {n}" for n in range(200)))
    if isinstance(backend, ServerBackend):
        # It has hung up on the first connection, and takes the next one.
        await backend.until(lambda: backend.server.way == TAKES)
    while "after" not in backend.got:
        container.write("after")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await backend.until(lambda: "after" in backend.got)
    await container.finish()
    assert container.shipper.status().problem == ""


async def test_with_acknowledgements_a_reset_loses_nothing(tmp_path: Path) -> None:
    server = ForwardServer()
    await server.listen()
    backend = ServerBackend(server, fluentd_sink)
    await backend.become(RESETS)
    container = Container(tmp_path, backend, blocking=True)
    lines = [f"line {n}" for n in range(5000)]
    container.write(*lines)
    await container.finish()
    await server.close()
    assert server.connections >= 2
    assert set(lines) <= set(server.got)


@pytest.mark.parametrize("way", [HANGS, REFUSES])
async def test_what_is_known_to_take_nothing_is_told(tmp_path: Path, way: str) -> None:
    server = SyslogServer()
    await server.listen()
    backend = ServerBackend(server, syslog_sink)
    await backend.become(way)
    container = Container(tmp_path, backend, blocking=True)
    # More than the kernels on the way hold.
    container.write(*(f"{n:06d} {'x' * 1000}" for n in range(12_000)))
    async with asyncio.timeout(20):
        await container.shipper.stuck.wait()
    status = container.shipper.status()
    assert status.problem.startswith(f"syslog tcp://127.0.0.1:{server.port}: ")
    # In blocking mode all of it stays in the file.
    assert status.dropped_bytes == 0 and status.waiting_bytes > 1_000_000
    container.task.cancel()
    await asyncio.gather(container.task, return_exceptions=True)
    await server.close()


async def test_what_rotates_away_unread_is_counted(tmp_path: Path) -> None:
    backend = AwslogsBackend()
    await backend.become(HANGS)
    container = Container(tmp_path, backend, blocking=True)
    container.write("held")
    await backend.until(lambda: backend.asked > 0)
    lines = 0
    for generation in range(4):
        for n in range(50):
            container.write(f"{generation} {n:03d}")
            lines += 1
        container.path.replace(container.path.with_name("app.log.1"))
        container.path.touch()
        container.shipper.status()
    container.write("last")
    per_line = len(encode_lines(T0_NS, 1, b"0 000\n"))
    assert container.shipper.status().dropped_bytes >= 100 * per_line
    await backend.become(TAKES)
    await container.finish()
    missing = lines + 2 - len(backend.got)
    assert backend.got[-1] == "last" and missing > 0
    assert container.shipper.status().dropped_bytes == missing * per_line


async def test_counts_survive_the_agent(tmp_path: Path) -> None:
    backend = AwslogsBackend()
    container = Container(tmp_path, backend)
    await backend.become(HANGS)
    container.write(*(f"{n:06d} {'x' * 1000}" for n in range(200)))
    await backend.become(TAKES)
    await container.finish()
    dropped = container.shipper.status().dropped_bytes
    watcher = FileWatcher()
    again = LogShipper(container.path, Delivery(), PlainLines(), backend.sink(), watcher)
    again.end()
    async with asyncio.timeout(20):
        await again.run()
    watcher.close()
    assert dropped > 0 and again.status().dropped_bytes == dropped
