"""The guest protocol's frames: what is sent arrives; what is broken is dropped, counted, and costs nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from hutch.wire.guest import (
    CONTROL,
    LOG,
    MAX_FRAME_BYTES,
    Frame,
    FrameDecoder,
    cobs_decode,
    cobs_encode,
    encode_frame,
    parse_log,
)
from hutch.wire.guest_documents import Answer, ContainerExitedEvent, parse_document

frames = st.builds(
    Frame,
    kind=st.sampled_from([CONTROL, LOG]),
    channel=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=2000),
)


@given(st.binary(max_size=3000))
def test_cobs_has_no_zero_and_comes_back(data: bytes) -> None:
    encoded = cobs_encode(data)
    assert 0 not in encoded
    assert cobs_decode(encoded) == data


@given(st.lists(frames, max_size=5), st.integers(1, 50))
def test_frames_arrive_whole_however_they_are_cut(sent: list[Frame], step: int) -> None:
    wire = b"".join(encode_frame(f.kind, f.channel, f.payload) for f in sent)
    decoder = FrameDecoder()
    got = [f for at in range(0, len(wire), step) for f in decoder.feed(wire[at : at + step])]
    assert got == sent
    assert decoder.dropped == 0


@given(st.binary(max_size=500), frames)
def test_junk_before_a_zero_costs_at_most_itself(junk: bytes, frame: Frame) -> None:
    decoder = FrameDecoder()
    got = decoder.feed(junk + b"\0" + encode_frame(frame.kind, frame.channel, frame.payload))
    assert got[-1] == frame


@given(frames, st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_gives_another_frame(frame: Frame, at: int, flip: int) -> None:
    wire = bytearray(encode_frame(frame.kind, frame.channel, frame.payload))
    wire[at % len(wire)] ^= flip
    assert all(f == frame for f in FrameDecoder().feed(bytes(wire) + b"\0"))


def test_an_endless_frame_does_not_grow_memory() -> None:
    decoder = FrameDecoder()
    for _ in range(100):
        assert decoder.feed(b"x" * 65536) == []
        assert len(decoder._buffer) <= MAX_FRAME_BYTES + 1000
    whole = encode_frame(CONTROL, 0, b"{}")
    assert decoder.feed(b"\0" + whole) == [Frame(kind=CONTROL, channel=0, payload=b"{}")]
    assert decoder.dropped == 1


@given(st.binary(max_size=200))
def test_no_document_is_too_broken_to_be_told_so(payload: bytes) -> None:
    parse_document(payload)
    parse_log(payload)


def test_documents_are_one_thing_or_nothing() -> None:
    assert isinstance(parse_document(b'{"id":1,"ok":{}}'), Answer)
    assert isinstance(parse_document(b'{"id":1,"error":{"kind":"X"}}'), Answer)
    assert parse_document(b'{"id":1}') is None
    assert parse_document(b'{"id":1,"ok":{},"error":{"kind":"X"}}') is None
    event = b'{"event":"container_exited","seq":1,"name":"a","number":2,"exit_code":%d}'
    assert isinstance(parse_document(event % 3), ContainerExitedEvent)
    assert parse_document(event % 256) is None
    assert parse_document(b"[" * 60000) is None
