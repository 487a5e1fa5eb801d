"""The guest's vsock ports behind a unix socket: the handshake, and what a monitor that was taken over may answer."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hutch.host.guestlink.session import GuestGone, GuestSilent
from hutch.host.guestlink.vsock import AGENT_PORT, GuestCall, connect_vsock

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def monitor(path: Path, handler: Handler) -> AsyncIterator[None]:
    server = await asyncio.start_unix_server(handler, path)
    async with server:
        yield


def answering(answer: bytes, *, then: bytes = b"", hang: bool = False) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"CONNECT 1024\n"
        writer.write(answer + then)
        if hang:
            await reader.read()
        writer.close()

    return handle


async def test_what_follows_the_handshake_is_the_guests(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with monitor(path, answering(b"OK 1073741824\n", then=b"\0frame")):
        reader, writer = await connect_vsock(path, AGENT_PORT, timeout_s=30)
        assert await reader.read() == b"\0frame"
        writer.close()


@pytest.mark.parametrize(
    "answer", [b"", b"OK", b"NO 1\n", b"OK " + b"1" * 40 + b"\n", b"OK " + b"1" * 200_000]
)
async def test_anything_else_is_no_connection(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "agent.sock"
    async with monitor(path, answering(answer)):
        with pytest.raises(GuestGone):
            await connect_vsock(path, AGENT_PORT, timeout_s=30)


async def test_silence_ends(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with monitor(path, answering(b"", hang=True)):
        with pytest.raises(GuestSilent):
            await connect_vsock(path, AGENT_PORT, timeout_s=0.05)


async def test_no_socket_is_no_guest(tmp_path: Path) -> None:
    with pytest.raises(GuestGone):
        await connect_vsock(tmp_path / "agent.sock", AGENT_PORT, timeout_s=30)


async def test_a_link_to_somebody_elses_socket_is_not_followed(tmp_path: Path) -> None:
    """A monitor that was taken over owns the directory of its sockets."""
    async with monitor(tmp_path / "secret.sock", answering(b"OK 1\n")):
        os.symlink(tmp_path / "secret.sock", tmp_path / "agent.sock")
        with pytest.raises(GuestGone):
            await connect_vsock(tmp_path / "agent.sock", AGENT_PORT, timeout_s=30)
    (tmp_path / "agent.sock").unlink()
    (tmp_path / "agent.sock").write_text("not a socket")
    with pytest.raises(GuestGone):
        await connect_vsock(tmp_path / "agent.sock", AGENT_PORT, timeout_s=30)


async def test_the_guests_call_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / "agent.sock"
    path.parent.mkdir()
    call = GuestCall(path, AGENT_PORT)
    waiting = asyncio.create_task(call.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    directory = os.open(path.parent, os.O_PATH)
    _, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/agent.sock_1024")
    async with asyncio.timeout(30):
        await waiting
    writer.close()
    os.close(directory)
    call.close()
    assert list(path.parent.iterdir()) == []
