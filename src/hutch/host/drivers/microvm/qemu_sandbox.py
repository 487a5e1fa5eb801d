"""A running QEMU VM: what its monitor can do, besides what is the same for all VMs (`sandbox.py`).

A VM that ends by itself (power-off, panic) is held, paused, by QEMU until its console was read; only then is
the process ended. So the last words are there even if no host agent was when it happened.
"""

import asyncio
import base64
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.host.drivers.contract import DriverError, SandboxGone, SandboxSpec
from hutch.host.drivers.microvm.ending import Traces
from hutch.host.drivers.microvm.hotplug import replace_disk
from hutch.host.drivers.microvm.image import Machine
from hutch.host.drivers.microvm.qemu import CONSOLE_BYTES
from hutch.host.drivers.microvm.qmp import Qmp, QmpError
from hutch.host.drivers.microvm.restore import restore, save, save_devices
from hutch.host.drivers.microvm.sandbox import EXPLAIN_TIMEOUT_S, Sandbox
from hutch.host.drivers.microvm.templates import TemplateRef
from hutch.host.drivers.microvm.vm import VmFiles, tail, write_console
from hutch.host.guestlink.session import GuestSession
from hutch.host.kernel.process import ProcessRef, is_alive, wait_gone
from hutch.host.kernel.sealed import open_memory_file
from hutch.wire.guest_documents import HelloAnswer

SERVER_GRACE_S = 1.0
_ENDED_STATES = ("shutdown", "guest-panicked", "internal-error", "io-error")
_STILL_STATES = ("paused", "save-vm")


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM was made of, which must be known to save and restore it."""

    machine: Machine
    template: TemplateRef | None = None
    """What its memory is a private copy of."""
    has_link: bool = False
    """As in `Manifest`."""


async def _nothing(*_: object) -> None:
    """What a restoration does besides if it is a template's."""


class Restoration(msgspec.Struct, frozen=True, kw_only=True):
    """Where a VM's state comes from, and what else is to be done at which moment."""

    state_fd: int
    fill_memory: Callable[[ProcessRef], Awaitable[None]] = _nothing
    """Before the devices have their state, which they check against the memory."""
    before_it_runs: Callable[[], Awaitable[None]] = _nothing
    """When all is there. What fails from here on is the VM's end."""


