"""The log router of a task in a microVM: what the host has of the other containers' output reaches its socket in the guest
through the sandbox's session."""

from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.sandbox import Sandbox
from hutch.host.guestlink.session import GuestLinkError, GuestRefused
from hutch.host.guestlink.streams import GuestStream, StreamBroken


def dial_router(sandbox: Sandbox, container: str) -> "GuestSocket":
    """Have the guest connect to the socket of a container that runs. Raises `DriverError`; a socket that is not there
    breaks the first write."""
    started = sandbox.started.get(container)
    if started is None or not started.running:
        raise DriverError("ContainerNotRunning", f'container "{container}" does not run', retryable=True)
    try:
        return GuestSocket(sandbox.session.open_stream("connect", path=plan.ROUTER_SOCKET))
    except GuestLinkError as error:
        raise DriverError("GuestUnreachable", error.message, retryable=True) from None


class GuestSocket:
    """Implements `hutch.host.logs.contract.Connection`."""

    def __init__(self, stream: GuestStream) -> None:
        self._stream = stream

    async def write(self, data: bytes) -> None:
        """Send; returns when the guest's kernel has it for the container."""
        await self._stream.write(data)
        await self._stream.taken()
        if self._stream.answer.done():
            raise self._end()

    def _end(self) -> OSError:
        answer = self._stream.answer
        error = answer.exception() if not answer.cancelled() else None
        if isinstance(error, GuestRefused | GuestLinkError | StreamBroken):
            return ConnectionError(error.message)
        return ConnectionResetError("it has hung up")

    async def read(self, limit: int) -> bytes:
        """Nobody answers: a router's unix socket only takes."""
        return b""

    async def close(self) -> None:
        """Hang up."""
        self._stream.tell("exec_close")
        answer = self._stream.answer
        if not answer.done():
            answer.set_exception(GuestRefused("Closed", "the connection was let go of"))
        answer.exception()
