"""The ingress with a real HAProxy: no request is lost by a change, no connection cut, nothing left over."""

import asyncio
import os
import pwd
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.claims import free_port

from hutch.host.drivers.contract import HostFault
from hutch.host.kernel.inotify import FileWatcher
from hutch.host.kernel.process import ProcessRef, find_processes, wait_gone
from hutch.host.lb import haproxy as haproxy_module
from hutch.host.lb.haproxy import HaproxyIngress
from hutch.wire.taskspec import InterfaceSpec, PublishSpec, TaskSpec

pytestmark = pytest.mark.needs("haproxy")
LOOPBACK = "127.0.0.1"


class Backend:
    """A server in a task's place: says its name to each line that it gets."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            writer.write(f"{self.name}\n".encode())
        writer.close()

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()


class Bench:
    def __init__(self, directory: Path) -> None:
        self.directory = directory / "ingress"
        self.ingress = HaproxyIngress(self.directory, bind_address=LOOPBACK)
        self.backends: list[Backend] = []

    async def task(self, number: int, host_port: int = 0) -> TaskSpec:
        """A task whose container is a backend that says the number."""
        backend = Backend(str(number))
        await backend.start()
        self.backends.append(backend)
        return TaskSpec(
            task_id=f"{number:032x}", cluster="c", arn="a", family="f", revision=1, launch_type="FARGATE",
            cpu_units=256, memory_mib=512, ephemeral_gib=1, network_mode="awsvpc", containers=(),
            interface=InterfaceSpec(
                eni_id="eni-1", mac="02:00:00:00:00:01", address=LOOPBACK, prefix_length=20, gateway="10.0.0.1"
            ),
            publish=(PublishSpec(name="web", host_port=host_port or free_port(), container_port=backend.port),),
        )  # fmt: skip

    def processes(self) -> tuple[ProcessRef, ...]:
        return find_processes(str(self.directory / "haproxy.cfg"))

    def serving(self) -> int:
        return int((self.directory / "haproxy.pid").read_text())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    try:
        yield made
    finally:
        await made.ingress.stop()
        for backend in made.backends:
            backend.stop()
        assert made.processes() == ()


class Connection:
    """A client of a published port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, task: TaskSpec) -> "Connection":
        return cls(*await asyncio.open_connection(LOOPBACK, task.publish[0].host_port))

    async def ask(self) -> str:
        self._writer.write(b"?\n")
        return (await asyncio.wait_for(self._reader.readline(), 10)).decode().strip()

    async def ended(self) -> bool:
        try:
            return await asyncio.wait_for(self._reader.read(), 10) == b""
        except ConnectionResetError:
            return True

    async def close(self) -> None:
        self._writer.close()


async def ask(task: TaskSpec) -> str:
    connection = await Connection.open(task)
    try:
        return await connection.ask()
    finally:
        await connection.close()


async def test_a_published_port_leads_to_its_task_until_it_is_withdrawn(bench: Bench) -> None:
    one, two = await bench.task(1), await bench.task(2)
    await bench.ingress.publish(one)
    await bench.ingress.publish(two)
    assert [await ask(t) for t in (one, two, one)] == ["1", "2", "1"]
    await bench.ingress.withdraw(one.task_id)
    assert await ask(two) == "2"
    await bench.ingress.withdraw("f" * 32)
    await bench.ingress.withdraw(two.task_id)
    for process in bench.processes():
        await wait_gone(process)
    assert bench.processes() == (), "no endpoints, no HAProxy"
    with pytest.raises(ConnectionRefusedError):
        await ask(two)


async def test_no_request_is_lost_while_others_come_and_go(bench: Bench) -> None:
    steady, others = await bench.task(1), [await bench.task(n) for n in range(2, 8)]
    await bench.ingress.publish(steady)
    changing = True
    asked = 0

    async def client() -> None:
        nonlocal asked
        while changing:
            assert await ask(steady) == "1"
            asked += 1

    clients = [asyncio.create_task(client()) for _ in range(4)]
    first = bench.serving()
    for other in others:
        await bench.ingress.publish(other)
        assert await ask(other) == f"{int(other.task_id, 16)}"
    for other in others:
        await bench.ingress.withdraw(other.task_id)
    changing = False
    await asyncio.gather(*clients)
    assert asked > len(others) and bench.serving() != first


async def test_a_connection_outlives_every_change_but_its_own_end(bench: Bench) -> None:
    one, two = await bench.task(1), await bench.task(2)
    await bench.ingress.publish(one)
    long = await Connection.open(one)
    assert await long.ask() == "1"
    await bench.ingress.publish(two)
    await bench.ingress.withdraw(two.task_id)
    late = await Connection.open(one)
    assert [await c.ask() for c in (long, late)] == ["1", "1"]
    await bench.ingress.withdraw(one.task_id)
    assert [await c.ask() for c in (long, late)] == ["1", "1"], "the last endpoint is gone, they are not"
    draining = bench.processes()
    assert draining
    await long.close()
    await late.close()
    for process in draining:
        await wait_gone(process)


async def test_a_killed_haproxy_is_started_again(bench: Bench) -> None:
    task = await bench.task(1)
    await bench.ingress.publish(task)
    killed = bench.serving()
    watcher = FileWatcher()
    watch = watcher.watch(bench.directory)
    try:
        os.kill(killed, signal.SIGKILL)
        state = bench.directory / "haproxy.json"
        async with asyncio.timeout(20):
            while f'"pid":{killed},' in state.read_text():
                watch.changed.clear()
                await watch.changed.wait()
    finally:
        watcher.close()
    assert await ask(task) == "1"


