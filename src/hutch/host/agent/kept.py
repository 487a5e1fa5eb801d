"""Disks of tasks that have stopped: kept within bounds, and looked into in sandboxes of their own (see docs/design/exec.md).

Below the directory, for each task: `manifest.json` (there is one once the disk is whole), `disk` (the driver's), `look` (the
sandbox in which somebody looks into it now). `dropped.json` says why disks are not there any more.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable
from pathlib import Path

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.base.units import MIB
from hutch.host.agent.look import Look, LookStream
from hutch.host.agent.taskfile import TaskFile, without_secrets
from hutch.host.drivers.contract import (
    Attachment,
    Driver,
    ExecStream,
    HostFault,
    RootImage,
    SandboxSpec,
    SupportsExec,
    SupportsKeptDisks,
)
from hutch.host.images.contract import ImageStore
from hutch.model.exec import ExecSpec
from hutch.rules.kept_disks import Drop, KeptDiskView, disks_to_drop
from hutch.wire.facts import KeptDiskFact
from hutch.wire.taskspec import TaskSpec

log = get_logger(__name__)

MAX_LOOKS = 4
"""Sandboxes at a time, on one host: they are not part of what tasks may reserve."""
MAX_NOTES = 1000
MANIFEST = "manifest.json"
LOOK_SUFFIX = "-look"
_GONE = ".gone-"


class KeptLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a host keeps. `bytes` 0: nothing. `life_s`: seconds after the stop."""

    bytes: int = 0
    life_s: float = 0.0


class _Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that is needed to look into a disk, without the values of secrets."""

    spec: TaskSpec
    driver: str
    images: dict[str, RootImage]
    attachment: Attachment
    kept_at: float
    bytes: int
    is_failure: bool = False


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task's disk is not kept, since when."""

    at: float
    reason: str


class _Disk:
    """A disk that is kept."""

    def __init__(self, manifest: _Manifest) -> None:
        self.manifest = manifest
        self.lock = asyncio.Lock()
        self.look: Look | None = None

    def view(self) -> KeptDiskView:
        m = self.manifest
        return KeptDiskView(
            task_id=m.spec.task_id,
            kept_at=m.kept_at,
            bytes=m.bytes,
            is_failure=m.is_failure,
            is_open=self.lock.locked() or self.look is not None,
        )


