"""The fluentd sink: the forward protocol, version 1, of fluentd and fluent-bit (Forward mode, MessagePack)."""

import base64
from collections.abc import Mapping

import msgspec

from hutch.host.logs.contract import Connection, Dial, LogEntry
from hutch.host.logs.retrying import DELIVER_LIMIT_S, LONGEST_DELAY_S, RetryingSink

EVENT_TIME = 0
"""The extension type of a time with nanoseconds."""
MAX_ANSWER_BYTES = 4096


class ForwardSink(RetryingSink):
    """One container's records, under one tag. With `acks` a batch is done with once the server has answered for it;
    without, once it has left this host."""

    def __init__(
        self,
        dial: Dial,
        *,
        target: str,
        tag: str,
        fields: Mapping[str, str],
        acks: bool = False,
        sub_second: bool = True,
        longest_delay_s: float = LONGEST_DELAY_S,
        limit_s: float = DELIVER_LIMIT_S,
    ) -> None:
        """`fields` are in each record, besides `source` and `log`."""
        super().__init__(dial, target=target, seed=tag, longest_delay_s=longest_delay_s, limit_s=limit_s)
        self._tag = tag
        self._fields = dict(fields)
        self._acks = acks
        self._sub_second = sub_second
        self._sent = 0

    async def _deliver(self, connection: Connection, entries: tuple[LogEntry, ...]) -> str:
        option: dict[str, object] = {"size": len(entries)}
        chunk = ""
        if self._acks:
            self._sent += 1
            chunk = base64.b64encode(f"{self._tag}/{self._sent}".encode()).decode()
            option["chunk"] = chunk
        records = [[self._time(e.time_ns), self._record(e)] for e in entries]
        await connection.write(msgspec.msgpack.encode([self._tag, records, option]))
        if self._acks:
            await self._wait_for_ack(connection, chunk)
        return ""

    def _time(self, time_ns: int) -> object:
        seconds, nanoseconds = divmod(time_ns, 10**9)
        if not self._sub_second:
            return seconds
        raw = (seconds & 0xFFFFFFFF).to_bytes(4, "big") + nanoseconds.to_bytes(4, "big")
        return msgspec.msgpack.Ext(EVENT_TIME, raw)

    def _record(self, entry: LogEntry) -> dict[str, str]:
        return {**self._fields, "source": entry.stream, "log": entry.text}

    async def _wait_for_ack(self, connection: Connection, chunk: str) -> None:
        answer = b""
        while len(answer) < MAX_ANSWER_BYTES:
            data = await connection.read(MAX_ANSWER_BYTES)
            if not data:
                raise ConnectionResetError("it hung up before it acknowledged what it was sent")
            answer += data
            try:
                document = msgspec.msgpack.decode(answer)
            except (msgspec.DecodeError, ValueError):
                continue
            if isinstance(document, dict) and document.get("ack") == chunk:
                return
            break
        raise ConnectionResetError("its acknowledgement is not of what it was sent")