async def test_a_new_agent_takes_over_what_is_published(bench: Bench) -> None:
    one, two, three = [await bench.task(n) for n in (1, 2, 3)]
    await bench.ingress.publish(one)
    await bench.ingress.publish(two)
    served_by = bench.serving()
    await bench.ingress.close()
    bench.ingress = HaproxyIngress(bench.directory, bind_address=LOOPBACK)
    await bench.ingress.publish(one)
    assert bench.serving() == served_by, "nothing changed, nothing was reloaded"
    await bench.ingress.publish(three)
    assert [await ask(t) for t in (one, two, three)] == ["1", "2", "3"]


async def test_a_start_that_was_cut_off_is_taken_over_too(bench: Bench) -> None:
    one, two = await bench.task(1), await bench.task(2)
    await bench.ingress.publish(one)
    before = (bench.directory / "haproxy.json").read_bytes()
    await bench.ingress.publish(two)
    await bench.ingress.close()
    # As if the agent had been killed after HAProxy's reload, before it noted it.
    (bench.directory / "haproxy.json").write_bytes(before)
    unknown = bench.processes()
    bench.ingress = HaproxyIngress(bench.directory, bind_address=LOOPBACK)
    await bench.ingress.publish(two)
    for process in unknown:
        await wait_gone(process)
    assert [await ask(t) for t in (one, two)] == ["1", "2"]
    assert len(bench.processes()) == 1


async def test_a_port_of_another_program_is_named_and_the_others_stay(bench: Bench) -> None:
    one = await bench.task(1)
    await bench.ingress.publish(one)
    for address in (LOOPBACK, "0.0.0.0"):
        with socket.create_server((address, 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(HostFault, match=f"host port {port} .*process {os.getpid()}") as fault:
                await bench.ingress.publish(await bench.task(2, port))
        assert fault.value.kind == "PortInUse" and fault.value.fix
        assert await ask(one) == "1"
    await bench.ingress.publish(await bench.task(3))


async def test_a_port_goes_from_one_task_to_the_next_at_once(bench: Bench) -> None:
    stays, task = await bench.task(1), await bench.task(2)
    port = task.publish[0].host_port
    await bench.ingress.publish(stays)
    for number in range(3, 8):
        await bench.ingress.publish(task)
        await bench.ingress.withdraw(task.task_id)
        task = await bench.task(number, port)
    await bench.ingress.publish(task)
    assert await ask(task) == "7"


async def test_a_burst_shares_its_reloads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = 0
    real = haproxy_module.run

    async def run(*arguments: object, **named: object) -> bytes:
        nonlocal starts
        starts += 1
        return await real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(haproxy_module, "run", run)
    tasks = [await bench.task(n) for n in range(1, 21)]
    await asyncio.gather(*(bench.ingress.publish(t) for t in tasks))
    assert [await ask(t) for t in tasks] == [str(n) for n in range(1, 21)]
    assert starts <= 4


async def test_draining_processes_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy_module, "MAX_DRAINING", 2)
    steady = await bench.task(1)
    await bench.ingress.publish(steady)
    connections = []
    for number in range(2, 6):
        connections.append(await Connection.open(steady))
        assert await connections[-1].ask() == "1"
        await bench.ingress.publish(await bench.task(number))
    assert await connections[0].ended(), "the oldest had to go"
    assert await connections[-1].ask() == "1"
    assert len(bench.processes()) <= 4
    for connection in connections:
        await connection.close()


async def test_stop_ends_draining_processes_too(bench: Bench) -> None:
    one, two = await bench.task(1), await bench.task(2)
    await bench.ingress.publish(one)
    connection = await Connection.open(one)
    assert await connection.ask() == "1"
    await bench.ingress.publish(two)
    assert len(bench.processes()) == 2
    await bench.ingress.stop()
    assert bench.processes() == () and list(bench.directory.iterdir()) == []
    assert await connection.ended()
    await connection.close()
    await bench.ingress.stop()


async def test_what_haproxy_refuses_is_said_and_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await bench.task(1), await bench.task(2)
    await bench.ingress.publish(one)
    with monkeypatch.context() as patched:
        patched.setattr(haproxy_module, "configuration", lambda *_, **__: "global\n    nonsense\n")
        with pytest.raises(HostFault, match="nonsense"):
            await bench.ingress.publish(two)
    assert await ask(one) == "1"
    with monkeypatch.context() as patched:
        patched.setattr(haproxy_module, "PROGRAM", "/nonexistent/haproxy")
        with pytest.raises(HostFault, match="not installed") as fault:
            await bench.ingress.publish(two)
    assert fault.value.fix == "apt-get install haproxy"
    await bench.ingress.publish(two)
    assert [await ask(t) for t in (one, two)] == ["1", "2"]


@pytest.mark.needs("root")
async def test_haproxy_is_not_root_after_it_has_bound(bench: Bench) -> None:
    await bench.ingress.publish(await bench.task(1))
    status = Path(f"/proc/{bench.serving()}/status").read_text()
    uid = next(line for line in status.splitlines() if line.startswith("Uid:"))
    assert uid.split()[1] == str(pwd.getpwnam("haproxy").pw_uid)
