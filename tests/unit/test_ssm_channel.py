"""The session protocol: golden bytes, round trips, and a channel over a line that loses, repeats and reorders."""

import contextlib
import random
import uuid

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.ssm_client import pack, unpack

from hutch.base.errors import Invalid
from hutch.model.exec import Input, Resize
from hutch.rules.ssm.channel import (
    MAX_EARLY,
    MAX_UNACKNOWLEDGED,
    RESEND_AFTER_S,
    DataChannel,
    HandshakeDone,
    Terminate,
)
from hutch.rules.ssm.message import ClientMessage, decode_acknowledgement, decode_message, encode_message

ID = "00112233-4455-6677-8899-aabbccddeeff"
SHAKEN = b'{"ClientVersion":"1.2","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1}],"Errors":null}'


def _new_id() -> str:
    return str(uuid.uuid4())


def test_golden_bytes() -> None:
    message = ClientMessage(
        message_type="input_stream_data",
        message_id=ID,
        created_ms=1_600_000_000_000,
        sequence=5,
        flags=3,
        payload_type=1,
        payload=b"ls\n",
    )
    data = encode_message(message)
    assert data[4:36] == b"input_stream_data" + b" " * 15
    assert data[36:40] == bytes.fromhex("00000001")
    assert data[40:48] == (1_600_000_000_000).to_bytes(8, "big")
    assert data[48:56] == bytes.fromhex("0000000000000005")
    assert data[56:64] == bytes.fromhex("0000000000000003")
    assert data[64:80] == bytes.fromhex("8899aabbccddeeff0011223344556677")
    assert data[80:112].hex() == ("e9fe7e88e89d532379960402db8f9458194dae772aa5fda5a12806c22215f0ff")
    assert data[112:120] == bytes.fromhex("0000000100000003")
    assert data[120:] == b"ls\n"


_messages = st.builds(
    ClientMessage,
    message_type=st.sampled_from(
        ("input_stream_data", "output_stream_data", "acknowledge", "channel_closed")
    ),
    message_id=st.uuids().map(str),
    created_ms=st.integers(0, 2**63),
    sequence=st.integers(0, 2**62),
    flags=st.integers(0, 3),
    payload_type=st.integers(0, 12),
    payload=st.binary(max_size=2000),
)


@given(_messages)
def test_messages_come_back_and_say_the_same_to_another_reader(message: ClientMessage) -> None:
    data = encode_message(message)
    assert decode_message(data) == message
    if message.created_ms:
        other = unpack(data)
        assert (other["id"], other["sequence"], other["payload"]) == (
            message.message_id,
            message.sequence,
            message.payload,
        )


