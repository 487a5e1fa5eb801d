"""Further processes in a microVM's containers: the guest agent runs them, the sandbox's session carries their streams."""

import asyncio
from collections.abc import AsyncIterator

from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.exec_process import exec_fault, exec_process
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.sandbox import Sandbox
from hutch.host.guestlink.session import GuestLinkError, GuestRefused
from hutch.host.guestlink.streams import GuestStream, StreamBroken
from hutch.model.exec import ExecSpec
from hutch.wire.guest_documents import ExecAnswer, parse_answer


def open_exec(sandbox: Sandbox, container: str, spec: ExecSpec) -> "MicrovmExec":
    """Have the guest run a process in a container that runs. Raises `DriverError`."""
    started = sandbox.started.get(container)
    if started is None or not started.running:
        raise DriverError("ContainerNotRunning", f'container "{container}" does not run')
    context = plan.oci_context(sandbox.spec, started.container, started.number)
    process = exec_process(started.container, sandbox.spec.images[container], context, spec)
    try:
        stream = sandbox.session.open_stream(
            name=container, process=process, tty=spec.tty, stdin=spec.stdin, rows=spec.rows, cols=spec.cols
        )
    except ValueError:
        raise DriverError("CommandTooLarge", "command and environment are longer than 64 KiB") from None
    except GuestLinkError as error:
        raise DriverError("GuestUnreachable", error.message, retryable=True) from None
    return MicrovmExec(sandbox, stream)


class MicrovmExec:
    """Implements `ExecStream`."""

    def __init__(self, sandbox: Sandbox, stream: GuestStream) -> None:
        self._sandbox = sandbox
        self._stream = stream

    async def write(self, data: bytes) -> None:
        """Input."""
        await self._stream.write(data)

    async def close_input(self) -> None:
        """The end of input."""
        await self._stream.close_input()

    async def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size."""
        self._stream.tell("exec_resize", rows=rows, cols=cols)

    async def signal(self, number: int) -> None:
        """Send the process a signal."""
        self._stream.tell("exec_signal", signal=number)

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """What it writes."""
        return self._stream.output()

    async def wait(self) -> int:
        """The exit code; `SandboxGone` says how the VM ended, if it did meanwhile."""
        return await self._sandbox.while_alive(self._answer(), "run a process")

    async def _answer(self) -> int:
        try:
            raw = await asyncio.shield(self._stream.answer)
        except StreamBroken as error:
            raise DriverError("GuestMisbehaved", error.message) from None
        except GuestRefused as error:
            raise exec_fault(error.message) from None
        answer = parse_answer(raw, ExecAnswer)
        if answer is None:
            raise DriverError("GuestMisbehaved", "the guest's answer is not what the protocol says")
        return answer.exit_code

    async def close(self) -> None:
        """Let go of it; the guest ends it."""
        self._stream.tell("exec_close")
        answer = self._stream.answer
        if not answer.done():
            answer.set_exception(GuestRefused("Closed", "the process was let go of"))
        answer.exception()