class KeptDisks:
    """All of one host; `directory` is their own, on the file system of the tasks' directories."""

    def __init__(
        self,
        directory: Path,
        drivers: tuple[Driver, ...],
        images: ImageStore,
        clock: Clock,
        limits: KeptLimits,
    ) -> None:
        self._directory = directory
        self._drivers = {d.name: d for d in drivers}
        self._images = images
        self._clock = clock
        self._limits = limits
        self._disks: dict[str, _Disk] = {}
        self._notes: dict[str, _Note] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._tidying = asyncio.Lock()
        self._noting = asyncio.Lock()
        self._is_noting = False
        """A round of writing them is about to begin."""

    async def start(self, unfinished: frozenset[str]) -> None:
        """Take over what earlier agents kept; what they left of sandboxes is removed. `unfinished`: tasks whose disks may be
        half moved."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._notes = await asyncio.to_thread(_read_notes, self._notes_path)
        for directory in sorted(p for p in self._directory.iterdir() if p.is_dir()):
            task_id = directory.name
            if task_id.startswith(_GONE):
                self._images.release(task_id.removeprefix(_GONE))
                await asyncio.to_thread(shutil.rmtree, directory, True)
                continue
            manifest = await asyncio.to_thread(_read_manifest, directory)
            if manifest is not None:
                self._disks[task_id] = _Disk(manifest)
                await self._remove_look(task_id)
            elif task_id not in unfinished:
                await self._remove_files(task_id)
        await self._tidy()

    def has(self, task_id: str) -> bool:
        """Whether the task's disk is kept. Its images then stay in use under the task's id."""
        return task_id in self._disks

    async def keep(self, driver: Driver, content: TaskFile, *, is_failure: bool) -> None:
        """Move an ended task's disk here, if disks are kept. No disk is worth the task's clean-up: what goes wrong is
        noted, and `destroy` is still to be called."""
        task_id, handle, attachment = content.spec.task_id, content.handle, content.attachment
        if not self._limits.bytes or self.has(task_id) or handle is None or attachment is None:
            return
        if not isinstance(driver, SupportsKeptDisks):
            self._note(task_id, f"tasks of launch type {content.spec.launch_type} have no disk of their own")
            return
        place = self._directory / task_id
        try:
            for directory in (place, place / "disk"):
                directory.mkdir(mode=0o700, exist_ok=True)
            taken = await driver.keep_disk(handle, str(place / "disk"))
            if taken > self._limits.bytes:
                text = f"it takes {taken // MIB} MiB, more than all of them may (--kept-disks-mib)"
                raise HostFault("KeptDiskTooLarge", text)
            manifest = _Manifest(
                spec=without_secrets(content.spec),
                driver=driver.name,
                images=content.images,
                attachment=attachment,
                kept_at=self._clock.now(),
                bytes=taken,
                is_failure=is_failure,
            )
            await asyncio.to_thread(_replace_file, place / MANIFEST, msgspec.json.encode(manifest))
        except (HutchError, OSError) as error:
            reason = error.message if isinstance(error, HutchError) else str(error)
            log.warning("disk not kept", task=task_id, reason=reason)
            self._note(task_id, reason)
            await asyncio.to_thread(shutil.rmtree, place, True)
            return
        self._disks[task_id] = _Disk(manifest)
        self._later(self._tidy())

    def describe(self, task_id: str) -> KeptDiskFact:
        """What there is to be told of a task's disk."""
        disk = self._disks.get(task_id)
        if disk is not None:
            m = disk.manifest
            return KeptDiskFact(
                task_id=task_id,
                is_kept=True,
                bytes=m.bytes,
                kept_at=m.kept_at,
                until=m.kept_at + self._limits.life_s,
                is_open=disk.look is not None,
            )
        note = self._notes.get(task_id)
        if note is not None:
            return KeptDiskFact(task_id=task_id, is_kept=False, since=note.at, reason=note.reason)
        reason = "its host never had a disk of it, or dropped it long ago"
        if not self._limits.bytes:
            reason = "its host keeps none (--kept-disks-mib 0)"
        return KeptDiskFact(task_id=task_id, is_kept=False, reason=reason)

    def all(self) -> tuple[KeptDiskFact, ...]:
        """Those that are kept, the newest first."""
        found = sorted(self._disks.values(), key=lambda d: -d.manifest.kept_at)
        return tuple(self.describe(d.manifest.spec.task_id) for d in found)

    async def exec(self, task_id: str, container: str, spec: ExecSpec) -> ExecStream:
        """Run a process in a container of a stopped task, in the sandbox that there is for it, or a new one. The sandbox
        ends with its last process. Raises `HostFault`."""
        disk = self._disks.get(task_id)
        if disk is None:
            raise HostFault(
                "NotFound", f"the disk of task {task_id} is not kept: {self.describe(task_id).reason}"
            )
        chosen = next((c for c in disk.manifest.spec.containers if c.name == container), None)
        if chosen is None:
            raise HostFault("NotFound", f"task {task_id} has no container {container[:100]!r}")
        async with disk.lock:
            if self._disks.get(task_id) is not disk:
                raise HostFault("NotFound", f"the disk of task {task_id} was dropped just now")
            look = disk.look or await self._open(disk)
            try:
                stream = await look.exec(chosen, spec)
            finally:
                if not look.users:
                    await self._end_look(disk)
        return LookStream(stream, lambda: self._left(disk, look))

    async def _open(self, disk: _Disk) -> Look:
        task_id = disk.manifest.spec.task_id
        driver = self._drivers.get(disk.manifest.driver)
        if not isinstance(driver, SupportsKeptDisks) or not isinstance(driver, SupportsExec):
            raise HostFault(
                "NoDriver",
                f"the disk of task {task_id} is of driver {disk.manifest.driver}, which does not run here now",
                fix="start with it in --drivers",
            )
        if sum(1 for d in self._disks.values() if d.view().is_open) > MAX_LOOKS:
            raise HostFault(
                "TooManyLooks",
                f"{MAX_LOOKS} stopped tasks are being looked into on this host already",
                fix="end one of these sessions",
            )
        look = Look(driver, self._look_spec(disk), disk_directory=self._directory / task_id / "disk")
        disk.look = look
        try:
            await look.open()
        except BaseException:
            await self._end_look(disk)
            raise
        log.info("stopped task looked into", task=task_id)
        return look

    def _look_spec(self, disk: _Disk) -> SandboxSpec:
        m = disk.manifest
        task_id = m.spec.task_id
        return SandboxSpec(
            task=msgspec.structs.replace(m.spec, task_id=task_id + LOOK_SUFFIX),
            directory=str(self._directory / task_id / "look"),
            images=m.images,
            attachment=m.attachment,
        )

    async def _left(self, disk: _Disk, look: Look) -> None:
        """A process in a sandbox was let go of."""
        look.users -= 1
        async with disk.lock:
            if disk.look is look and not look.users:
                await self._end_look(disk)
        # It may be one that was only waited for.
        await self._tidy()

    async def _end_look(self, disk: _Disk) -> None:
        look, disk.look = disk.look, None
        if look is not None:
            await look.close()

    async def remove(self, task_id: str) -> None:
        """Drop a disk now; whoever looks into it is hung up on. Raises `HostFault` if there is none."""
        disk = self._disks.get(task_id)
        if disk is None:
            raise HostFault(
                "NotFound", f"the disk of task {task_id} is not kept: {self.describe(task_id).reason}"
            )
        async with disk.lock:
            await self._end_look(disk)
            await self._drop(Drop(task_id=task_id, reason="it was removed on request"))

    async def _tidy(self) -> None:
        """Drop what has to go, and come again when the next one is too old."""
        async with self._tidying:
            now = self._clock.now()
            views = [d.view() for d in self._disks.values()]
            limits = self._limits
            for drop in disks_to_drop(views, limit_bytes=limits.bytes, life_s=limits.life_s, now=now):
                # Somebody may have come while another one was dropped.
                if (disk := self._disks.get(drop.task_id)) is not None and not disk.view().is_open:
                    await self._drop(drop)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            waits = [
                v.kept_at + limits.life_s - now for d in self._disks.values() if not (v := d.view()).is_open
            ]
            if waits:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(max(0.0, min(waits)) + 1.0, lambda: self._later(self._tidy()))

    async def _drop(self, drop: Drop) -> None:
        if self._disks.pop(drop.task_id, None) is None:
            return
        self._note(drop.task_id, drop.reason)
        log.info("kept disk dropped", task=drop.task_id, reason=drop.reason)
        await self._remove_files(drop.task_id)

    async def _remove_files(self, task_id: str) -> None:
        """In this order: a disk whose images are not kept can't be looked into, images without a disk would stay."""
        gone = self._directory / f"{_GONE}{task_id}"
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread((self._directory / task_id).rename, gone)
        self._images.release(task_id)
        await asyncio.to_thread(shutil.rmtree, gone, True)

    async def _remove_look(self, task_id: str) -> None:
        directory = self._directory / task_id / "look"
        if not directory.exists():
            return
        driver = self._drivers.get(self._disks[task_id].manifest.driver)
        if driver is None:
            log.error(
                "what looked into a stopped task is left alone", task=task_id, fix="start with its driver"
            )
            return
        try:
            await driver.destroy_leftovers(str(directory), task_id + LOOK_SUFFIX)
        except HostFault as fault:
            log.error("leftovers not removed", directory=str(directory), reason=fault.message)
        await asyncio.to_thread(shutil.rmtree, directory, True)

    @property
    def _notes_path(self) -> Path:
        return self._directory / "dropped.json"

    def _note(self, task_id: str, reason: str) -> None:
        self._notes.pop(task_id, None)
        self._notes[task_id] = _Note(at=self._clock.now(), reason=reason)
        while len(self._notes) > MAX_NOTES:
            del self._notes[next(iter(self._notes))]
        if not self._is_noting:
            self._is_noting = True
            self._later(self._save_notes())

    async def _save_notes(self) -> None:
        """Once for all that was noted since the last time."""
        self._is_noting = False
        async with self._noting:
            await asyncio.to_thread(_replace_file, self._notes_path, msgspec.json.encode(self._notes))

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_logged(work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def settled(self) -> None:
        """All that follows from what was done until now is done."""
        while self._work:
            await asyncio.wait(list(self._work))

    async def close(self) -> None:
        """The agent ends: nobody looks into anything any more; the disks stay."""
        if self._timer is not None:
            self._timer.cancel()
        for disk in list(self._disks.values()):
            async with disk.lock:
                await self._end_look(disk)
        await self.settled()
        if self._timer is not None:
            self._timer.cancel()


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except (HutchError, OSError) as error:
        log.error("kept disks not tidied", reason=str(error))


def _read_manifest(directory: Path) -> _Manifest | None:
    try:
        return msgspec.json.decode((directory / MANIFEST).read_bytes(), type=_Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.error("kept disk unreadable", directory=str(directory), reason=str(error))
        return None


def _replace_file(path: Path, data: bytes) -> None:
    """The old or the new one, whole, whoever is killed; not fsynced, as the disks themselves are not."""
    draft = path.with_suffix(".new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(data)
    draft.rename(path)


def _read_notes(path: Path) -> dict[str, _Note]:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Note])
    return {}
