"""The guest agent as an ordinary process, with a runtime that is a script: the protocol without a VM."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.conftest import REPO
from tests.support.looking import look_until_async

from hutch.host.guestlink.logs import SandboxLogs
from hutch.host.guestlink.session import GuestRefused, GuestSession
from hutch.wire.guest_documents import ContainerExitedEvent, StateAnswer

AGENT = REPO / "build/guest/cargo/x86_64-unknown-linux-gnu/release/hutch-agent"
pytestmark = pytest.mark.needs("guest_image")

RUNTIME = """#!/bin/sh
# As `crun run --detach --pid-file FILE ... NAME`: the container says its name and ends with 3. It outlives the runtime,
# which (being a shell) would else reap it.
while [ $# -gt 0 ]; do
    case "$1" in --pid-file) pid_file=$2 ;; delete) exit 0 ;; esac
    name=$1; shift
done
( echo "I am $name"; while kill -0 $$ 2>/dev/null; do :; done; exit 3 ) &
echo $! > "$pid_file"
"""


class Empty(msgspec.Struct):
    """An answer without members."""


class Agent:
    """A running agent and a session with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "agent.sock"
        runtime = directory / "runtime"
        runtime.write_text(RUNTIME)
        runtime.chmod(0o755)
        argv = [AGENT, "--socket", self.socket, "--runtime", runtime, "--state", directory / "state"]
        self.process = subprocess.Popen(argv)
        self.exits: asyncio.Queue[ContainerExitedEvent] = asyncio.Queue()
        self.logs = SandboxLogs(directory / "logs")

    async def connect(self, first_id: int = 1) -> StateAnswer:
        await look_until_async(self.socket.exists)
        self.session = await GuestSession.connect(
            self.socket, logs=self.logs, on_exit=self.exits.put, first_id=first_id
        )
        answer = await self.session.hello(now_ns=lambda: 0, entropy=bytes(32), timeout_s=10)
        return StateAnswer(containers=answer.containers)

    async def run(self, name: str, number: int) -> ContainerExitedEvent:
        """Start a container and wait for its end, which stays unacknowledged."""
        self.logs.register(number, name)
        await self.session.request("start", Empty, name=name, number=number, config={"linux": {}})
        async with asyncio.timeout(10):
            return await self.exits.get()

    async def end(self) -> None:
        await self.session.close()
        await self.logs.close()
        self.process.terminate()
        await asyncio.to_thread(self.process.wait, 10)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    agent = Agent(tmp_path)
    try:
        await agent.connect()
        yield agent
    finally:
        await agent.end()


async def test_a_container_runs_and_its_exit_is_told_until_it_is_acknowledged(agent: Agent) -> None:
    exited = await agent.run("one", 1)
    assert (exited.name, exited.number, exited.exit_code) == ("one", 1, 3)
    await agent.logs.wait_written(1, 1)
    assert b"I am c1" in (agent.directory / "logs/one.log").read_bytes()
    await agent.session.close()
    (known,) = (await agent.connect(first_id=1000)).containers
    assert (known.status, known.exit_code, known.log_seq, known.log_acked) == ("exited", 3, 1, 1)
    async with asyncio.timeout(10):
        again = await agent.exits.get()
    assert again.seq == exited.seq
    agent.session.acknowledge_event(again.seq)
    await agent.session.request("state", StateAnswer)
    await agent.session.close()
    await agent.connect(first_id=2000)
    await agent.session.request("state", StateAnswer)
    assert agent.exits.empty()


async def test_starts_that_are_over_and_told_are_forgotten_but_for_the_last_of_each_name(
    agent: Agent,
) -> None:
    for number in range(1, 401):
        exited = await agent.run("again", number)
        assert exited.number == number
        await agent.logs.wait_written(number, 1)
        agent.session.acknowledge_event(exited.seq)
    await agent.run("other", 401)
    state = await agent.session.request("state", StateAnswer)
    assert [(c.name, c.number) for c in state.containers] == [("again", 400), ("other", 401)]
    await agent.session.close()
    greeting = await agent.connect(first_id=1_000_000)
    assert len(greeting.containers) == 2


async def test_what_is_not_known_or_malformed_is_refused(agent: Agent) -> None:
    for operation, members, kind in (
        ("no-such-thing", {}, "UnknownOp"),
        ("kill", {"name": "one"}, "BadRequest"),
        ("start", {"name": "one"}, "Failed"),
        ("hello", {"version": 9}, "BadRequest"),
    ):
        with pytest.raises(GuestRefused) as caught:
            await agent.session.request(operation, Empty, **members)  # type: ignore[arg-type]
        assert caught.value.kind == kind


async def test_a_socket_of_a_container_is_reached_and_no_other(agent: Agent) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.readexactly(300_000))
        writer.write(b"enough")
        writer.close()

    path = agent.directory / "router.sock"
    server = await asyncio.start_unix_server(serve, str(path))
    (agent.directory / "link").symlink_to(path)
    (agent.directory / "file").touch()
    for name in ("link", "file", "missing"):
        refused = agent.session.open_stream("connect", path=str(agent.directory / name))
        with pytest.raises(GuestRefused):
            await asyncio.wait_for(refused.answer, 10)
    stream = agent.session.open_stream("connect", path=str(path))
    # Far more than the window of a stream.
    await asyncio.wait_for(stream.write(b"x" * 300_000), 10)
    await asyncio.wait_for(stream.taken(), 10)
    assert await asyncio.wait_for(heard.get(), 10) == b"x" * 300_000
    assert [data async for _, data in stream.output()] == [b"enough"]
    # The router has hung up, and so it has ended; what comes now goes nowhere.
    assert b"exit_code" in bytes(await asyncio.wait_for(stream.answer, 10))
    await asyncio.wait_for(stream.write(b"more"), 10)
    server.close()
