"""The files and mounts of a sandbox: made before its containers start, removed with it. Blocking; in a thread."""

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from hutch.host.drivers.container.plan import Places, etc_texts
from hutch.host.drivers.container.seeding import seed
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.oci_config import DeviceNode
from hutch.host.drivers.task_mounts import task_mounts
from hutch.host.drivers.volume_files import contents
from hutch.host.kernel.mounts import mount_overlay, mount_ramfs, mount_tmpfs, mounts_below, unmount_below
from hutch.wire.taskspec import FilesSpec, LogRouterSpec, TaskSpec, VolumeSpec


def furnish(spec: SandboxSpec, host: str, kept: Path | None = None) -> None:
    """All that containers share or keep through their restarts: roots, volumes, files of /etc. `kept`: on top of what the
    containers of another box wrote, which stays as it is. Raises `DriverError`."""
    places = Places(Path(spec.directory))
    try:
        places.box.mkdir(mode=0o700)
        places.runtime.mkdir()
        (places.directory / "logs").mkdir(mode=0o700, exist_ok=True)
        mounts = task_mounts(spec.task, spec.images)
        for volume in mounts.volumes:
            if kept is not None:
                _open_volume(places, volume, kept / "volumes" / volume.name)
            else:
                _make_volume(spec, places, volume, mounts.candidates(volume.name))
        if spec.task.ipc_mode == "task":
            places.shm.mkdir()
            size_mib = max(c.shm_mib for c in spec.task.containers)
            mount_tmpfs(str(places.shm), f"mode=1777,size={size_mib}m")
        for container in spec.task.containers:
            etc = places.etc(container.name)
            etc.mkdir(parents=True)
            for path_inside, text in etc_texts(spec, container, host).items():
                file = etc / path_inside.rpartition("/")[2]
                file.write_text(text)
                file.chmod(0o644)
            if container.log_router is not None:
                places.router_directory.mkdir(parents=True)
                _write_router(places.router_config, container.log_router)
            above = str(kept / "overlay" / container.name / "upper") if kept is not None else ""
            _mount_root(places, container.name, spec.images[container.name].directory, above)
    except OSError as error:
        raise DriverError(
            "SandboxNotMade",
            f"the task's directories can't be made: {error}",
            fix="the data directory must be on a file system that overlayfs can write to (ext4, xfs, btrfs)",
            aws_prefix="ResourceInitializationError",
        ) from None


def _write_router(path: Path, router: LogRouterSpec) -> None:
    texts = {path: router.config}
    if router.include_path:
        # A box that is only looked into has no values.
        texts[path.with_suffix(".include")] = router.include or ""
    for file, text in texts.items():
        file.write_text(text)
        file.chmod(0o644)


def _make_volume(
    spec: SandboxSpec, places: Places, volume: VolumeSpec, candidates: Iterable[tuple[str, str]]
) -> None:
    """A fresh volume gets what the images have at its path; a directory of the host is left as it is."""
    if volume.source_path:
        # As Docker does: what is missing on the host is made, and stays there.
        Path(volume.source_path).mkdir(parents=True, exist_ok=True)
        return
    if volume.disk is not None or volume.shared_name:
        return
    path = places.volume(volume.name)
    path.mkdir(parents=True)
    if volume.files is not None:
        _write_files(path, volume.files)
        return
    seed(path, [(Path(spec.images[name].directory), inside) for name, inside in candidates])


def _open_volume(places: Places, volume: VolumeSpec, kept: Path) -> None:
    """A volume with what is kept of one, or an empty one."""
    target = places.volume(volume.name)
    target.mkdir(parents=True)
    if kept.is_dir():
        _mount_over(str(kept), places.box / "volume-overlay" / volume.name, target)


def _write_files(directory: Path, files: FilesSpec) -> None:
    """In memory, and nowhere else."""
    mount_ramfs(str(directory))
    for path, text in contents(files).items():
        file = directory / path
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(text.encode())
            os.fchown(f.fileno(), files.uid, files.gid)
            os.fchmod(f.fileno(), files.mode)


