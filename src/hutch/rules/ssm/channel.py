"""The agent's end of a session's data channel: order, acknowledgements, sending again. Pure: no I/O, no clock.

The client may be given what it can't take yet (it then does not acknowledge, and wants it again), and may be gone for a
while. So what was sent is kept until it is acknowledged; there is a bound, beyond which `has_room` is false. Input works
the same way round: what can't be taken now is not acknowledged, and the client sends it again.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.model.exec import MAX_TERMINAL_SIZE, Input, Resize
from hutch.rules.ssm.message import (
    ACKNOWLEDGE,
    FLAG_TERMINATE_SESSION,
    INPUT,
    OUTPUT,
    PAYLOAD_FLAG,
    PAYLOAD_HANDSHAKE_COMPLETE,
    PAYLOAD_HANDSHAKE_REQUEST,
    PAYLOAD_HANDSHAKE_RESPONSE,
    PAYLOAD_OUTPUT,
    PAYLOAD_SIZE,
    ClientMessage,
    acknowledgement,
    decode_acknowledgement,
    decode_message,
    encode_message,
)

AGENT_VERSION = "3.3.0.0"
"""What clients are told: it makes them use all of the protocol that is spoken here."""
CHUNK_BYTES = 4 * 1024
MAX_UNACKNOWLEDGED = 64
MAX_EARLY = 256
RESEND_AFTER_S = 0.5
SESSION_TYPE = "InteractiveCommands"


class HandshakeDone(msgspec.Struct, frozen=True):
    """The client can take output."""


class Terminate(msgspec.Struct, frozen=True):
    """The client wants the session to end."""


Event = Input | Resize | HandshakeDone | Terminate


class _Sent(msgspec.Struct):
    data: bytes
    at: float


class _Size(msgspec.Struct, frozen=True):
    cols: int
    rows: int


class _Processed(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="ActionType", default="")
    status: int = msgspec.field(name="ActionStatus", default=0)
    error: str = msgspec.field(name="Error", default="")


class _Response(msgspec.Struct, frozen=True):
    actions: tuple[_Processed, ...] | None = msgspec.field(name="ProcessedClientActions", default=())


class DataChannel:
    """One session's. Times: `now` in seconds of any steady clock, `now_ms` milliseconds since the epoch."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self.outbox: list[bytes] = []
        """Messages to be sent, in order; whoever sends them empties it."""
        self.is_ready = False
        self._new_id = new_id
        self._expected = 0
        self._early: dict[int, ClientMessage] = {}
        self._next = 0
        self._unacknowledged: OrderedDict[int, _Sent] = OrderedDict()

    @property
    def has_room(self) -> bool:
        """Whether more output may be sent."""
        return len(self._unacknowledged) < MAX_UNACKNOWLEDGED

    @property
    def all_acknowledged(self) -> bool:
        return not self._unacknowledged

    def greet(self, now: float, now_ms: int) -> None:
        """The first message: asks the client to shake hands."""
        action = {
            "ActionType": "SessionType",
            "ActionParameters": {"SessionType": SESSION_TYPE, "Properties": {}},
        }
        request = {"AgentVersion": AGENT_VERSION, "RequestedClientActions": [action]}
        self._say(PAYLOAD_HANDSHAKE_REQUEST, msgspec.json.encode(request), now, now_ms)

    def send_output(self, data: bytes, now: float, now_ms: int) -> None:
        """Send what the process wrote, in at most as many pieces as it takes."""
        for start in range(0, len(data), CHUNK_BYTES):
            self._say(PAYLOAD_OUTPUT, data[start : start + CHUNK_BYTES], now, now_ms)

    def _say(self, payload_type: int, payload: bytes, now: float, now_ms: int) -> None:
        data = encode_message(
            ClientMessage(
                message_type=OUTPUT,
                message_id=self._new_id(),
                created_ms=now_ms,
                sequence=self._next,
                flags=1 if self._next == 0 else 0,
                payload_type=payload_type,
                payload=payload,
            )
        )
        self._unacknowledged[self._next] = _Sent(data, now)
        self._next += 1
        self.outbox.append(data)

    def receive(self, data: bytes, now: float, now_ms: int, *, takes_input: bool = True) -> list[Event]:
        """What a message from the client means. With `takes_input` false input is left to be sent again. Raises
        `Invalid` for what is no message of this protocol."""
        message = decode_message(data)
        if message.message_type == ACKNOWLEDGE:
            self._unacknowledged.pop(decode_acknowledgement(message.payload).sequence, None)
            return []
        if message.message_type != INPUT:
            return []  # start_publication and the like: of no concern here
        if message.sequence > self._expected:
            if len(self._early) < MAX_EARLY:
                self._early[message.sequence] = message
                self._acknowledge(message, now_ms)
            return []
        if message.sequence < self._expected:
            self._acknowledge(message, now_ms)  # seen before; our word of it was lost
            return []
        if not takes_input:
            return []
        self._acknowledge(message, now_ms)
        events: list[Event] = []
        current: ClientMessage | None = message
        while current is not None:
            self._expected += 1
            events += self._meaning(current, now, now_ms)
            current = self._early.pop(self._expected, None)
        return events

    def _acknowledge(self, message: ClientMessage, now_ms: int) -> None:
        self.outbox.append(acknowledgement(message, self._new_id(), now_ms))

    def _meaning(self, message: ClientMessage, now: float, now_ms: int) -> list[Event]:
        kind, payload = message.payload_type, message.payload
        if kind == PAYLOAD_HANDSHAKE_RESPONSE:
            return self._shaken(payload, now, now_ms)
        if kind == PAYLOAD_OUTPUT and payload:
            return [Input(payload)]
        if kind == PAYLOAD_SIZE:
            size: _Size = _decode(payload, _Size)
            if 0 < size.rows <= MAX_TERMINAL_SIZE and 0 < size.cols <= MAX_TERMINAL_SIZE:
                return [Resize(size.rows, size.cols)]
        if kind == PAYLOAD_FLAG and payload == FLAG_TERMINATE_SESSION.to_bytes(4, "big"):
            return [Terminate()]
        return []

    def _shaken(self, payload: bytes, now: float, now_ms: int) -> list[Event]:
        if self.is_ready:
            return []
        response: _Response = _decode(payload, _Response)
        refused = [a for a in response.actions or () if a.status != 1]
        if refused:
            raise Invalid(
                f"the client can't take part in this session: {refused[0].kind} {refused[0].error}"[:300]
            )
        self.is_ready = True
        complete = {"HandshakeTimeToComplete": 0, "CustomerMessage": ""}
        self._say(PAYLOAD_HANDSHAKE_COMPLETE, msgspec.json.encode(complete), now, now_ms)
        return [HandshakeDone()]

    def again(self, now: float) -> list[bytes]:
        """All that is not acknowledged: for a client that has come back."""
        for sent in self._unacknowledged.values():
            sent.at = now
        return [s.data for s in self._unacknowledged.values()]

    def resend_at(self) -> float | None:
        """When the oldest unacknowledged message is to be sent again."""
        for sent in self._unacknowledged.values():
            return sent.at + RESEND_AFTER_S
        return None

    def overdue(self, now: float) -> bytes | None:
        """The oldest unacknowledged message, if it is time to send it again."""
        for sent in self._unacknowledged.values():
            if sent.at + RESEND_AFTER_S <= now:
                sent.at = now
                return sent.data
            return None
        return None


def _decode(payload: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Invalid("a session message's payload is not what its type says") from None