class QemuSandbox(Sandbox):
    """One VM. Made by the driver with `attach`; all verbs from one event loop."""

    def __init__(
        self,
        spec: SandboxSpec,
        files: VmFiles,
        ref: ProcessRef,
        clock: Clock,
        *,
        origin: Origin | None = None,
        restoration: Restoration | None = None,
        is_new: bool = True,
    ) -> None:
        """With a `restoration` the VM waits for its state, which `attach` gives it first; else one that stands still goes
        on. `is_new`: it has no containers yet; else `take_over` must follow `attach`."""
        super().__init__(spec, files, ref, clock, is_new=is_new)
        self.origin = origin
        self._restoration = restoration
        self._qmp: Qmp | None = None
        self._shutdown_reason = ""
        self._lost_server = False

    @property
    def _monitor(self) -> Qmp:
        if self._qmp is None:
            raise SandboxGone("VmNotAttached", "the VM's monitor was never reached")
        return self._qmp

    # -- how it comes up

    async def _attach(self, hello_timeout_s: float) -> HelloAnswer:
        restoration, self._restoration = self._restoration, None
        qmp, status = await self._reach_monitor()
        if status in _ENDED_STATES:
            self._shut_down(self._shutdown_reason)
            await self._over.wait()
        self._session = await GuestSession.connect(
            self.files.agent_socket,
            logs=self._logs,
            on_exit=self._exited,
            on_facts=self._queue.take_facts,
            first_id=self._first_id,
        )
        try:
            if restoration is not None:
                # After the channel is open, as it was when the state was saved: so the guest has nothing to notice.
                await restoration.fill_memory(self.ref)
                await restore(qmp, restoration.state_fd)
                await restoration.before_it_runs()
                await qmp.execute("cont")
            elif status in _STILL_STATES:
                # It was being saved when the agent was killed.
                await qmp.execute("cont")
        except QmpError as error:
            said = await asyncio.to_thread(tail, self.files.qemu_log, 500)
            raise DriverError("VmNotRestored", f"{error.message}: {said.strip()}") from None
        return await self._hello(hello_timeout_s)

    async def _reach_monitor(self) -> tuple[Qmp, str]:
        """The monitor, and QEMU's word for the state that the VM is in."""
        try:
            self._qmp = await Qmp.connect(self.files.qmp_socket, self._shut_down)
            answer = await self._qmp.execute("query-status")
        except QmpError as error:
            # A monitor that is not there most often means a process that is not: then that is the cause.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
                    await self._over.wait()
            raise self.gone() if self.ended else DriverError("VmMonitorFailed", error.message) from None
        return self._qmp, str(answer.get("status"))

    # -- what its monitor does with it

    async def replace_disk(self, index: int, path: str, *, read_only: bool) -> None:
        """Put a file in the place of an empty disk that the guest has not looked at yet. Raises `DriverError`,
        `SandboxGone`, `OSError`."""
        qmp = self._monitor
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            await replace_disk(qmp, index, fd, read_only=read_only)
        except QmpError as error:
            raise DriverError("DiskNotAttached", error.message) from None
        finally:
            os.close(fd)

    async def save_state(self) -> bytes:
        """Stop the VM for good, and give the state of its devices: not what is in memory that is in a shared file.
        Raises `DriverError`."""
        qmp = self._monitor
        fd = open_memory_file("hutch-state")
        try:
            await self.while_alive(save(qmp, fd), "save its state")
            return os.pread(fd, os.fstat(fd).st_size, 0)
        except QmpError as error:
            raise DriverError("VmNotSaved", error.message) from None
        finally:
            os.close(fd)

    async def save_devices(self) -> bytes:
        """Stop the VM where it is, and give the state of its devices, without its memory. It can go on (`go_on`). Raises
        `DriverError`, `SandboxGone`."""
        fd = open_memory_file("hutch-state")
        try:
            write_only = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                await self._with_monitor(lambda qmp: save_devices(qmp, write_only), "save its devices' state")
            finally:
                os.close(write_only)
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    async def go_on(self) -> None:
        """Let a VM that was stopped run again. Raises as `save_devices`."""
        await self._with_monitor(lambda qmp: qmp.execute("cont"), "go on")

    async def _with_monitor(self, work: Callable[[Qmp], Coroutine[Any, Any, Any]], purpose: str) -> None:
        qmp = self._monitor
        try:
            await self.while_alive(work(qmp), purpose)
        except QmpError as error:
            raise DriverError("VmMonitorFailed", f"the VM did not {purpose}: {error.message}") from None

    # -- how it ends

    def _shut_down(self, reason: str) -> None:
        self._shutdown_reason = reason or "ended"
        self._run(self._end_paused_vm())

    async def _end_paused_vm(self) -> None:
        with contextlib.suppress(QmpError):
            await self.save_console()
        self._kill()

    def _kill(self) -> None:
        if is_alive(self.ref):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.ref.pid, signal.SIGKILL)

    async def save_console(self) -> None:
        """Write the end of the guest's console to `console.log`. Raises `QmpError`."""
        if self._qmp is None:
            return
        encoded = await self._qmp.execute(
            "ringbuf-read", device="console", size=CONSOLE_BYTES, format="base64"
        )
        try:
            data = base64.b64decode(str(encoded))
        except ValueError:
            raise QmpError("QEMU's console ring can't be read") from None
        await asyncio.to_thread(write_console, self.files, data)

    def watch_servers(self, refs: Iterable[ProcessRef]) -> None:
        """End the VM when one of these programs, which serve it, has ended: its guest would wait for ever."""
        for ref in refs:
            self._run(self._watch_server(ref))

    async def _watch_server(self, ref: ProcessRef) -> None:
        await wait_gone(ref)
        # They end with the VM as well.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SERVER_GRACE_S):
                await self._over.wait()
                return
        self._lost_server = True
        self._kill()

    def _traces(self, exit_code: int | None) -> Traces:
        return Traces(
            shutdown_reason=self._shutdown_reason,
            exit_code=exit_code,
            console=tail(self.files.console, CONSOLE_BYTES),
            qemu_output=tail(self.files.qemu_log),
            lost_server=self._lost_server,
            oom_record=self._oom_record(exit_code),
        )

    async def _close_monitor(self) -> None:
        if self._qmp is not None:
            await self._qmp.close()