@given(_messages, st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_message_is_refused_or_another(message: ClientMessage, at: int, flip: int) -> None:
    data = bytearray(encode_message(message))
    data[at % len(data)] ^= flip
    place = at % len(data)
    with contextlib.suppress(Invalid):
        # The schema version is not looked at.
        assert decode_message(bytes(data)) != message or 36 <= place < 40


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        decode_message(data)


def _ready() -> DataChannel:
    channel = DataChannel(_new_id)
    channel.greet(0, 1)
    events = channel.receive(pack("input_stream_data", 0, 6, SHAKEN)[0], 0, 1)
    assert events == [HandshakeDone()] and channel.is_ready
    channel.outbox.clear()
    return channel


def test_what_messages_mean() -> None:
    channel = _ready()
    given = [(3, b'{"cols":90,"rows":20}'), (1, b"typed"), (10, (2).to_bytes(4, "big")), (1, b"")]
    events = []
    for number, (kind, payload) in enumerate(given, start=1):
        events += channel.receive(pack("input_stream_data", number, kind, payload)[0], 0, 1)
    assert events == [Resize(20, 90), Input(b"typed"), Terminate()]
    assert channel.receive(pack("start_publication", 0, 0, b"")[0], 0, 1) == []


def test_a_client_that_can_not_take_part_is_refused() -> None:
    channel = DataChannel(_new_id)
    channel.greet(0, 1)
    refusal = b'{"ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":3,"Error":"no"}]}'
    with pytest.raises(Invalid, match="SessionType no"):
        channel.receive(pack("input_stream_data", 0, 6, refusal)[0], 0, 1)


def test_bounds() -> None:
    """Neither a client that acknowledges nothing nor one that begins far ahead makes it keep more than it may."""
    channel = _ready()
    while channel.has_room:
        channel.send_output(b"x", 0, 1)
    assert len(channel.again(0)) == MAX_UNACKNOWLEDGED
    channel.outbox.clear()
    for number in range(2, 2000):
        assert channel.receive(pack("input_stream_data", number, 1, b"x")[0], 0, 1) == []
    assert len(channel.outbox) == MAX_EARLY
    assert len(channel.receive(pack("input_stream_data", 1, 1, b"x")[0], 0, 1)) == MAX_EARLY + 1


def test_input_that_is_not_taken_is_not_acknowledged() -> None:
    channel = _ready()
    message = pack("input_stream_data", 1, 1, b"later")[0]
    assert channel.receive(message, 0, 1, takes_input=False) == [] and channel.outbox == []
    assert channel.receive(message, 0, 1) == [Input(b"later")]


def test_the_oldest_is_sent_again_when_it_is_time() -> None:
    channel = _ready()
    channel.receive(_acknowledge(0), 0, 1)
    channel.receive(_acknowledge(1), 0, 1)
    assert channel.resend_at() is None and channel.all_acknowledged
    channel.send_output(b"one", 10, 1)
    channel.send_output(b"two", 11, 1)
    assert channel.overdue(10.4) is None
    again = channel.overdue(10 + RESEND_AFTER_S)
    assert again is not None and decode_message(again).payload == b"one"
    assert channel.overdue(10.6) is None


def _acknowledge(sequence: int) -> bytes:
    content = {
        "AcknowledgedMessageType": "output_stream_data",
        "AcknowledgedMessageId": ID,
        "AcknowledgedMessageSequenceNumber": sequence,
        "IsSequentialMessage": True,
    }
    return pack("acknowledge", 0, 0, msgspec.json.encode(content))[0]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.lists(st.binary(min_size=1, max_size=40), max_size=25))
def test_everything_arrives_once_and_in_order_over_a_bad_line(seed: int, pieces: list[bytes]) -> None:
    """The client's input, and the output, over a line that loses a third, repeats and reorders."""
    line = random.Random(seed)
    channel = _ready()
    channel.receive(_acknowledge(0), 0, 1)
    channel.receive(_acknowledge(1), 0, 1)
    to_send = {n: pack("input_stream_data", n, 1, p)[0] for n, p in enumerate(pieces, start=1)}
    for piece in pieces:
        channel.send_output(piece, 0, 1)
    came, shown, expected, now = [], {}, 2, 0.0
    for _ in range(400):
        now += RESEND_AFTER_S
        batch = [m for m in to_send.values() for _ in range(line.choice((0, 1, 2)))]
        line.shuffle(batch)
        for message in batch:
            came += channel.receive(message, now, 1, takes_input=line.random() < 0.8)
        if (again := channel.overdue(now)) is not None:
            channel.outbox.append(again)
        outbox, channel.outbox = channel.outbox, []
        for data in outbox:
            message = decode_message(data)
            if line.random() < 0.3:
                continue
            if message.message_type == "acknowledge":
                to_send.pop(decode_acknowledgement(message.payload).sequence, None)
            else:
                shown[message.sequence] = message.payload
                channel.receive(_acknowledge(message.sequence), now, 1)
        if not to_send and channel.all_acknowledged:
            break
    assert [e.data for e in came if isinstance(e, Input)] == pieces
    assert [shown[n] for n in sorted(shown)] == pieces and min(shown, default=expected) == expected
