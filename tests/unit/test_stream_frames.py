"""Frames of a process's streams: every frame comes back as it was, and nothing else gets through."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.model.exec import (
    MAX_CHUNK_BYTES,
    MAX_TERMINAL_SIZE,
    Exited,
    Failed,
    FromProcess,
    Input,
    Output,
    Resize,
    Signal,
    ToProcess,
)
from hutch.wire.streams import decode_from_process, decode_to_process, encode_frame

_chunks = st.binary(max_size=200) | st.just(b"x" * MAX_CHUNK_BYTES)
_sizes = st.integers(1, MAX_TERMINAL_SIZE)
_to = st.one_of(
    st.builds(Input, _chunks),
    st.builds(Resize, _sizes, _sizes),
    st.builds(Signal, st.integers(1, 64)),
)
_from = st.one_of(
    st.builds(Output, st.sampled_from((1, 2)), _chunks),
    st.builds(Exited, st.integers(0, 255)),
    st.builds(Failed, st.text(max_size=40), st.text(max_size=200)),
)


@given(_to)
def test_frames_to_a_process_come_back(frame: ToProcess) -> None:
    assert decode_to_process(encode_frame(frame)) == frame


@given(_from)
def test_frames_from_a_process_come_back(frame: FromProcess) -> None:
    assert decode_from_process(encode_frame(frame)) == frame


@given(st.binary(max_size=64))
def test_noise_is_a_frame_or_refused(data: bytes) -> None:
    for decode in (decode_to_process, decode_from_process):
        with contextlib.suppress(Invalid):
            decode(data)


@pytest.mark.parametrize("data", [b"", b"\x03\0\0\0\x50", b"\x04\0", b"\x00" + b"x" * (MAX_CHUNK_BYTES + 1)])
def test_what_is_out_of_bounds_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        decode_to_process(data)
