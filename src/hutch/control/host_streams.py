"""The control plane's end of processes' streams: connections that hosts open for them, beside the fleet's own."""

import asyncio
import contextlib
import hmac

from hutch.base.errors import Invalid, Unavailable
from hutch.base.log import get_logger
from hutch.model.exec import MAX_CHUNK_BYTES, Exited, Failed, FromProcess, Input, ToProcess
from hutch.wire.fleet import StreamHello
from hutch.wire.streams import decode_from_process, decode_to_process, encode_frame, read_frame, write_frame

log = get_logger(__name__)
ARRIVAL_TIMEOUT_S = 10.0

__all__ = ["HostStream", "StreamDesk", "decode_to_process", "encode_frame"]


class HostStream:
    """One process. `receive` and `send` may be used side by side; whoever has it closes it, which ends the process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._over = False
        self.closed = asyncio.Event()

    async def send(self, frame: ToProcess) -> None:
        """Hand a frame to the process; waits while it takes none. Nothing happens after its end."""
        pieces: list[ToProcess] = [frame]
        if isinstance(frame, Input) and len(frame.data) > MAX_CHUNK_BYTES:
            starts = range(0, len(frame.data), MAX_CHUNK_BYTES)
            pieces = [Input(frame.data[at : at + MAX_CHUNK_BYTES]) for at in starts]
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                await write_frame(self._writer, piece)

    async def receive(self) -> FromProcess:
        """The next frame; after `Exited` or `Failed` there is none. A host that goes away is `Failed` too."""
        if not self._over:
            try:
                data = await read_frame(self._reader)
                frame = decode_from_process(data) if data is not None else None
            except Invalid as error:
                log.error("a host's stream is malformed", reason=error.message)
                frame = None
            if frame is not None:
                self._over = isinstance(frame, Exited | Failed)
                return frame
        self._over = True
        return Failed("ConnectionLost", "the connection to the task's host was lost")

    def close(self) -> None:
        """Let go: the host ends the process if it still runs."""
        self.closed.set()
        # Nothing that is still to be sent is of use to anybody now.
        self._writer.transport.abort()


class StreamDesk:
    """Brings together who asked for a stream and the host that brings it."""

    def __init__(self) -> None:
        self._expected: dict[str, tuple[str, asyncio.Future[HostStream]]] = {}
        self._open: set[HostStream] = set()

    def close(self) -> None:
        """End all streams."""
        for stream in list(self._open):
            stream.close()

    def expect(self, host_id: str, stream_id: str) -> asyncio.Future[HostStream]:
        """The stream that this host will bring. To be given up with `forget`."""
        future: asyncio.Future[HostStream] = asyncio.get_running_loop().create_future()
        self._expected[stream_id] = (host_id, future)
        return future

    def forget(self, stream_id: str) -> None:
        """Nobody waits for it any more."""
        _, future = self._expected.pop(stream_id, ("", None))
        if future is not None and future.done() and not future.cancelled():
            future.result().close()

    async def wait(self, stream_id: str, future: asyncio.Future[HostStream]) -> HostStream:
        """The stream, once it is here. Raises `Unavailable`."""
        try:
            async with asyncio.timeout(ARRIVAL_TIMEOUT_S):
                stream = await asyncio.shield(future)
        except TimeoutError:
            raise Unavailable("the task's host did not bring the stream that it promised") from None
        self._expected.pop(stream_id, None)
        return stream

    async def attach(
        self, hello: StreamHello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """A host's connection for a stream; returns when the stream is over. One that nobody expects is dropped."""
        host_id, future = self._expected.get(hello.stream_id, ("", None))
        if (
            future is None
            or future.done()
            or not hmac.compare_digest(host_id.encode(), hello.host_id.encode())
        ):
            log.warning("stream refused", host=hello.host_id[:64], reason="nobody expects it")
            return
        stream = HostStream(reader, writer)
        future.set_result(stream)
        self._open.add(stream)
        try:
            await stream.closed.wait()
        finally:
            self._open.discard(stream)
