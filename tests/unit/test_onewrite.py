"""What is written in one round of the event loop leaves in one write, whole and in order."""

import asyncio
from typing import Any

from hutch.api.gateway.onewrite import MAX_GATHERED_BYTES, GatheringTransport


class _Below(asyncio.Transport):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: Any) -> None:
        if self.closed:
            raise RuntimeError("unable to perform operation on a closed transport")
        self.told.append(bytes(data))

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")

    def get_write_buffer_size(self) -> int:
        return 0


async def _round() -> None:
    await asyncio.sleep(0)


def _made() -> tuple[_Below, GatheringTransport]:
    below = _Below()
    return below, GatheringTransport(below, asyncio.get_running_loop())


async def test_what_is_written_in_one_round_is_one_write() -> None:
    below, transport = _made()
    transport.write(b"head ")
    transport.writelines([b"body", b""])
    assert below.told == [] and transport.get_write_buffer_size() == 9
    await _round()
    assert below.told == [b"head body"] and transport.get_write_buffer_size() == 0
    transport.write(b"next")
    await _round()
    assert below.told == [b"head body", b"next"]


async def test_a_buffer_that_is_used_again_is_sent_as_it_was() -> None:
    below, transport = _made()
    buffer = bytearray(b"one")
    transport.write(buffer)
    buffer[:] = b"two"
    await _round()
    assert below.told == [b"one"]


async def test_what_was_written_goes_before_the_end() -> None:
    below, transport = _made()
    transport.write(b"last words")
    transport.close()
    assert below.told == [b"last words", "close"]
    await _round()
    assert below.told == [b"last words", "close"]


async def test_an_abort_sends_nothing_more() -> None:
    below, transport = _made()
    transport.write(b"lost")
    transport.abort()
    await _round()
    assert below.told == ["abort"]


async def test_no_more_is_gathered_than_the_bound() -> None:
    """Whoever never lets the loop go on must feel the transport below."""
    below, transport = _made()
    part = b"x" * 1000
    for _ in range(200):
        transport.write(part)
        assert transport.get_write_buffer_size() <= MAX_GATHERED_BYTES + len(part)
    assert sum(map(len, below.told)) + transport.get_write_buffer_size() == 200 * len(part)
    await _round()
    assert b"".join(below.told) == part * 200


async def test_what_a_client_that_went_away_was_to_get_is_dropped() -> None:
    """The transport below closed by itself between the write and the end of the round."""
    below, transport = _made()
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    transport.write(b"too late")
    below.closed = True
    await _round()
    transport.write(b"later still")
    transport.close()
    await _round()
    assert problems == [] and below.told == ["close"]
