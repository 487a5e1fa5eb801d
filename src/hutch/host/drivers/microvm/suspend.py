"""Suspend and resume of a running VM: the order of things, so that a kill at any moment loses nothing.

    running ─ freeze, stop, write `suspending` ─ rename to `suspended` ─ end the process ─► suspended
    suspended ─ new process, memory, devices ─ rename away ─ run, greet, thaw ─► running

The renames are the moments that count: while `suspended` is there, it is the VM, and a process of its name is nothing.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hutch.base.clock import Clock
from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.base.threads import in_thread
from hutch.base.units import MIB
from hutch.host.drivers.contract import DriverError, SandboxGone, SandboxSpec
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.image import (
    ImageUnusable,
    NoRoomForImage,
    check_room,
    image_bytes,
    read_image,
    write_image,
)
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.launcher import Launcher
from hutch.host.drivers.microvm.making import let_go_on_failure
from hutch.host.drivers.microvm.qemu import vm_memory_mib
from hutch.host.drivers.microvm.qemu_sandbox import QemuSandbox
from hutch.host.drivers.microvm.templates import MEMORY_NAME
from hutch.host.drivers.microvm.vm import VmFiles, end_vm
from hutch.host.kernel.copyfile import copy_file
from hutch.host.kernel.process_memory import MemoryMismatch, find_mapping

log = get_logger(__name__)


class Suspender:
    """Takes VMs of one driver to the disk and back. All verbs from one event loop, for one VM one at a time."""

    def __init__(self, launcher: Launcher, jail: MonitorJail, clock: Clock) -> None:
        self._launcher = launcher
        self._jail = jail
        self._clock = clock

    async def suspend(self, sandbox: QemuSandbox, name: str) -> None:
        """Take a VM to the disk. Raises `DriverError` if it could not be done, and the VM runs on; `SandboxGone`."""
        files, begun = sandbox.files, self._clock.monotonic()
        committed = False
        try:
            await sandbox.freeze()
            await self._write(sandbox, files.suspending, _no_more)
            os.rename(files.suspending, files.suspended)
            committed = True
        except OSError as error:
            raise DriverError("NotSuspended", f"the VM can't be written to the disk: {error}") from None
        finally:
            if not committed:
                await asyncio.to_thread(shutil.rmtree, files.suspending, True)
                await self._go_on(sandbox)
        await sandbox.release()
        await end_vm(name, files, self._jail)
        took_ms = round((self._clock.monotonic() - begun) * 1000)
        size_mib = await asyncio.to_thread(image_bytes, files.suspended) / MIB
        log.info("microVM suspended", task=sandbox.spec.task.task_id, took_ms=took_ms, mib=round(size_mib, 1))

    async def snapshot(self, sandbox: QemuSandbox, directory: Path) -> None:
        """Copy a VM, with its disk, to a new directory; it stands still for that long. Raises as `suspend`."""
        begun, done = self._clock.monotonic(), False
        try:
            await sandbox.freeze()
            await self._write(sandbox, directory, _copy_disk)
            done = True
        except OSError as error:
            raise DriverError("NotForked", f"the VM can't be copied: {error}") from None
        finally:
            await self._go_on(sandbox)
            if not done:
                await asyncio.to_thread(shutil.rmtree, directory, True)
        took_ms = round((self._clock.monotonic() - begun) * 1000)
        log.info("microVM copied", task=sandbox.spec.task.task_id, took_ms=took_ms)

    async def fork(self, directory: Path, spec: SandboxSpec) -> QemuSandbox:
        """Another task's VM from a copy; its guest has its new identity before anything in it goes on. Raises `DriverError`;
        what was made by then is the caller's to remove."""
        files = VmFiles(spec.directory)
        try:
            saved = await asyncio.to_thread(read_image, directory)
            files.vm.mkdir(mode=0o700)
            await in_thread(copy_file, directory / "scratch.img", files.scratch)
            sandbox = await self._launcher.resume(spec, saved, _nothing_before, copied=True)
            async with let_go_on_failure(sandbox):
                await sandbox.identify(plan.identify_members(spec))
                await sandbox.thaw()
        except ImageUnusable as error:
            raise DriverError("SnapshotUnusable", error.message) from None
        except OSError as error:
            raise DriverError("NotForked", f"the VM's files can't be copied: {error}") from None
        return sandbox

    async def _write(
        self, sandbox: QemuSandbox, directory: Path, besides: Callable[[QemuSandbox, Path], None]
    ) -> None:
        state = await sandbox.save_devices()
        work = in_thread(self._write_files, sandbox, directory, state, besides)
        await sandbox.while_alive(work, "be written to the disk")

    def _write_files(
        self,
        sandbox: QemuSandbox,
        directory: Path,
        state: bytes,
        besides: Callable[[QemuSandbox, Path], None],
    ) -> None:
        origin = sandbox.origin
        if origin is None:
            raise DriverError(
                "NotSuspended", "the VM was made by an earlier version of hutch", fix="run the task again"
            )
        spec = sandbox.spec.task
        try:
            memory_bytes = vm_memory_mib(spec.memory_mib) * MIB
            write_image(
                directory,
                find_mapping(sandbox.ref.pid, memory_bytes, MEMORY_NAME),
                state,
                machine=origin.machine,
                template=origin.template,
                pin=self._launcher.pin,
                saved_at=self._clock.now(),
                told=sandbox.ended_starts(),
                has_link=origin.has_link,
            )
            besides(sandbox, directory)
        except NoRoomForImage as error:
            raise DriverError("NoRoomToSuspend", error.message, fix="make room on that disk") from None
        except MemoryMismatch as error:
            raise DriverError("NotSuspended", error.message) from None

    async def _go_on(self, sandbox: QemuSandbox) -> None:
        """After a failure: the VM runs as before. If it can't any more it has ended, which it tells itself."""
        with contextlib.suppress(DriverError, HutchError):
            await sandbox.go_on()
            await sandbox.thaw()

    async def is_suspended(self, files: VmFiles, name: str) -> bool:
        """Whether its image is there. A process that is there too never ran, or runs no more; it goes."""
        if not (files.suspended / "manifest.json").exists():
            await asyncio.to_thread(shutil.rmtree, files.suspending, True)
            return False
        await end_vm(name, files, self._jail)
        return True

    async def resume(self, spec: SandboxSpec, name: str) -> QemuSandbox:
        """Bring a VM back. Raises `DriverError`, and the image stays; `SandboxGone` if it is lost."""
        files, begun = VmFiles(spec.directory), self._clock.monotonic()
        used = files.resumed
        is_image_used = False

        async def before_it_runs() -> None:
            nonlocal is_image_used
            # From here on the VM is in its process: when it has run, its disk is not what it was.
            os.rename(files.suspended, used)
            is_image_used = True

        try:
            saved = await asyncio.to_thread(read_image, files.suspended)
            await asyncio.to_thread(shutil.rmtree, used, True)
            sandbox = await self._launcher.resume(spec, saved, before_it_runs)
            await sandbox.thaw()
        except (ImageUnusable, OSError, DriverError) as error:
            await end_vm(name, files, self._jail)
            await asyncio.to_thread(shutil.rmtree, used, True)
            raise _resume_fault(error, is_image_used=is_image_used) from None
        await asyncio.to_thread(shutil.rmtree, used, True)
        took_ms = round((self._clock.monotonic() - begun) * 1000)
        log.info("microVM resumed", task=spec.task.task_id, took_ms=took_ms)
        return sandbox


async def _nothing_before() -> None:
    """A fork's image stays as it is when a VM begins to run from it."""


def _no_more(sandbox: QemuSandbox, directory: Path) -> None:
    """A suspended VM's disk stays where it is."""


def _copy_disk(sandbox: QemuSandbox, directory: Path) -> None:
    check_room(directory, sandbox.files.scratch.stat().st_blocks * 512)
    copy_file(sandbox.files.scratch, directory / "scratch.img")


def _resume_fault(error: HutchError | OSError, *, is_image_used: bool) -> DriverError:
    if isinstance(error, DriverError) and not isinstance(error, SandboxGone) and not is_image_used:
        return error
    text = error.message if isinstance(error, HutchError) else str(error)
    if is_image_used:
        return SandboxGone("ResumeFailed", f"the VM ended while it was being resumed: {text}")
    if isinstance(error, SandboxGone):
        return DriverError(error.kind, f"the VM could not be resumed: {text}", evidence=error.evidence)
    return DriverError("SuspendedImageUnusable", f"the suspended VM can't be used: {text}")
