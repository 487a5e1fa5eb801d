"""The guest's vsock ports behind a unix socket, as Firecracker offers them.

To reach a port of the guest one connects to the socket, says `CONNECT <port>`, and reads `OK <a number>`; from then on the
connection is the guest's. A guest that calls a port of the host arrives at `<socket>_<port>`. What is at the other end may
have been taken over by the guest: all it says is bounded.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from hutch.host.guestlink.session import READ_BYTES, GuestGone, GuestSilent
from hutch.host.guestlink.unix import connect_unix, listen_unix

AGENT_PORT = 1024
"""On which the guest agent listens, and which it calls on the host when it does."""
MAX_ANSWER_BYTES = 32


async def connect_vsock(
    path: Path, port: int, *, timeout_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a port of the guest behind the socket at `path`. Raises `GuestGone` if nobody listens there,
    `GuestSilent`."""
    try:
        reader, writer = await connect_unix(path, limit=READ_BYTES)
    except OSError as error:
        raise GuestGone(f"the guest's channel can't be reached: {error.strerror}") from None
    connected = False
    try:
        writer.write(b"CONNECT %d\n" % port)
        async with asyncio.timeout(timeout_s):
            answer = await reader.readuntil(b"\n")
        if len(answer) > MAX_ANSWER_BYTES or not answer.startswith(b"OK "):
            raise GuestGone(f"the VM monitor answered {answer[:MAX_ANSWER_BYTES]!r} instead of connecting")
        connected = True
        return reader, writer
    except TimeoutError:
        raise GuestSilent(f"the guest was not reached within {timeout_s:g} s") from None
    except asyncio.LimitOverrunError:
        raise GuestGone("the VM monitor's answer never ends") from None
    except (asyncio.IncompleteReadError, ConnectionError):
        raise GuestGone(f"nobody listens on the guest's port {port}") from None
    finally:
        if not connected:
            writer.close()


class GuestCall:
    """Waits for the guest to call a port of the host: a listening socket beside Firecracker's, made before it starts."""

    def __init__(self, path: Path, port: int) -> None:
        """`path` is Firecracker's socket. Raises `OSError`."""
        self._path = path.with_name(f"{path.name}_{port}")
        self._listener = listen_unix(self._path)
        self._listener.setblocking(False)
        # The monitor, which is another user, connects; the directory keeps everybody else out.
        os.chmod(self._path, 0o666)

    async def wait(self) -> None:
        """Return when the guest has called; what it says is not read. Raises `OSError`."""
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        connection.close()

    def close(self) -> None:
        """No more calls."""
        with contextlib.suppress(OSError):
            self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
