"""A guest that means harm, on the streams of an exec'ed process."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host.guestlink.logs import SandboxLogs
from hutch.host.guestlink.session import GuestSession
from hutch.host.guestlink.streams import StreamBroken
from hutch.host.guestlink.unix import listen_unix
from hutch.wire.guest import (
    CONTROL,
    STREAM_CREDIT,
    STREAM_DATA,
    STREAM_WINDOW_BYTES,
    FrameDecoder,
    encode_frame,
)
from hutch.wire.guest_documents import StateAnswer

LIMIT_S = 60


class Guest:
    """The evil end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._listener = listen_unix(directory / "agent.sock")
        self._decoder = FrameDecoder()

    async def meet(self) -> GuestSession:
        async def on_exit(_: object) -> None:
            raise AssertionError("nothing has exited")

        logs = SandboxLogs(self._directory / "logs")
        path = self._directory / "agent.sock"
        session = await GuestSession.connect(path, logs=logs, on_exit=on_exit, first_id=1)
        self._connection: socket.socket = self._listener.accept()[0]
        return session

    def say(self, kind: int, channel: int, payload: bytes) -> None:
        self._connection.sendall(encode_frame(kind, channel, payload))

    def answer(self, request: int, **ok: object) -> None:
        self.say(CONTROL, 0, json.dumps({"id": request, "ok": ok}).encode())

    async def hears(self, operation: str) -> dict[str, object]:
        """The next request of that name."""
        self._connection.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(LIMIT_S):
            while True:
                for frame in self._decoder.feed(await loop.sock_recv(self._connection, 65536)):
                    document = json.loads(frame.payload) if frame.kind == CONTROL else {}
                    if document.get("op") == operation:
                        return dict(document)

    def close(self) -> None:
        self._connection.close()
        self._listener.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("kind", "payloads"),
    [
        (STREAM_DATA, [b"\x01" + b"x" * 30_000] * (STREAM_WINDOW_BYTES // 30_000 + 1)),
        (STREAM_DATA, [b"\x07data"]),
        (STREAM_DATA, [b"\x01"]),
        (STREAM_DATA, [b""]),
        (STREAM_CREDIT, [b"\xff" * 8]),
    ],
    ids=["beyond its credit", "no such stream", "no data", "nothing", "not a number"],
)
async def test_a_breach_costs_the_stream_and_nothing_else(
    guest: Guest, kind: int, payloads: list[bytes]
) -> None:
    session = await guest.meet()
    bad, good = session.open_stream(name="a"), session.open_stream(name="a")
    for payload in payloads:
        guest.say(kind, bad.number, payload)
    closed = await guest.hears("exec_close")
    assert closed["stream"] == bad.number
    with pytest.raises(StreamBroken):
        await bad.answer
    guest.say(STREAM_DATA, good.number, b"\x01fine")
    assert await anext(good.output()) == (1, b"fine")
    assert session.malformed_frames == 1
    await session.close()


async def test_credit_beyond_the_window_is_worth_no_more_than_it(guest: Guest) -> None:
    """A guest that gives all credit there is and reads nothing: no more than a window is kept for it."""
    session = await guest.meet()
    stream = session.open_stream(name="a")
    for _ in range(100):
        guest.say(STREAM_CREDIT, stream.number, b"\xff\xff\xff\xff")
    asking = asyncio.create_task(session.request("state", StateAnswer, timeout_s=LIMIT_S))
    request = await guest.hears("state")
    assert isinstance(request["id"], int)
    guest.answer(request["id"], containers=[])
    await asking
    writing = asyncio.create_task(stream.write(b"x" * (4 * STREAM_WINDOW_BYTES)))
    await asyncio.sleep(0)
    assert not writing.done()
    writing.cancel()
    await session.close()


async def test_frames_for_nobody_are_nothing(guest: Guest) -> None:
    session = await guest.meet()
    for channel in (0, 1, 2**32 - 1):
        guest.say(STREAM_DATA, channel, b"\x01data")
        guest.say(STREAM_CREDIT, channel, b"\0\0\0\1")
    asking = asyncio.create_task(session.request("state", StateAnswer, timeout_s=LIMIT_S))
    request = await guest.hears("state")
    assert isinstance(request["id"], int)
    guest.answer(request["id"], containers=[])
    await asking
    assert session.malformed_frames == 0
    await session.close()
