"""What the making of a VM needs, whatever its monitor: measured phases, a scratch disk, a task for VMs that have none, and
what is done when it fails."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from hutch.base.clock import Clock
from hutch.base.threads import in_thread
from hutch.host.drivers.contract import Attachment, DriverError, SandboxPhase, SandboxSpec
from hutch.host.drivers.microvm.sandbox import Sandbox
from hutch.host.drivers.microvm.vm import VmFiles
from hutch.host.kernel.copyfile import copy_file
from hutch.host.kernel.ext4 import format_ext4, make_sparse
from hutch.host.kernel.run import CommandFailed
from hutch.wire.taskspec import TaskSpec

T = TypeVar("T")
EMPTY_TASK_MEMORY_MIB = 64
RESTORE_TIMEOUT_S = 30.0
"""Within which a restored guest answers."""
_CPU = re.compile(r"^(?:model name|flags)\s*:.*$", re.MULTILINE)


class Phases:
    """Parts of a launch, measured."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.told: list[SandboxPhase] = []

    async def measure(self, name: str, work: Awaitable[T], detail: str = "") -> T:
        """Wait for something, and remember how long it took, also if it fails."""
        started_at = self._clock.now()
        try:
            return await work
        finally:
            self.add(name, started_at, detail)

    def add(self, name: str, started_at: float, detail: str = "") -> None:
        """Something that began then has ended now."""
        phase = SandboxPhase(name=name, started_at=started_at, ended_at=self._clock.now(), detail=detail)
        self.told.append(phase)


class Once:
    """Work that must have been done before the first launch. Those that come meanwhile wait for it; if it failed, the next
    one tries again."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._is_done = False

    async def do(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, unless it is done. Raises what it raises."""
        async with self._lock:
            if not self._is_done:
                await work()
                self._is_done = True


@contextlib.asynccontextmanager
async def let_go_on_failure(sandbox: Sandbox) -> AsyncIterator[None]:
    """Unless all goes well, the VM is let go of; its process and files are left to whoever asked for it."""
    try:
        yield
    except BaseException:
        await sandbox.release()
        raise


@contextlib.asynccontextmanager
async def scratch_disk(files: VmFiles, size_bytes: int, kept: Path | None = None) -> AsyncIterator[None]:
    """The writable disk: its file is there at the beginning, its file system at the end. `kept`: the directory with the one
    of a task that has ended, to be copied. Raises `DriverError`."""
    formatting: asyncio.Task[None] | None = None
    try:
        files.vm.mkdir(mode=0o700, exist_ok=True)
        if kept is not None:
            await in_thread(copy_file, kept / files.scratch.name, files.scratch)
            yield
            return
        make_sparse(files.scratch, size_bytes)
        formatting = asyncio.create_task(format_ext4(files.scratch))
        yield
        await formatting
    except (OSError, CommandFailed) as error:
        raise DriverError(
            "ScratchDiskFailed",
            f"the task's disk can't be made: {error}",
            aws_prefix="ResourceInitializationError",
        ) from None
    finally:
        if formatting is not None:
            formatting.cancel()
            await asyncio.gather(formatting, return_exceptions=True)


def no_task(name: str, directory: str) -> SandboxSpec:
    """What a VM without a task is made from."""
    task = TaskSpec(
        task_id=name,
        cluster="",
        arn="",
        family="",
        revision=0,
        launch_type="FARGATE",
        cpu_units=1024,
        memory_mib=EMPTY_TASK_MEMORY_MIB,
        ephemeral_gib=1,
        network_mode="none",
        containers=(),
    )
    return SandboxSpec(task=task, directory=directory, images={}, attachment=Attachment())


def host_cpu() -> str:
    """What the host's CPU is: a saved state is of no use on another."""
    return "\n".join(dict.fromkeys(_CPU.findall(Path("/proc/cpuinfo").read_text())))
