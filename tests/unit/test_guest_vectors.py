"""Golden frames: what the guest agent's own tests are held to as well (`guest/proto/tests/vectors.rs`)."""

import json
from typing import Any

import pytest
from tests.conftest import REPO

from hutch.wire.guest import Frame, FrameDecoder, encode_frame

VECTORS = json.loads((REPO / "guest/proto/vectors.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda v: v["name"])
def test_frames_are_written_and_read_as_the_vectors_say(vector: dict[str, Any]) -> None:
    payload, wire = bytes.fromhex(vector["payload"]), bytes.fromhex(vector["wire"])
    assert encode_frame(vector["kind"], vector["channel"], payload) == wire
    decoder = FrameDecoder()
    assert decoder.feed(wire) == [Frame(kind=vector["kind"], channel=vector["channel"], payload=payload)]
    assert decoder.dropped == 0


@pytest.mark.parametrize("vector", VECTORS["rejected"], ids=lambda v: v["name"])
def test_what_the_vectors_reject_is_dropped_and_counted(vector: dict[str, Any]) -> None:
    decoder = FrameDecoder()
    assert decoder.feed(bytes.fromhex(vector["wire"])) == []
    assert decoder.dropped == 1
