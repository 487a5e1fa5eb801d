"""Volumes that are disks of their own: which a task has, where their files are, and how a file is made.

Below the store's directory: `disks/<disk id>.img` for those that stay when their task has ended, `shared/<name>.img` for
those that outlive their tasks. A disk that goes with its task is in the sandbox's directory, and goes with that.
"""

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

import msgspec

from hutch.base.units import GIB
from hutch.host.drivers.contract import DriverError, HostVolume
from hutch.host.kernel.copyfile import copy_file
from hutch.host.kernel.ext4 import make_sparse
from hutch.host.kernel.locks import lock_open_file
from hutch.host.kernel.mkfs import make_filesystem
from hutch.host.kernel.run import CommandFailed
from hutch.wire.taskspec import TaskSpec, VolumeSpec

SHARED_GIB = 64
"""Size of a shared volume's disk. Its file is sparse: what is not written takes no room."""
SHARED_FILESYSTEM = "ext4"
_DRAFT = ".new-"


class VolumeDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of a task, in the order of its volumes."""

    volume: str
    filesystem: str
    size_bytes: int
    name: str
    """Of its file below the store; "" for one that goes with its task."""
    snapshot_id: str = ""
    """What it begins as a copy of."""


def volume_disks(task: TaskSpec) -> tuple[VolumeDisk, ...]:
    """The disks that a task's volumes are in a microVM. Pure."""
    return tuple(_disk(v) for v in task.volumes if v.disk is not None or v.shared_name)


def _disk(volume: VolumeSpec) -> VolumeDisk:
    if volume.disk is None:
        return VolumeDisk(
            volume=volume.name,
            filesystem=SHARED_FILESYSTEM,
            size_bytes=SHARED_GIB * GIB,
            name=f"shared/{volume.shared_name}.img",
        )
    disk = volume.disk
    return VolumeDisk(
        volume=volume.name,
        filesystem=disk.filesystem,
        size_bytes=disk.size_gib * GIB,
        name=f"disks/{disk.disk_id}.img" if disk.keep else "",
        snapshot_id=disk.snapshot_id,
    )


def refuse_shared_disks(task: TaskSpec, word: str) -> None:
    """A VM that is not in memory does not hold its disks: another task may take one. Raises `DriverError`."""
    if any(d.name for d in volume_disks(task)):
        raise DriverError(
            "VolumesAttached",
            f"a task whose volumes outlive it can't be {word}: its disks would not be its own meanwhile",
            fix="use a volume that goes with the task",
        )


def refuse_file_systems(task: TaskSpec, word: str) -> None:
    """What serves a VM's file systems knows what the guest has open, and can't be saved. Raises `DriverError`."""
    if any(v.file_system is not None for v in task.volumes):
        raise DriverError(
            "VolumesAttached",
            f"a task with file systems can't be {word}: what it has open there would be lost",
            fix="use volumes on the task's own disk",
        )


def refuse_disks(task: TaskSpec, word: str) -> None:
    """A copy would share its original's disks. Raises `DriverError`."""
    if volume_disks(task):
        raise DriverError(
            "VolumesAttached",
            f"a task with volumes on disks of their own can't be {word}",
            fix="use volumes on the task's own disk",
        )


