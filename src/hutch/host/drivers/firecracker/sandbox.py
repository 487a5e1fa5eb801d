"""A running Firecracker VM as this host agent sees it. All but the monitor is as with QEMU: session, output, events.

Firecracker ends when its guest does, and takes nothing with it: the console is in its log, which is bounded by us.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from hutch.base.clock import Clock
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.firecracker.api import FirecrackerApi, FirecrackerError
from hutch.host.drivers.firecracker.config import save_requests
from hutch.host.drivers.firecracker.vm import FirecrackerFiles
from hutch.host.drivers.microvm.ending import Traces
from hutch.host.drivers.microvm.qemu import CONSOLE_BYTES
from hutch.host.drivers.microvm.sandbox import EXPLAIN_TIMEOUT_S, Sandbox
from hutch.host.drivers.microvm.vm import tail, write_console
from hutch.host.guestlink.session import GuestGone, GuestSession
from hutch.host.guestlink.vsock import AGENT_PORT, connect_vsock
from hutch.host.kernel.process import ProcessRef
from hutch.wire.guest_documents import HelloAnswer

CONNECT_TIMEOUT_S = 10.0

BringUp = Callable[[FirecrackerApi], Awaitable[None]]
"""Makes the VM in a process that has none, and returns when its agent listens. Raises `FirecrackerError`."""


class FirecrackerSandbox(Sandbox):
    """One VM. Made by the driver with `attach`; all verbs from one event loop."""

    def __init__(
        self,
        spec: SandboxSpec,
        files: FirecrackerFiles,
        ref: ProcessRef,
        clock: Clock,
        *,
        bring_up: BringUp | None = None,
    ) -> None:
        """`bring_up`: for a new process; None for a VM that is there, whose containers `take_over` then learns of."""
        super().__init__(spec, files, ref, clock, is_new=bring_up is not None)
        self._bring_up = bring_up
        self.api = FirecrackerApi(files.api_socket)

    async def _attach(self, hello_timeout_s: float) -> HelloAnswer:
        if self._bring_up is not None:
            await self._make_vm(self._bring_up, hello_timeout_s)
        try:
            return await self._greet(hello_timeout_s)
        except GuestGone:
            # A VM that was just restored resets all its connections, and this one may have been too early.
            if self._session is None or self.ended is not None:
                raise
            await self._session.close()
            return await self._greet(hello_timeout_s)

    async def _greet(self, hello_timeout_s: float) -> HelloAnswer:
        streams = await connect_vsock(self.files.agent_socket, AGENT_PORT, timeout_s=CONNECT_TIMEOUT_S)
        self._session = GuestSession.over(
            streams,
            logs=self._logs,
            on_exit=self._exited,
            on_facts=self._queue.take_facts,
            first_id=self._first_id,
        )
        return await self._hello(hello_timeout_s)

    async def _make_vm(self, bring_up: BringUp, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.api.wait_until_there()
                await bring_up(self.api)
        except TimeoutError:
            raise DriverError(
                "GuestTimeout", f"the VM did not come up within {timeout_s:g} s", retryable=True
            ) from None
        except (FirecrackerError, OSError) as error:
            # An API that is not there most often means a process that is not: then that is the cause.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXPLAIN_TIMEOUT_S if _is_hang_up(error) else 0):
                    await self._over.wait()
            raise self.gone() if self.ended else DriverError("VmMonitorFailed", str(error)) from None

    async def save(self) -> None:
        """Stop the VM for good, and write it to the directory that it was given for that. Raises `DriverError`."""
        # What the guest had to say to this session it has said; the next one begins anew.
        await self.session.close()
        try:
            await self.while_alive(self.api.send_all(save_requests()), "save its state")
        except FirecrackerError as error:
            raise DriverError("VmNotSaved", error.message) from None

    async def save_console(self) -> None:
        """Write the end of the guest's console to `console.log`."""
        await asyncio.to_thread(self._save_console)

    def _save_console(self) -> None:
        text = tail(self.files.qemu_log, CONSOLE_BYTES)
        with contextlib.suppress(OSError):
            write_console(self.files, text.encode("utf-8", "replace"))

    def _traces(self, exit_code: int | None) -> Traces:
        self._save_console()
        log = tail(self.files.qemu_log, CONSOLE_BYTES)
        return Traces(
            # It ends by itself, without an error, only when its guest restarts the machine.
            shutdown_reason="guest-shutdown" if exit_code == 0 else "",
            exit_code=exit_code,
            console=log,
            qemu_output=log,
            oom_record=self._oom_record(exit_code),
        )

    async def _close_monitor(self) -> None:
        """Nothing is held: each request has a connection of its own."""


def _is_hang_up(error: Exception) -> bool:
    return not isinstance(error, FirecrackerError) or "refused" not in error.message
