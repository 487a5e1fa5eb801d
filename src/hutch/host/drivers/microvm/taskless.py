"""A VM that is no task's and is there for a short while: to prove that the accelerator works, or to become a template."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.making import no_task
from hutch.host.drivers.microvm.sandbox import Sandbox
from hutch.host.drivers.microvm.vm import VmFiles, remove_vm, vm_name

F = TypeVar("F", bound=VmFiles)
S = TypeVar("S", bound=Sandbox)


class TasklessVm(Generic[F]):
    """One such VM, there or not; its directory is its own."""

    def __init__(self, files: F, title: str, platform_id: str, jail: MonitorJail) -> None:
        """`title` is in the place of a task's id, also in the VM's name."""
        self.files = files
        self.name = vm_name(platform_id, title)
        self.spec = no_task(title, str(files.root))
        self._jail = jail

    @contextlib.asynccontextmanager
    async def made(self, boot: Callable[[], Awaitable[S]]) -> AsyncIterator[S]:
        """The VM that `boot` makes in an empty directory; nothing is left of it afterwards, nor of one that was there before.
        Raises what `boot` raises, and `DriverError`."""
        sandbox: S | None = None
        try:
            await self.remove()
            self.files.root.mkdir(mode=0o700, parents=True)
            sandbox = await boot()
            yield sandbox
        finally:
            if sandbox is not None:
                await sandbox.release()
            await self.remove()

    async def remove(self) -> None:
        """End it, and remove its directory. Idempotent. Raises `DriverError` if its jail can't be removed."""
        await remove_vm(self.name, self.files, self._jail)
        await asyncio.to_thread(shutil.rmtree, self.files.root, True)
