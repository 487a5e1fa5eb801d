"""A process in a container, on this program's own standard streams: the client's end of `hutch exec`.

Three parties work side by side: whoever called, who writes what comes; a thread that reads standard input; and one that
sends what is not input (sizes, signals), so that a signal handler only has to put it in a queue.
"""

import os
import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from socket import SHUT_RDWR
from urllib.parse import urlsplit

import msgspec
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from hutch.base.errors import Invalid
from hutch.client.errors import ClientError, Unreachable
from hutch.model.exec import MAX_CHUNK_BYTES, STDERR, Exited, Failed, Input, Output, Resize, Signal
from hutch.wire.streams import decode_from_process, encode_frame

EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
_CODES = {"ExecNotExecutable": EXIT_NOT_EXECUTABLE, "ExecNotFound": EXIT_NOT_FOUND}
_OPEN_TIMEOUT_S = 30.0
_SIGNAL_TIMEOUT_S = 2.0


class ExecFailed(ClientError):
    """The process could not be run, or was lost. `exit_code` is what a shell would have for it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ExecConnection:
    """One process. Made by `open_exec`; `run` serves it to its end."""

    def __init__(self, socket: ClientConnection, closing: ExitStack) -> None:
        """`closing` closes the connection."""
        self._socket = socket
        self._closing = closing
        self._is_sending = False
        self._controls: queue.SimpleQueue[Resize | Signal | None] = queue.SimpleQueue()

    def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal's size, soon. May be called from a signal handler."""
        self._controls.put(Resize(rows, cols))

    def signal(self, number: int) -> None:
        """Send the process a signal, soon. May be called from a signal handler."""
        self._controls.put(Signal(number))
        unsent = threading.Timer(_SIGNAL_TIMEOUT_S, self._abandon_unsent)
        unsent.daemon = True
        unsent.start()

    def _abandon_unsent(self) -> None:
        """A signal that waits behind input that the process does not take would wait for ever."""
        if not self._controls.empty() or self._is_sending:
            self.abandon()

    def abandon(self) -> None:
        """Hang up, without waiting for anything."""
        with suppress(OSError):
            self._socket.socket.shutdown(SHUT_RDWR)

    def run(self, read_input: Callable[[], bytes] | None) -> int:
        """Write what the process writes to file descriptors 1 and 2; its exit code. `read_input` gives the next input
        and b"" at its end; None: there is none. Raises `ExecFailed`, `Unreachable`."""
        threading.Thread(target=self._send_controls, daemon=True).start()
        if read_input is not None:
            threading.Thread(target=self._send_input, args=(read_input,), daemon=True).start()
        try:
            while True:
                match decode_from_process(_binary(self._socket.recv())):
                    case Output(stream, data):
                        _write(2 if stream == STDERR else 1, data)
                    case Exited(exit_code):
                        return exit_code
                    case Failed(kind, message):
                        raise ExecFailed(message, _CODES.get(kind, 1))
        except ConnectionClosed as closed:
            reason = closed.rcvd.reason if closed.rcvd else "the connection was lost"
            raise Unreachable(f"the session ended: {reason or 'hutch went away'}") from None
        except Invalid as error:
            raise Unreachable(f"what came is not of this protocol: {error.message}") from None
        finally:
            self._controls.put(None)
            self._closing.close()

    def _send_controls(self) -> None:
        try:
            while (frame := self._controls.get()) is not None:
                self._is_sending = True
                self._socket.send(encode_frame(frame))
                self._is_sending = False
        except (ConnectionClosed, OSError):
            return

    def _send_input(self, read_input: Callable[[], bytes]) -> None:
        """The socket's buffers are the backpressure: `send` waits while the process takes nothing."""
        try:
            while data := read_input():
                self._socket.send(encode_frame(Input(data[:MAX_CHUNK_BYTES])))
                for start in range(MAX_CHUNK_BYTES, len(data), MAX_CHUNK_BYTES):
                    self._socket.send(encode_frame(Input(data[start : start + MAX_CHUNK_BYTES])))
            self._socket.send(encode_frame(Input(b"")))
        except (ConnectionClosed, OSError):
            return


def open_exec(endpoint: str, path: str, token: str) -> ExecConnection:
    """Connect to a session. Raises `Unreachable`."""
    parts = urlsplit(endpoint)
    scheme = "wss" if parts.scheme == "https" else "ws"
    closing = ExitStack()
    try:
        socket = closing.enter_context(
            connect(
                f"{scheme}://{parts.netloc.rpartition('@')[2]}{path}",
                open_timeout=_OPEN_TIMEOUT_S,
                compression=None,
                proxy=None,
                # A server whose process takes no input is not read from, and answers no pings: no reason to hang up.
                ping_timeout=None,
                max_size=4 * MAX_CHUNK_BYTES,
            )
        )
        socket.send(msgspec.json.encode({"TokenValue": token}).decode())
    except (OSError, WebSocketException) as error:
        raise Unreachable(f"can't open a session at {endpoint}: {error or type(error).__name__}") from None
    return ExecConnection(socket, closing)


def _binary(message: str | bytes) -> bytes:
    return message if isinstance(message, bytes) else b""


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
