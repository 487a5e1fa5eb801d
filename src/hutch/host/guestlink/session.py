"""One conversation with a guest agent over its byte channel: requests and answers, log frames, events.

Everything that comes in is hostile. Memory is bounded by what is read before it is handled (one read of 64
KiB and one half frame); a guest that floods is read no faster than its frames are dealt with; what is
malformed is counted and dropped; a guest that does not read gets nothing more than `MAX_UNSENT_BYTES`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.host.guestlink.logs import SandboxLogs
from hutch.host.guestlink.streams import GuestStream, StreamBroken
from hutch.host.guestlink.unix import connect_unix
from hutch.wire.guest import (
    CONTROL,
    LOG,
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    STREAM_CREDIT,
    STREAM_DATA,
    Frame,
    FrameDecoder,
    LogRecord,
    encode_frame,
    parse_log,
)
from hutch.wire.guest_documents import (
    AgentErrorEvent,
    Answer,
    ContainerExitedEvent,
    HelloAnswer,
    encode_request,
    parse_answer,
    parse_document,
)
from hutch.wire.guest_facts import RuntimeFactsEvent

log = get_logger(__name__)
T = TypeVar("T")
READ_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 4 * MAX_FRAME_BYTES
MAX_REPORTED_DROPS = 10
REQUEST_TIMEOUT_S = 30.0
HELLO_INTERVAL_S = 1.0
HELLO_FRESH_NS = 100_000_000


class GuestLinkError(HutchError):
    """The conversation did not work."""


class GuestGone(GuestLinkError):
    """The channel is closed: the VM has ended, or the session was closed."""


class GuestSilent(GuestLinkError):
    """The guest did not answer in time, or does not read."""


class GuestRefused(GuestLinkError):
    """The guest answered that it could not. `kind` is its word for it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class GuestSession:
    """Made by `connect`; all verbs from one event loop. `closed` is set when the channel has ended."""

    def __init__(
        self,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        logs: SandboxLogs,
        on_exit: Callable[[ContainerExitedEvent], Awaitable[None]],
        first_id: int,
        on_facts: Callable[[RuntimeFactsEvent], None] | None = None,
    ) -> None:
        self._reader, self._writer = streams
        self._logs = logs
        self._on_exit = on_exit
        self._on_facts = on_facts
        self._next_id = first_id
        self._pending: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._streams: dict[int, GuestStream] = {}
        self._next_stream = 1
        self._last_event = 0
        self._owed_facts = 0
        self._decoder = FrameDecoder()
        self._malformed = 0
        self._errors_told = 0
        self.closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        path: Path,
        *,
        logs: SandboxLogs,
        on_exit: Callable[[ContainerExitedEvent], Awaitable[None]],
        first_id: int,
        on_facts: Callable[[RuntimeFactsEvent], None] | None = None,
    ) -> "GuestSession":
        """Connect to the channel's socket, and begin to listen. Raises `GuestGone`.

        `on_exit` is awaited for each exit event, in order, after the output that came before it was written;
        it must not wait for this session. `on_facts` is called for each batch of facts, which may come again until it is
        acknowledged; without it they are dropped. `first_id` must be greater than the ids of all earlier sessions
        with this guest, so that late answers to those are told apart.
        """
        try:
            streams = await connect_unix(path, limit=READ_BYTES)
        except OSError as error:
            raise GuestGone(f"the guest's channel can't be reached: {error.strerror}") from None
        return cls.over(streams, logs=logs, on_exit=on_exit, first_id=first_id, on_facts=on_facts)

    @classmethod
    def over(
        cls,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        *,
        logs: SandboxLogs,
        on_exit: Callable[[ContainerExitedEvent], Awaitable[None]],
        first_id: int,
        on_facts: Callable[[RuntimeFactsEvent], None] | None = None,
    ) -> "GuestSession":
        """As `connect`, over a channel that is open."""
        session = cls(streams, logs, on_exit, first_id, on_facts)
        # Ends whatever half frame an earlier host agent left in the channel.
        session._writer.write(b"\0")
        session._task = asyncio.create_task(session._listen(), name="guest-session")
        return session

    def use_logs(self, logs: SandboxLogs) -> None:
        """From now on output goes there."""
        self._logs = logs

    @property
    def malformed_frames(self) -> int:
        """Frames that were dropped because they were not what the protocol says."""
        return self._decoder.dropped + self._malformed

    async def hello(self, *, now_ns: Callable[[], int], entropy: bytes, timeout_s: float) -> HelloAnswer:
        """Greet: sets the guest's clock, seeds its generator; it then tells again what was not acknowledged.

        Said again until it is answered: an answer that was on its way while the channel changed hands is lost. And
        said once more if the answer took long, since the time that it carried was then out of date (a VM that boots
        reads its first greeting a second after it was written). Raises as `request`.
        """
        attempts: dict[asyncio.Future[msgspec.Raw], tuple[int, int]] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    time_ns = now_ns()
                    request_id, future = self._ask(
                        "hello", {"version": PROTOCOL_VERSION, "time_ns": time_ns, "entropy": entropy.hex()}
                    )
                    attempts[future] = (request_id, time_ns)
                    done, _ = await asyncio.wait(
                        attempts, timeout=HELLO_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    for answered in done:
                        answer = _hello_answer(answered.result())
                        if now_ns() - attempts[answered][1] <= HELLO_FRESH_NS:
                            return answer
                        del self._pending[attempts.pop(answered)[0]]
        except TimeoutError:
            raise GuestSilent(f"the guest did not answer hello within {timeout_s:g} s") from None
        finally:
            for future, (request_id, _) in attempts.items():
                self._pending.pop(request_id, None)
                if not future.cancel():
                    future.exception()

    async def request(
        self, operation: str, answer_type: type[T], *, timeout_s: float = REQUEST_TIMEOUT_S, **members: Any
    ) -> T:
        """Ask, and wait for the answer. Raises `GuestGone`, `GuestSilent`, `GuestRefused`; `ValueError` if the
        request is longer than a frame."""
        request_id, future = self._ask(operation, members)
        try:
            async with asyncio.timeout(timeout_s):
                raw = await future
        except TimeoutError:
            raise GuestSilent(f"the guest did not answer {operation} within {timeout_s:g} s") from None
        finally:
            self._pending.pop(request_id, None)
        answer = parse_answer(raw, answer_type)
        if answer is None:
            raise GuestRefused(
                "Malformed", f"the guest's answer to {operation} is not what the protocol says"
            )
        return answer

    def _ask(self, operation: str, members: dict[str, Any]) -> tuple[int, asyncio.Future[msgspec.Raw]]:
        """Send a request; its id, under which it stays pending, and the future answer."""
        if self.closed.is_set():
            raise GuestGone("the guest's channel is closed")
        if self._unsent() > MAX_UNSENT_BYTES:
            raise GuestSilent(f"the guest does not read what it is told ({operation})")
        request_id = self._next_id
        self._next_id += 1
        frame = encode_frame(CONTROL, 0, encode_request(request_id, operation, members))
        future: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = future
        self._writer.write(frame)
        return request_id, future

    def open_stream(self, operation: str = "exec_stream", **members: Any) -> GuestStream:
        """Have a process run with streams of its own, or (operation `connect`) connect to a socket; see the protocol.
        Raises `GuestGone`, `GuestSilent`, `ValueError` as `request`; what goes wrong later is in the stream's answer."""
        number = self._next_stream
        request_id, answer = self._ask(operation, {"stream": number, **members})
        self._next_stream += 1
        stream = self._streams[number] = GuestStream(number, answer, self._send_frame, self._tell)

        def ended(_: asyncio.Future[msgspec.Raw]) -> None:
            self._pending.pop(request_id, None)
            self._streams.pop(number, None)

        answer.add_done_callback(ended)
        return stream

    def _send_frame(self, kind: int, channel: int, payload: bytes) -> None:
        # Bounded by the streams' credit.
        if not self.closed.is_set():
            self._writer.write(encode_frame(kind, channel, payload))

    def _take_stream(self, frame: Frame) -> None:
        stream = self._streams.get(frame.channel)
        if stream is None or stream.answer.done():
            return  # of a process that has been let go of
        try:
            stream.take(frame.kind, frame.payload)
        except StreamBroken as error:
            self._malformed += 1
            self._tell("exec_close", stream=frame.channel)
            stream.answer.set_exception(error)

    def acknowledge_event(self, seq: int) -> None:
        """The event, and all before it, need not be told again."""
        self._tell("event_ack", seq=seq)

    def acknowledge_facts(self, seq: int) -> None:
        """The batch of facts, and all before it, need not be told again."""
        # The guest tells no more while too many are not acknowledged: one that can't be sent now is owed.
        self._owed_facts = 0 if self._tell("facts_ack", seq=seq) else seq

    def _tell(self, operation: str, **members: Any) -> bool:
        # Acknowledgements are cumulative: one that is not sent now is made good by the next.
        if self.closed.is_set() or self._unsent() > MAX_UNSENT_BYTES:
            return False
        self._writer.write(encode_frame(CONTROL, 0, encode_request(None, operation, members)))
        return True

    def _unsent(self) -> int:
        return self._writer.transport.get_write_buffer_size()

    async def _listen(self) -> None:
        try:
            while data := await self._reader.read(READ_BYTES):
                await self._take(self._decoder.feed(data))
        except (ConnectionError, asyncio.IncompleteReadError):
            log.debug("guest channel broke")
        finally:
            self.closed.set()
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(GuestGone("the guest's channel closed"))
            self._writer.close()

    async def _take(self, frames: list[Frame]) -> None:
        if self._owed_facts:
            self.acknowledge_facts(self._owed_facts)
        batch: list[tuple[int, LogRecord]] = []
        for frame in frames:
            if frame.kind == LOG:
                record = parse_log(frame.payload)
                if record is None:
                    self._malformed += 1
                else:
                    batch.append((frame.channel, record))
                continue
            if frame.kind in (STREAM_DATA, STREAM_CREDIT):
                self._take_stream(frame)
                continue
            document = parse_document(frame.payload) if frame.kind == CONTROL else None
            match document:
                case None:
                    self._malformed += 1
                case Answer():
                    self._answered(document)
                case ContainerExitedEvent():
                    await self._write_logs(batch)
                    batch = []
                    await self._exited(document)
                case AgentErrorEvent():
                    self._agent_error(document)
                case RuntimeFactsEvent():
                    self._facts(document)
        await self._write_logs(batch)

    async def _write_logs(self, batch: list[tuple[int, LogRecord]]) -> None:
        if batch:
            for number, seq in (await self._logs.write(batch)).items():
                self._tell("log_ack", number=number, seq=seq)

    def _answered(self, answer: Answer) -> None:
        future = self._pending.get(answer.id)
        if future is None or future.done():
            return  # too late, or to a session before this one
        if answer.error is not None:
            future.set_exception(GuestRefused(answer.error.kind, answer.error.message))
        else:
            # Raw is a view into the frame's payload; a copy lets go of the frame.
            future.set_result(answer.ok.copy())

    async def _exited(self, event: ContainerExitedEvent) -> None:
        if event.seq <= self._last_event:
            return
        self._last_event = event.seq
        await self._on_exit(event)

    def _facts(self, event: RuntimeFactsEvent) -> None:
        if self._on_facts is None:
            self.acknowledge_facts(event.seq)
        else:
            self._on_facts(event)

    def _agent_error(self, event: AgentErrorEvent) -> None:
        self._tell("event_ack", seq=event.seq)
        self._errors_told += 1
        if self._errors_told <= MAX_REPORTED_DROPS:
            log.warning("guest agent reports an error", message=event.message[:500])

    async def close(self) -> None:
        """Hang up. The guest keeps what was not acknowledged for the next session."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        # Closing would wait until the guest has read what it was told, which it may never do.
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _hello_answer(raw: msgspec.Raw) -> HelloAnswer:
    answer = parse_answer(raw, HelloAnswer)
    if answer is None:
        raise GuestRefused("Malformed", "the guest's answer to hello is not what the protocol says")
    if answer.version != PROTOCOL_VERSION:
        raise GuestRefused(
            "VersionMismatch", f"the guest speaks version {answer.version}, not {PROTOCOL_VERSION}"
        )
    return answer
