"""A client of session data channels, written from the protocol's description and not from hutch's code: what
session-manager-plugin sends and expects, byte by byte."""

import hashlib
import json
import struct
import time
import uuid
from contextlib import ExitStack
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

OUTPUT, SIZE, HANDSHAKE_REQUEST, HANDSHAKE_RESPONSE, HANDSHAKE_COMPLETE, FLAG = 1, 3, 5, 6, 7, 10


def pack(kind: str, sequence: int, payload_type: int, payload: bytes, flags: int = 0) -> tuple[bytes, str]:
    """A message and its id."""
    identity = uuid.uuid4()
    raw = identity.bytes
    head = struct.pack(">I32sI", 116, kind.encode().ljust(32), 1)
    head += struct.pack(">QqQ", int(time.time() * 1000), sequence, flags)
    head += raw[8:] + raw[:8] + hashlib.sha256(payload).digest()
    head += struct.pack(">II", payload_type, len(payload))
    assert len(head) == 120
    return head + payload, str(identity)


def unpack(data: bytes) -> dict[str, Any]:
    assert int.from_bytes(data[0:4], "big") == 116
    payload = data[120:]
    assert int.from_bytes(data[116:120], "big") == len(payload)
    assert hashlib.sha256(payload).digest() == data[80:112], "the payload is not what its digest says"
    assert int.from_bytes(data[40:48], "big") > 0, "CreatedDate is missing"
    return {
        "type": data[4:36].decode().rstrip(" "),
        "sequence": int.from_bytes(data[48:56], "big"),
        "id": str(uuid.UUID(bytes=data[72:80] + data[64:72])),
        "payload_type": int.from_bytes(data[112:116], "big"),
        "payload": payload,
    }


class SsmClient:
    """One connection to a session. `expected` and `next` go on over a resumed one."""

    def __init__(self, session: dict[str, str], *, token: str | None = None) -> None:
        self._closing = ExitStack()
        self.socket = self._closing.enter_context(connect(session["streamUrl"], compression=None, proxy=None))
        first = {
            "MessageSchemaVersion": "1.0",
            "RequestId": str(uuid.uuid4()),
            "TokenValue": token or session["tokenValue"],
            "ClientId": str(uuid.uuid4()),
            "ClientVersion": "1.2.0.0",
        }
        self.socket.send(json.dumps(first))
        self.next = 0
        self.expected = 0
        self.closed_text: str | None = None
        self.acknowledged: list[int] = []
        self.acknowledges = True

    def send(self, payload_type: int, payload: bytes) -> int:
        message, _ = pack("input_stream_data", self.next, payload_type, payload)
        self.socket.send(message)
        self.next += 1
        return self.next - 1

    def receive(self, timeout_s: float = 20) -> dict[str, Any] | None:
        """The next new message of the output stream, acknowledged; None when the channel is closed."""
        while True:
            try:
                data = self.socket.recv(timeout=timeout_s)
            except ConnectionClosed:
                return None
            assert isinstance(data, bytes)
            message = unpack(data)
            if message["type"] == "acknowledge":
                content = json.loads(message["payload"])
                assert content["AcknowledgedMessageType"] == "input_stream_data"
                self.acknowledged.append(content["AcknowledgedMessageSequenceNumber"])
                continue
            if message["type"] == "channel_closed":
                self.closed_text = json.loads(message["payload"])["Output"]
                return None
            assert message["type"] == "output_stream_data"
            if self.acknowledges:
                self._acknowledge(message)
            if message["sequence"] != self.expected:
                assert message["sequence"] < self.expected, "a message was left out"
                continue
            self.expected += 1
            return message

    def _acknowledge(self, message: dict[str, Any]) -> None:
        content = {
            "AcknowledgedMessageType": "output_stream_data",
            "AcknowledgedMessageId": message["id"],
            "AcknowledgedMessageSequenceNumber": message["sequence"],
            "IsSequentialMessage": True,
        }
        self.socket.send(pack("acknowledge", 0, 0, json.dumps(content).encode(), flags=3)[0])

    def shake_hands(self, rows: int = 24, cols: int = 80) -> None:
        """Up to the terminal's size."""
        request = self.receive()
        assert request is not None and request["payload_type"] == HANDSHAKE_REQUEST
        wanted = json.loads(request["payload"])
        assert wanted["AgentVersion"]
        actions = [
            {"ActionType": a["ActionType"], "ActionStatus": 1, "ActionResult": None, "Error": ""}
            for a in wanted["RequestedClientActions"]
        ]
        answer = {"ClientVersion": "1.2.0.0", "ProcessedClientActions": actions, "Errors": None}
        self.send(HANDSHAKE_RESPONSE, json.dumps(answer).encode())
        complete = self.receive()
        assert complete is not None and complete["payload_type"] == HANDSHAKE_COMPLETE
        self.resize(rows, cols)

    def resize(self, rows: int, cols: int) -> None:
        self.send(SIZE, json.dumps({"cols": cols, "rows": rows}).encode())

    def type(self, data: bytes) -> None:
        self.send(OUTPUT, data)

    def terminate(self) -> None:
        self.send(FLAG, (2).to_bytes(4, "big"))

    def read_until(self, text: bytes) -> bytes:
        seen = b""
        while text not in seen:
            message = self.receive()
            assert message is not None, f"the channel closed: {self.closed_text!r} after {seen!r}"
            assert message["payload_type"] == OUTPUT
            seen += message["payload"]
        return seen

    def read_to_end(self) -> bytes:
        seen = b""
        while (message := self.receive()) is not None:
            seen += message["payload"]
        return seen

    def close(self) -> None:
        self._closing.close()
