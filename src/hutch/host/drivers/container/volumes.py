"""Volumes that are not simply directories below the sandbox: shared ones, and those on disks of their own."""

import asyncio
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from hutch.host.drivers.container.plan import Places
from hutch.host.drivers.container.seeding import seed
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.task_mounts import task_mounts
from hutch.host.drivers.volume_disks import VolumeStore, volume_disks
from hutch.host.kernel.mkfs import mount_image
from hutch.host.kernel.run import CommandFailed


def shared_paths(spec: SandboxSpec, store: VolumeStore) -> dict[str, str]:
    """Where the task's shared volumes are. Pure."""
    return {v.name: str(store.shared_directory(v.shared_name)) for v in spec.task.volumes if v.shared_name}


async def attach_volumes(spec: SandboxSpec, store: VolumeStore) -> None:
    """Make what is not there yet, and mount the disks below the sandbox's directory. Raises `DriverError`; what was made is
    removed with the sandbox, but for what outlives it."""
    places, mounts = Places(Path(spec.directory)), task_mounts(spec.task, spec.images)
    for volume in spec.task.volumes:
        if volume.shared_name:
            candidates = [
                (Path(spec.images[name].directory), path) for name, path in mounts.candidates(volume.name)
            ]
            directory = store.shared_directory(volume.shared_name)
            await asyncio.to_thread(_make_shared, directory, spec.task.task_id, candidates)
    for disk in volume_disks(spec.task):
        volume = next(v for v in spec.task.volumes if v.name == disk.volume)
        if volume.shared_name:
            continue
        image = await store.make(disk, places.box / "disks", spec.task.task_id)
        target = places.volume(disk.volume)
        try:
            await asyncio.to_thread(target.mkdir, parents=True)
            await mount_image(image, target)
        except (OSError, CommandFailed) as error:
            raise DriverError(
                "VolumeNotMounted",
                f'the disk of volume "{disk.volume}" can\'t be mounted: {error}',
                aws_prefix="ResourceInitializationError",
            ) from None


def _make_shared(directory: Path, task_id: str, candidates: Iterable[tuple[Path, str]]) -> None:
    """A volume that is new gets what the images have at its path before anybody can see it: whoever is in a container that
    has the volume can't lead the copy elsewhere by a link."""
    if directory.is_dir():
        return
    draft = directory.with_name(f".new-{directory.name}-{task_id}")
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        seed(draft, candidates)
        try:
            os.rename(draft, directory)
        except OSError:
            # Another task made it meanwhile, and has something in it.
            if not directory.is_dir():
                raise
    except OSError as error:
        raise DriverError(
            "VolumeNotMade",
            f'volume "{directory.name}" can\'t be made: {error}',
            aws_prefix="ResourceInitializationError",
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
