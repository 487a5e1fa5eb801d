"""What the containers of a task see of each other's volumes: `volumesFrom`, and the images' own VOLUMEs. Pure."""

import hashlib
import re
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from hutch.host.drivers.contract import DriverError, RootImage
from hutch.wire.taskspec import MountSpec, TaskSpec, VolumeSpec

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


class Mounts(msgspec.Struct, frozen=True, kw_only=True):
    """All mounts of a task's volumes. `volumes` has, besides the task's, those that its images declare."""

    volumes: tuple[VolumeSpec, ...]
    of: dict[str, tuple[MountSpec, ...]]
    """By container name; each path at most once."""

    def candidates(self, volume: str) -> tuple[tuple[str, str], ...]:
        """(container, path) pairs whose image may have content for the volume, in the order in which they count. Files that
        are a volume are all that it has."""
        if any(v.name == volume and v.files is not None for v in self.volumes):
            return ()
        return tuple((name, m.path) for name, mounts in self.of.items() for m in mounts if m.volume == volume)


def check_names(task: TaskSpec) -> None:
    """Names of containers and volumes become names of files. Raises `DriverError`."""
    names = [c.name for c in task.containers] + [v.name for v in task.volumes]
    names += [v.shared_name for v in task.volumes if v.shared_name]
    names += [v.disk.disk_id for v in task.volumes if v.disk is not None]
    names += [v.disk.snapshot_id for v in task.volumes if v.disk is not None and v.disk.snapshot_id]
    names += [v.file_system.file_system_id for v in task.volumes if v.file_system is not None]
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            raise DriverError("InvalidName", f"{name[:60]!r} can't be the name of a container or volume")


def task_mounts(task: TaskSpec, images: Mapping[str, RootImage]) -> Mounts:
    """Carry out `volumesFrom`, over as many steps as there are. Raises `DriverError`.

    A VOLUME of an image becomes a volume only where another container mounts it: for its own container its root, which
    stays through restarts, does the same.
    """
    files = {v.name for v in task.volumes if v.files is not None}
    own = {c.name: {m.path: _seen(m, files) for m in c.mounts} for c in task.containers}
    extra: dict[str, VolumeSpec] = {}
    for source in sorted({v.container for c in task.containers for v in c.volumes_from}):
        if source not in own:
            raise DriverError(
                "UnknownContainer", f'volumesFrom names "{source}", which the task does not have'
            )
        for path in _declared(images.get(source)):
            if path not in own[source]:
                volume = VolumeSpec(name=_name(source, path))
                extra[volume.name] = volume
                own[source][path] = MountSpec(volume=volume.name, path=path)
    whole: dict[str, dict[str, MountSpec]] = {}

    def mounts_of(name: str, above: tuple[str, ...]) -> dict[str, MountSpec]:
        if name in above:
            raise DriverError("VolumesFromCycle", f'volumesFrom of container "{name}" leads back to itself')
        if name not in whole:
            found = dict(own[name])
            for given in by_name[name].volumes_from:
                for path, mount in mounts_of(given.container, (*above, name)).items():
                    read_only = mount.read_only or given.read_only
                    found.setdefault(path, MountSpec(volume=mount.volume, path=path, read_only=read_only))
            whole[name] = found
        return whole[name]

    by_name = {c.name: c for c in task.containers}
    of = {c.name: tuple(mounts_of(c.name, ()).values()) for c in task.containers}
    return Mounts(volumes=(*task.volumes, *extra.values()), of=of)


def _seen(mount: MountSpec, files: set[str]) -> MountSpec:
    """Files that the definition gives are nobody's to change, whatever the mount says."""
    return replace(mount, read_only=True) if mount.volume in files else mount


def _declared(image: RootImage | None) -> list[str]:
    """The VOLUME paths of an image; what is no path is nobody's."""
    declared = image.config.get("Volumes") if image is not None else None
    paths = declared if isinstance(declared, dict) else {}
    return sorted(p for p in paths if isinstance(p, str) and p.startswith("/") and ".." not in p.split("/"))


def _name(container: str, path: str) -> str:
    """A volume's name that no task definition can have (they have no dots)."""
    return f"image.{hashlib.sha256(f'{container}:{path}'.encode()).hexdigest()[:16]}"
