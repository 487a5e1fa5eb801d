"""A conversation with a guest agent: requests and answers, events, and container output into log files.

Everything that comes from the guest is hostile input: bounded by the frame decoder, checked here, never trusted with a
path or a size. Log frames are acknowledged when they are in the host's file; events when they were handed on.
"""

import asyncio
import contextlib
import secrets
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.host.criformat import CriEncoder
from hutch.host.drivers.contract import DriverError, SandboxGone
from hutch.wire.guest import CONTROL, LOG, PROTOCOL_VERSION, FrameDecoder, encode_frame, parse_log

log = get_logger(__name__)

READ_BYTES = 256 * 1024
MAX_LOG_BYTES = 64 * 1024 * 1024
"""A log file that has grown to this is rotated to `.1`; so a container keeps at most twice this on the host."""
HELLO_TIMEOUT_S = 60.0
MAX_EVENTS = 10_000


class GuestSession:
    """One connection to one guest agent. `log_directory` gets `<container>.log` files (mode 0600)."""

    def __init__(self, socket_path: Path, log_directory: Path, clock: Clock) -> None:
        self._socket_path = socket_path
        self._logs = log_directory
        self._clock = clock
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 1
        self._names: dict[int, str] = {}
        self._encoders: dict[int, CriEncoder] = {}
        self._log_seqs: dict[int, int] = {}
        self._last_event = 0
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(MAX_EVENTS)
        """Events of the guest, each once; None when the connection has ended."""
        self.dropped_frames = 0

    async def connect(self) -> dict[str, Any]:
        """Connect and say hello; the guest's answer. Raises `SandboxGone` or `DriverError`."""
        try:
            reader, self._writer = await asyncio.open_unix_connection(str(self._socket_path), limit=READ_BYTES)
        except OSError as error:
            raise SandboxGone("VmGone", f"the VM's agent channel can't be opened: {error.strerror}") from None
        self._writer.write(b"\0")
        self._reading = asyncio.create_task(self._read(reader))
        answer = await self.request(
            "hello",
            timeout_s=HELLO_TIMEOUT_S,
            version=PROTOCOL_VERSION,
            time_ns=int(self._clock.now() * 1e9),
            entropy=secrets.token_hex(64),
        )
        for item in answer.get("containers", []):
            self.register(int(item["number"]), str(item["name"]))
        return answer

    def register(self, number: int, name: str) -> None:
        """From now on log frames with this number are the container's of that name."""
        self._names[number] = name

    async def request(self, operation: str, *, timeout_s: float = 30.0, **members: Any) -> dict[str, Any]:
        """Ask the guest; its answer. Raises `DriverError` with the guest's kind, `SandboxGone` if the link ends."""
        if self._writer is None or self._writer.is_closing():
            raise SandboxGone("VmGone", "the VM's agent channel is closed")
        number, self._next_id = self._next_id, self._next_id + 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self._send({"id": number, "op": operation, **members})
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError:
            raise DriverError(
                "GuestTimeout", f"the guest agent did not answer {operation} within {timeout_s:g} s"
            ) from None
        finally:
            self._pending.pop(number, None)
        error = answer.get("error")
        if isinstance(error, dict):
            raise DriverError(str(error.get("kind", "Failed"))[:64], str(error.get("message", ""))[:1000])
        ok = answer.get("ok")
        return ok if isinstance(ok, dict) else {}

    def acknowledge_event(self, event: dict[str, Any]) -> None:
        """The event was taken care of: the guest may forget it."""
        self._send({"op": "event_ack", "seq": event.get("seq", 0)})

    async def close(self) -> None:
        """End the conversation; the guest keeps what was not acknowledged."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def _send(self, document: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode_frame(CONTROL, 0, msgspec.json.encode(document)))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        decoder = FrameDecoder()
        try:
            while data := await reader.read(READ_BYTES):
                acks: dict[int, int] = {}
                for frame in decoder.feed(data):
                    if frame.kind == CONTROL:
                        await self._take_control(frame.payload)
                    elif frame.kind == LOG:
                        self._take_log(frame.channel, frame.payload, acks)
                self.dropped_frames = decoder.dropped
                for number, seq in acks.items():
                    self._send({"op": "log_ack", "number": number, "seq": seq})
        except OSError as error:
            log.info("guest channel ended", socket=str(self._socket_path), reason=str(error))
        finally:
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(SandboxGone("VmGone", "the VM ended while it was asked something"))
            with contextlib.suppress(asyncio.QueueFull):
                self.events.put_nowait(None)

    async def _take_control(self, payload: bytes) -> None:
        try:
            document = msgspec.json.decode(payload, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            return
        if "event" in document:
            seq = document.get("seq", 0)
            if isinstance(seq, int) and seq > self._last_event:
                self._last_event = seq
                await self.events.put(document)
            return
        number = document.get("id")
        future = self._pending.get(number) if isinstance(number, int) else None
        if future is not None and not future.done():
            future.set_result(document)

    def _take_log(self, number: int, payload: bytes, acks: dict[int, int]) -> None:
        record, name = parse_log(payload), self._names.get(number)
        if record is None or name is None:
            return
        if record.seq <= self._log_seqs.get(number, 0):
            acks[number] = self._log_seqs[number]
            return
        encoder = self._encoders.setdefault(number, CriEncoder())
        self._append(name, encoder.encode(record.time_ns, record.stream, record.data))
        self._log_seqs[number] = record.seq
        acks[number] = record.seq

    def finish_log(self, number: int) -> None:
        """The container has ended: write what was a line without an end."""
        encoder, name = self._encoders.pop(number, None), self._names.get(number)
        if encoder is not None and name is not None:
            self._append(name, encoder.finish(int(self._clock.now() * 1e9)))

    def _append(self, name: str, data: bytes) -> None:
        if data:
            append_log(self._logs / f"{name}.log", data)


def append_log(path: Path, data: bytes) -> None:
    """Append records to a log file, rotating it when it is full. A full disk loses the records, not the task."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("ab") as f:
            f.write(data)
            size = f.tell()
        if size > MAX_LOG_BYTES:
            path.rename(path.with_name(path.name + ".1"))
    except OSError as error:
        log.error("container output lost", file=str(path), reason=error.strerror or "")
