"""Spares of the warm pool: how one is made, and how it becomes a task's. How many of which size there are is `warm.py`'s.

A spare's directory is `<name>` below the spares' own; with one rename of its `vm` into a task's directory it is the task's.
"""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.base.threads import in_thread
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.machines import Ground, machine_of
from hutch.host.drivers.microvm.making import (
    RESTORE_TIMEOUT_S,
    Phases,
    let_go_on_failure,
    no_task,
    scratch_disk,
)
from hutch.host.drivers.microvm.qemu import WARM_TCG_BUFFER_MIB, Memory
from hutch.host.drivers.microvm.qemu_process import VmRequest, launch
from hutch.host.drivers.microvm.qemu_sandbox import Origin, QemuSandbox, Restoration
from hutch.host.drivers.microvm.sandbox import Empty
from hutch.host.drivers.microvm.templates import Template, TemplateKey, TemplateStore, TemplateUnavailable
from hutch.host.drivers.microvm.vm import (
    VmFiles,
    placeholder_link,
    remove_vm,
    vm_name,
)
from hutch.host.drivers.microvm.warm import Spare, WarmLimits, WarmPool, WarmSize
from hutch.host.kernel.tap import move_tap, open_placeholder_tap

log = get_logger(__name__)


class Spares:
    """The spares of one driver. All verbs from one event loop."""

    def __init__(
        self,
        *,
        platform_id: str,
        directory: Path,
        limits: WarmLimits,
        templates: TemplateStore,
        ground: Callable[[], Awaitable[Ground]],
        jail: MonitorJail,
        clock: Clock,
    ) -> None:
        """`ground` tells what VMs run on, and raises `DriverError` if none can."""
        self._platform_id = platform_id
        self._directory = directory
        self._templates = templates
        self._ground = ground
        self._jail = jail
        self._clock = clock
        self.pool = WarmPool(limits, self._make, self._end, clock)

    async def clean(self) -> None:
        """End what earlier agents left."""
        for directory in self._directory.glob("*"):
            await self._remove(VmFiles(directory))

    async def close(self) -> None:
        """End all of them."""
        await self.pool.close()

    # -- how one becomes a task's

    async def take(
        self, spec: SandboxSpec, request: VmRequest, key: TemplateKey, phases: Phases
    ) -> QemuSandbox | None:
        """A spare made into the VM that is asked for, if there is one that fits and it can be used; its guest greeted."""
        if request.writable_disks > 1:
            # Its disks are claimed as they are opened, which is when QEMU starts.
            return None
        size = WarmSize(key=key, cpu_units=request.cpu_units, disk_bytes=plan.scratch_bytes(spec.task))
        spare = self.pool.take(size)
        if spare is None:
            return None
        try:
            return await phases.measure("warm", self._claim(spare, spec, request))
        except DriverError as error:
            log.warning("a spare microVM can't be used", task=spec.task.task_id, reason=error.message)
            return None

    async def _claim(self, spare: Spare, spec: SandboxSpec, request: VmRequest) -> QemuSandbox:
        """Make a spare the task's: disks and link are put in the place of empty ones. On failure it is gone."""
        files, sandbox = VmFiles(spec.directory), spare.sandbox
        ready = False
        try:
            # With this it is the task's, also for whoever comes after a crash.
            os.rename(spare.files.vm, files.vm)
            shutil.rmtree(spare.files.root)
            sandbox.assign(spec, files)
            async with scratch_disk(files, plan.scratch_bytes(spec.task)):
                moving = self._move_link(spare, request.tap)
                await asyncio.gather(moving, self._fill_disks(sandbox, request))
            ready = True
            return sandbox
        except OSError as error:
            raise DriverError("SpareNotUsed", str(error)) from None
        finally:
            os.close(spare.tap_fd)
            if not ready:
                await sandbox.release()
                await remove_vm(spare.name, files, self._jail)

    async def _move_link(self, spare: Spare, tap: str) -> None:
        if tap:
            await in_thread(move_tap, spare.tap_fd, spare.tap_name, tap)

    async def _fill_disks(self, sandbox: QemuSandbox, request: VmRequest) -> None:
        for index, (path, read_only) in enumerate(request.disks):
            await sandbox.replace_disk(index, path, read_only=read_only)
        await sandbox.greet(timeout_s=RESTORE_TIMEOUT_S)

    # -- how one is made, and ended

    async def _make(self, size: WarmSize) -> Spare:
        """A restored VM without a task, that has been through a container's start. Raises `DriverError`."""
        ground = await self._ground()
        try:
            template = await self._templates.get(size.key)
        except TemplateUnavailable as error:
            raise DriverError("NoTemplate", error.message) from None
        spare_id = f"spare-{os.urandom(6).hex()}"
        files, name = VmFiles(self._directory / spare_id), vm_name(self._platform_id, spare_id)
        tap_name = placeholder_link(self._platform_id)
        ready, sandbox, tap_fd = False, None, -1
        try:
            files.vm.mkdir(mode=0o700, parents=True)
            files.name.write_text(name)
            tap_fd = await asyncio.to_thread(open_placeholder_tap, tap_name)
            request = _request(size, name, template, tap_fd)
            sandbox = await self._restore(request, files, spare_id, ground, template)
            rehearsal = sandbox.session.request("start", Empty, **plan.rehearsal_members())
            await sandbox.while_alive(rehearsal, "rehearse")
            ready = True
        except OSError as error:
            raise DriverError("NoSpare", str(error)) from None
        finally:
            if not ready:
                if sandbox is not None:
                    await sandbox.release()
                if tap_fd >= 0:
                    os.close(tap_fd)
                await self._remove(files)
        return Spare(size=size, name=name, files=files, sandbox=sandbox, tap_name=tap_name, tap_fd=tap_fd)

    async def _restore(
        self, request: VmRequest, files: VmFiles, spare_id: str, ground: Ground, template: Template
    ) -> QemuSandbox:
        state_fd = template.open_state()
        try:
            ref = await launch(request, files, ground.image, self._jail)
            sandbox = QemuSandbox(
                no_task(spare_id, str(files.root)),
                files,
                ref,
                self._clock,
                origin=Origin(machine=machine_of(request, ground), template=template.ref, has_link=True),
                restoration=Restoration(state_fd=state_fd),
            )
            async with let_go_on_failure(sandbox):
                await sandbox.attach(hello_timeout_s=RESTORE_TIMEOUT_S)
            return sandbox
        finally:
            os.close(state_fd)

    async def _end(self, spare: Spare) -> None:
        await spare.sandbox.release()
        os.close(spare.tap_fd)
        await remove_vm(spare.name, spare.files, self._jail)
        await asyncio.to_thread(shutil.rmtree, spare.files.root, True)

    async def _remove(self, files: VmFiles) -> None:
        # One without a `vm` was taken by a task a moment before an agent was killed: it is not ours any more.
        if files.vm.exists():
            await remove_vm(vm_name(self._platform_id, files.root.name), files, self._jail)
        await asyncio.to_thread(shutil.rmtree, files.root, True)


def _request(size: WarmSize, name: str, template: Template, tap_fd: int) -> VmRequest:
    return VmRequest(
        name=name,
        accelerator=size.key.accelerator,
        vcpus=size.key.vcpus,
        memory_mib=size.key.memory_mib,
        cpu_units=size.cpu_units,
        disk_slots=size.key.disk_slots,
        writable_disks=size.key.writable_disks,
        disk_bytes=size.disk_bytes,
        tcg_buffer_mib=WARM_TCG_BUFFER_MIB,
        memory=Memory(fd=template.memory_fd, shared=False),
        tap_fd=tap_fd,
        incoming=True,
    )
