"""A guest that means harm, at the other end of a real socket: it floods, lies, says nothing, or does not read."""

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host.guestlink.logs import SandboxLogs
from hutch.host.guestlink.session import GuestGone, GuestSession, GuestSilent
from hutch.host.guestlink.unix import listen_unix
from hutch.rules.logdrivers.files import FileBounds
from hutch.wire.guest import LOG, encode_frame
from hutch.wire.guest_documents import StateAnswer

FLOOD_BYTES = 6 << 20
LOG_BYTES = 1 << 20


class Guest:
    """The evil end. `say` runs in a thread until the host has hung up."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "agent.sock"
        self._listener = listen_unix(self.path)
        self.logs = SandboxLogs(directory / "logs", bounds={"one": FileBounds(max_bytes=LOG_BYTES)})
        self.said = 0

    async def session(self) -> tuple[GuestSession, socket.socket]:
        async def on_exit(_: object) -> None:
            raise AssertionError("nothing has exited")

        session = await GuestSession.connect(self.path, logs=self.logs, on_exit=on_exit, first_id=1)
        return session, self._listener.accept()[0]

    def say(self, connection: socket.socket, data: bytes, total: int) -> threading.Thread:
        def run() -> None:
            with contextlib.suppress(OSError):
                while self.said < total:
                    connection.sendall(data)
                    self.said += len(data)
                connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path)
    yield made
    made.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def log_frame(number: int, seq: int, size: int) -> bytes:
    return encode_frame(LOG, number, struct.pack(">QQB", seq, 1, 1) + b"y\n" * (size // 2))


FLOODS = {
    "zero bytes": b"\0" * 65536,
    "a frame without an end": b"x" * 65536,
    "frames with wrong checksums": (b"\x05abcd\0" * 10000)[:65536],
    "records of a container that is not there": log_frame(77, 1, 30000) * 2,
    "the same record again and again": log_frame(1, 1, 30000) * 2,
    "documents that are none": encode_frame(1, 0, b'{"id":' + b"9" * 30000 + b"}") * 2,
    "answers to nobody": encode_frame(1, 0, b'{"id":5,"ok":{}}') * 2000,
    "deep documents": encode_frame(1, 0, b'{"id":1,"ok":' + b"[" * 30000 + b"]" * 30000 + b"}"),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_is_slowed_and_never_stored(guest: Guest, kind: str) -> None:
    """Memory stays as it was, and everybody else's turn comes, while the guest sends as fast as it can."""
    guest.logs.register(1, "one")
    session, connection = await guest.session()
    before = resident_bytes()
    thread = guest.say(connection, FLOODS[kind], FLOOD_BYTES)
    longest, turns, last = 0.0, 0, time.thread_time()
    while not session.closed.is_set():
        await asyncio.sleep(0)
        now = time.thread_time()  # on a busy machine a turn may be long without work
        longest, turns, last = max(longest, now - last), turns + 1, now
    await session.close()
    connection.close()
    thread.join()
    assert guest.said >= FLOOD_BYTES
    assert resident_bytes() - before < 8 << 20
    assert longest < 0.5, "one read of 64 KiB at a time"
    assert turns > FLOOD_BYTES // 65536 // 4
    await guest.logs.close()
    logs = sum(p.stat().st_size for p in (guest.path.parent / "logs").iterdir())
    assert logs <= 2 * LOG_BYTES + 65536


async def test_a_guest_that_does_not_read_is_told_no_more(guest: Guest) -> None:
    session, connection = await guest.session()
    with pytest.raises(GuestSilent, match="does not read"):
        for _ in range(10_000):
            session._ask("state", {"padding": "x" * 10_000})
    assert session._unsent() < 400_000
    async with asyncio.timeout(30):
        await session.close()  # which does not wait for the guest to read
    connection.close()


async def test_who_waits_for_an_answer_hears_of_the_end(guest: Guest) -> None:
    session, connection = await guest.session()
    waiting = asyncio.create_task(session.request("state", StateAnswer, timeout_s=30))
    await asyncio.to_thread(connection.recv, 1000)
    connection.sendall(b"\x01garbage")
    connection.close()
    with pytest.raises(GuestGone):
        await waiting
    await session.close()