class VolumeStore:
    """The files of volumes on this host. Several drivers' tasks may ask at once."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made when it is needed."""
        self._directory = directory

    def place(self, disk: VolumeDisk, own: Path) -> Path:
        """Where a disk's file is. `own` is the sandbox's directory for its disks."""
        return self._directory / disk.name if disk.name else own / f"volume-{disk.volume}.img"

    async def make(self, disk: VolumeDisk, own: Path, task_id: str) -> Path:
        """The disk's file, made and formatted unless it is there. Raises `DriverError`.

        Whole or not there: it is made under another name, that is never seen again if this process is killed.
        """
        path = self.place(disk, own)
        draft = path.with_name(f"{_DRAFT}{path.stem}-{task_id}")
        try:
            if path.exists():
                return path
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            if disk.snapshot_id:
                await asyncio.to_thread(self._copy_snapshot, disk, draft)
            else:
                make_sparse(draft, disk.size_bytes)
                await make_filesystem(draft, disk.filesystem)
            _make_durable(draft)
            # Two tasks may make a shared one at once: the first counts.
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
            _make_durable(path.parent)
        except (OSError, CommandFailed) as error:
            raise DriverError(
                "VolumeNotMade",
                f'the disk of volume "{disk.volume}" can\'t be made: {error}',
                aws_prefix="ResourceInitializationError",
            ) from None
        finally:
            draft.unlink(missing_ok=True)
        return path

    def _copy_snapshot(self, disk: VolumeDisk, draft: Path) -> None:
        source = self._snapshot(disk.snapshot_id)
        if not source.is_file():
            raise DriverError(
                "SnapshotNotFound",
                f'snapshot {disk.snapshot_id}, of which volume "{disk.volume}" is to be made, is not on this host',
                fix="aws ec2 describe-snapshots lists what there is",
                aws_prefix="ResourceInitializationError",
            )
        copy_file(source, draft)

    def _snapshot(self, snapshot_id: str) -> Path:
        return self._directory / "snapshots" / f"{snapshot_id}.img"

    def make_snapshot(self, disk_id: str, snapshot_id: str) -> None:
        """Copy a disk that stays and no VM has. Whole or not there. Blocks. Raises `DriverError`, `OSError`."""
        image, target = self._directory / "disks" / f"{disk_id}.img", self._snapshot(snapshot_id)
        try:
            fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DriverError("NotFound", f"this host has no disk of volume {disk_id}") from None
        draft = target.with_name(f"{_DRAFT}{snapshot_id}")
        try:
            # Held while it is copied: no VM gets it meanwhile.
            if not lock_open_file(fd):
                raise DriverError("VolumeInUse", f'the disk of volume "{disk_id}" is attached to a VM')
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            copy_file(image, draft)
            _make_durable(draft)
            os.rename(draft, target)
            _make_durable(target.parent)
        finally:
            draft.unlink(missing_ok=True)
            os.close(fd)

    def remove_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot; no error if there is none. Raises `OSError`."""
        self._snapshot(snapshot_id).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what was half made when an earlier agent was killed. To be called before anything is made."""
        for draft in self._directory.glob(f"*/{_DRAFT}*"):
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)

    def kept(self) -> tuple[HostVolume, ...]:
        """What is there, in order of name. Blocks."""
        found = []
        for kind in ("shared", "disks"):
            for path in sorted((self._directory / kind).glob("*")):
                if path.name.startswith(_DRAFT):
                    continue
                is_disk = path.suffix == ".img" and path.is_file()
                taken = path.stat().st_blocks * 512 if is_disk else None
                word = "disk" if kind == "disks" else kind
                found.append(HostVolume(kind=word, name=path.stem if is_disk else path.name, bytes=taken))
        return tuple(found)

    def remove(self, name: str) -> None:
        """Remove one of those that `kept` names. Blocks. Raises `DriverError` if a VM has its disk."""
        for place in ("shared", "disks"):
            image = self._directory / place / f"{name}.img"
            if image.is_file():
                _remove_image(image)
                return
        directory = self._directory / "shared" / name
        if directory.is_dir():
            # Under a name that is never seen again if this process is killed on the way.
            gone = directory.with_name(f"{_DRAFT}{name}-gone")
            os.rename(directory, gone)
            shutil.rmtree(gone)

    def shared_directory(self, name: str) -> Path:
        """Where a shared volume of containers on the shared kernel is."""
        return self._directory / "shared" / name


def _remove_image(image: Path) -> None:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not lock_open_file(fd):
            raise DriverError("VolumeInUse", f'the disk of volume "{image.stem}" is attached to a VM')
        image.unlink()
    finally:
        os.close(fd)


def _make_durable(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
