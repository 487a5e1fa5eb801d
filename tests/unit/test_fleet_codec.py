"""Fleet messages on a byte stream: what goes in comes out, and a hostile peer is bounded."""

import asyncio

import msgspec
import pytest

from hutch.base.errors import Invalid
from hutch.wire import fleet as wire
from hutch.wire.codec import MessageWriter, read_message, write_message
from hutch.wire.facts import LogEvent, TaskFacts


class _Writer:
    """As much of a stream writer as `write_message` uses."""

    def __init__(self) -> None:
        self.data = b""
        self.writes = 0
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.data += data
        self.writes += 1


def _written(*messages: wire.FromHost | wire.ToHost) -> bytes:
    writer = _Writer()
    for message in messages:
        write_message(writer, message)  # type: ignore[arg-type]
    return writer.data


def _reader(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_messages_come_out_as_they_went_in() -> None:
    sent: list[wire.FromHost] = [
        wire.Report(seq=7, facts=TaskFacts(task_id="t", status="RUNNING", started_at=1.5)),
        wire.LogBatch(
            batch=1,
            task_id="t",
            container="c",
            group="g",
            stream="s",
            events=(LogEvent(timestamp_ms=1, message="x\u00e9"),),
        ),
        wire.Reply(request_id="r", result={"lines": [{"text": "a"}]}),
    ]
    reader = _reader(_written(*sent))
    assert [await read_message(reader, wire.FromHost) for _ in sent] == sent
    with pytest.raises(asyncio.IncompleteReadError):
        await read_message(reader, wire.FromHost)


async def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        await read_message(_reader(_written(wire.Ack(seq=1))), wire.FromHost)


async def test_a_length_beyond_the_bound_is_refused_before_its_body_is_read() -> None:
    with pytest.raises(Invalid, match="longer than"):
        await read_message(_reader(b"\xff\xff\xff\xff"), wire.ToHost)


def test_a_message_that_is_too_long_is_not_sent() -> None:
    reply = wire.Reply(request_id="r", error="x" * (wire.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(Invalid, match="longer than"):
        _written(reply)


async def test_messages_of_one_round_of_the_loop_are_one_write() -> None:
    below = _Writer()
    messages = MessageWriter(below)  # type: ignore[arg-type]
    for seq in range(5):
        messages.send(wire.Ack(seq=seq))
    assert below.data == b""
    await asyncio.sleep(0)
    assert below.writes == 1 and below.data == _written(*(wire.Ack(seq=seq) for seq in range(5)))
    messages.send(wire.Ack(seq=5))
    messages.flush()
    assert below.writes == 2
    await asyncio.sleep(0)
    assert below.writes == 2


async def test_nothing_is_written_to_a_connection_that_closes() -> None:
    below = _Writer()
    messages = MessageWriter(below)  # type: ignore[arg-type]
    messages.send(wire.Ack(seq=1))
    below.closing = True
    messages.send(wire.Ack(seq=2))
    await asyncio.sleep(0)
    assert below.data == b""