def device_nodes(task: TaskSpec) -> dict[str, DeviceNode]:
    """The nodes of the host's devices that the task's containers ask for. Raises `DriverError`."""
    found = {}
    for container in task.containers:
        for device in container.devices:
            try:
                seen = os.stat(device.host_path)
            except OSError as error:
                raise _no_device(container.name, device.host_path, error.strerror or "") from None
            if not stat.S_ISCHR(seen.st_mode) and not stat.S_ISBLK(seen.st_mode):
                raise _no_device(container.name, device.host_path, "it is not a device")
            kind = "c" if stat.S_ISCHR(seen.st_mode) else "b"
            numbers = os.major(seen.st_rdev), os.minor(seen.st_rdev)
            found[device.host_path] = DeviceNode(kind=kind, major=numbers[0], minor=numbers[1])
    return found


def _no_device(container: str, path: str, reason: str) -> DriverError:
    return DriverError(
        "NoSuchDevice",
        f'container "{container}" asks for {path[:100]}, which this host does not have: {reason}',
        fix="correct linuxParameters.devices",
        aws_prefix="CannotCreateContainerError",
    )


def _mount_root(places: Places, name: str, lower: str, above: str) -> None:
    places.root(name).mkdir(parents=True)
    _mount_over(lower, places.overlay(name), places.root(name), above)


def _mount_over(lower: str, overlay: Path, target: Path, above: str = "") -> None:
    upper, work = overlay / "upper", overlay / "work"
    for directory in (upper, work):
        directory.mkdir(parents=True)
    # The root directory that a container sees is the upper one: it must look like the image's.
    seen = os.stat(above or lower)
    os.chown(upper, seen.st_uid, seen.st_gid)
    os.chmod(upper, seen.st_mode & 0o7777)
    mount_overlay(lower, str(upper), str(work), str(target), above=above)


def make_bundle(bundle: Path, config: dict[str, Any]) -> None:
    """The directory of one start. Raises `DriverError`."""
    try:
        (bundle / "exit").mkdir(parents=True)
        (bundle / "config.json").write_bytes(msgspec.json.encode(config))
    except OSError as error:
        raise DriverError("BundleNotMade", f"the container's bundle can't be made: {error}") from None


def discard_bundle(places: Places, bundle: Path, runtime_id: str) -> None:
    """Remove what a start left in files."""
    forget(places, runtime_id)
    shutil.rmtree(bundle, ignore_errors=True)


def forget(places: Places, runtime_id: str) -> None:
    """Remove what the runtime knows of a start: a directory of that name, or gVisor's files that begin with it."""
    shutil.rmtree(places.runtime / runtime_id, ignore_errors=True)
    for file in places.runtime.glob(f"{runtime_id}_*"):
        file.unlink(missing_ok=True)


def unmount(places: Places) -> None:
    """Nothing is mounted in the box any more. Raises `OSError`: never delete or move through a mount, below it may be a
    directory of the host."""
    unmount_below(places.box)
    if mounts_below(places.box):
        raise OSError(f"something is still mounted below {places.box}")


def clear(places: Places) -> None:
    """Remove everything but the logs; no error if nothing is there. Raises `OSError`."""
    unmount(places)
    if places.box.exists():
        shutil.rmtree(places.box)


def try_overlay(directory: Path) -> None:
    """Whether overlays can be mounted with their upper directory here. Raises `OSError`."""
    work = directory / "overlay-probe"
    try:
        for name in ("lower", "upper", "work", "root"):
            (work / name).mkdir(parents=True, exist_ok=True)
        mount_overlay(*(str(work / n) for n in ("lower", "upper", "work", "root")))
    finally:
        unmount_below(work)
        shutil.rmtree(work, ignore_errors=True)
