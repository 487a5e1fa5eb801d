"""How the VMs of a driver come, are taken over and go, whatever their monitor. QEMU's driver and Firecracker's are this, and
what is theirs alone."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from hutch.base.clock import Clock
from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.host.drivers.contract import (
    Capabilities,
    DriverError,
    Handle,
    ObservedContainer,
    SandboxSpec,
)
from hutch.host.drivers.facts import unhealthy
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.making import Phases, let_go_on_failure
from hutch.host.drivers.microvm.running import (
    RunningVms,
    fill_files,
    finish_volumes,
    hold_namespaces,
    observed,
)
from hutch.host.drivers.microvm.sandbox import Empty, Sandbox
from hutch.host.drivers.microvm.slots import LaunchSlot, LaunchSlots, queue_phase
from hutch.host.drivers.microvm.vm import VmFiles, remove_vm, vm_name
from hutch.wire.facts import DriverFactMsg

HANDLE_FORMAT = 1
ADOPT_TIMEOUT_S = 30.0
SET_UP_TIMEOUT_S = 60.0
CONSOLE_TIMEOUT_S = 1.0
log = get_logger(__name__)
S = TypeVar("S", bound=Sandbox)


class VmDriver(RunningVms[S], ABC):
    """The driver contract's verbs about VMs as a whole."""

    name: str
    capabilities: Capabilities

    def __init__(self, clock: Clock, jail: MonitorJail, platform_id: str) -> None:
        super().__init__(clock, jail, platform_id)
        self._launching = LaunchSlots()

    @abstractmethod
    async def _check(self) -> dict[str, str]:
        """What is to be told of a driver that can run VMs. Raises `DriverError` if it can't."""

    @abstractmethod
    def _files(self, directory: str) -> VmFiles:
        """Where the files of the VM are whose sandbox has this directory."""

    @abstractmethod
    async def _mounts(self, spec: SandboxSpec) -> list[dict[str, Any]]:
        """`mounts` of the request `disks`. Raises `DriverError`."""

    async def fingerprint(self) -> DriverFactMsg:
        """Whether guests can run here, proven by booting one where that is in doubt; the answer is remembered."""
        try:
            details = await self._check()
        except DriverError as error:
            return unhealthy(self.name, self.capabilities, error)
        return DriverFactMsg(
            name=self.name, launch_types=self.capabilities.launch_types, healthy=True, details=details
        )

    # -- how they come

    async def _launch(
        self, spec: SandboxSpec, launch: Callable[[LaunchSlot], Awaitable[tuple[S, Phases]]]
    ) -> tuple[S, Phases]:
        """A VM for a task, with its disks mounted and its network set up. On failure nothing is left but the directory."""
        plan.check_task(spec)
        asked_at = self._clock.now()
        async with self._new_vm(spec) as made, self._launching.one() as slot:
            begun_at = self._clock.now()
            sandbox, phases = await launch(slot)
            made.append(sandbox)
            setting_up = sandbox.while_alive(self._set_up(sandbox), "set itself up")
            await phases.measure("set up", setting_up, "disks and network")
        phases.told[:0] = queue_phase(asked_at, begun_at)
        took_ms = {p.name: round((p.ended_at - p.started_at) * 1000) for p in phases.told}
        log.info("VM ready", driver=self.name, task=spec.task.task_id, took_ms=took_ms)
        return sandbox, phases

    @contextlib.asynccontextmanager
    async def _new_vm(self, spec: SandboxSpec) -> AsyncIterator[list[S]]:
        """For the one VM that is put into the list: unless all goes well, nothing of it is left but the directory."""
        task_id = spec.task.task_id
        if task_id in self._sandboxes:
            raise DriverError("SandboxExists", f"task {task_id} has a VM already")
        made: list[S] = []
        try:
            yield made
        except BaseException:
            for sandbox in made:
                await sandbox.release()
            await self._remove(task_id, spec.directory)
            raise
        (self._sandboxes[task_id],) = made

    async def _set_up(self, sandbox: S) -> None:
        mounts = await self._mounts(sandbox.spec)
        configure = plan.configure_members(sandbox.spec)
        await asyncio.gather(
            sandbox.session.request("configure", Empty, timeout_s=SET_UP_TIMEOUT_S, **configure),
            sandbox.session.request("disks", Empty, timeout_s=SET_UP_TIMEOUT_S, mounts=mounts),
        )
        await fill_files(sandbox)
        await sandbox.watch()
        await hold_namespaces(sandbox)

    # -- how they are taken over

    async def _adopt(self, sandbox: S, *, may_be_frozen: bool) -> tuple[ObservedContainer, ...]:
        """Connect to a VM that an earlier agent started; `SandboxGone` says how it ended, if it did."""
        async with let_go_on_failure(sandbox):
            answer = await sandbox.attach(hello_timeout_s=ADOPT_TIMEOUT_S)
            await sandbox.take_over(answer.containers)
            if may_be_frozen:
                await sandbox.thaw()
            if sandbox.started:
                await self._hold_to_share(sandbox)
        self._sandboxes[sandbox.spec.task.task_id] = sandbox
        return observed(sandbox)

    # -- how they go

    async def destroy(self, handle: Handle) -> None:
        """End the VM at once; its files go, logs and console stay for the directory's owner."""
        await self._destroy(handle.task_id, str(handle.state["directory"]))

    async def destroy_leftovers(self, directory: str, task_id: str) -> None:
        """As `destroy`, from names alone: the VM's process is found by the name on its command line."""
        await self._destroy(task_id, directory)

    async def _destroy(self, task_id: str, directory: str) -> None:
        sandbox = self._sandboxes.pop(task_id, None)
        if sandbox is not None:
            await finish_volumes(sandbox)
            await self._let_go(sandbox)
        await self._remove(task_id, directory)

    async def _let_go(self, sandbox: S) -> None:
        """Of one that is about to end, or has; its last words stay."""
        if sandbox.ended is None:
            with contextlib.suppress(HutchError, TimeoutError):
                async with asyncio.timeout(CONSOLE_TIMEOUT_S):
                    await sandbox.save_console()
        await sandbox.release()

    async def _remove(self, task_id: str, directory: str) -> None:
        await remove_vm(self._vm_name(task_id), self._files(directory), self._jail)

    async def close(self) -> None:
        """Let go of all VMs without touching them."""
        sandboxes, self._sandboxes = self._sandboxes, {}
        for sandbox in sandboxes.values():
            await sandbox.release()
        self._jail.close()

    def _vm_name(self, task_id: str) -> str:
        return vm_name(self._platform_id, task_id)


def check_format(handle: Handle) -> None:
    """Raises `DriverError` for a handle that another version of hutch made."""
    if handle.format != HANDLE_FORMAT:
        raise DriverError("UnknownHandle", f"handle format {handle.format} is not known here")
