"""Disks of VMs that have ended, and what a VM is made of in which one of them is looked into.

The kept files stay as they are: that VM gets copies (which share their blocks where the file system can do that), has no
network, and one process in each container that only waits. See docs/design/exec.md.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.units import CPU_UNITS_PER_VCPU
from hutch.host.drivers.contract import Attachment, DriverError, RootImage, SandboxSpec
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.image import NoRoomForImage, check_room
from hutch.host.drivers.microvm.vm import VmFiles
from hutch.host.drivers.oci_config import environment
from hutch.wire.fleet import ContainerSpec, VolumeSpec

LOOK_MEMORY_MIB = 512
"""The most common size, for which a template is often there."""
TOOLBOX_PATH = "/.hutch/toolbox"
HOLD_PATH = "/.hutch/hold"
_TOOLBOX = "-toolbox"
"""Among the images; not a name that a container can have."""


def keep_disks(files: VmFiles, directory: Path) -> int:
    """Move the disks of an ended VM to a directory; what they take of the host's disk, in bytes. What was moved before by
    somebody who was killed is there already. Blocks. Raises `DriverError`."""
    try:
        # The scratch disk last: whoever finds it finds all.
        for path in (*sorted(files.vm.glob("volume-*.img")), files.scratch):
            if path.exists():
                os.replace(path, directory / path.name)
        if not (directory / files.scratch.name).exists():
            raise DriverError("NoDiskKept", "the VM's disk is not there any more")
        return kept_bytes(directory)
    except OSError as error:
        raise DriverError("NoDiskKept", f"the VM's disk can't be moved: {error}") from None


def kept_bytes(directory: Path) -> int:
    """What kept disks take of the host's. Blocks. Raises `OSError`."""
    scratch = directory / VmFiles(directory).scratch.name
    return sum(path.stat().st_blocks * 512 for path in {scratch, *directory.glob("*.img")})


def check_kept(directory: Path, target: Path) -> None:
    """Raises `DriverError` unless there are kept disks, and room for copies of them."""
    try:
        check_room(target, kept_bytes(directory))
    except NoRoomForImage as error:
        raise DriverError(
            "NoRoomForDisk", f"the kept disk can't be copied: {error}", fix="free space"
        ) from None
    except OSError as error:
        raise DriverError("NoDiskKept", f"the kept disk can't be read: {error}") from None


def look_spec(spec: SandboxSpec, toolbox: Path) -> SandboxSpec:
    """The specification of a VM in which kept disks are looked into: small, without network, and with empty directories
    for volumes that outlive tasks (they may be another task's by now). Pure but for asking whether there is a toolbox."""
    task = msgspec.structs.replace(
        spec.task,
        cpu_units=CPU_UNITS_PER_VCPU,
        memory_mib=LOOK_MEMORY_MIB,
        volumes=tuple(_own_volume(v) for v in spec.task.volumes),
    )
    link = Attachment(nameservers=spec.attachment.nameservers, search=spec.attachment.search)
    images = dict(spec.images)
    for image in images.values():
        if not os.path.exists(image.erofs_path):
            raise DriverError("NoRootDisk", f"image {image.reference} is not on this host any more")
    if toolbox.exists():
        images[_TOOLBOX] = RootImage(
            reference="toolbox", digest="toolbox", config={}, erofs_path=str(toolbox)
        )
    return msgspec.structs.replace(spec, task=task, images=images, attachment=link)


def _own_volume(volume: VolumeSpec) -> VolumeSpec:
    if volume.shared_name or (volume.disk is not None and volume.disk.keep):
        return VolumeSpec(name=volume.name)
    return volume


def with_toolbox(spec: SandboxSpec, container: ContainerSpec) -> ContainerSpec:
    """The container with the toolbox's programs after all that it has. Pure."""
    if _TOOLBOX not in spec.images:
        return container
    whole = environment(container, spec.images[container.name], "/", "")
    path = next((e.partition("=")[2] for e in whole if e.startswith("PATH=")), "")
    changed = {**container.environment, "PATH": f"{path}:{TOOLBOX_PATH}" if path else TOOLBOX_PATH}
    return msgspec.structs.replace(container, environment=changed)


def hold_members(spec: SandboxSpec, container: ContainerSpec, number: int) -> dict[str, Any]:
    """Members of the `start` request for a container whose process only waits. Pure. Raises `DriverError`."""
    waiting = msgspec.structs.replace(
        container,
        entry_point=(HOLD_PATH, "-P"),
        command=None,
        user="0",
        working_directory="/",
        tty=False,
        interactive=False,
        init_process=False,
    )
    members = plan.start_members(spec, waiting, number, first=False)
    binds = [_bind(plan.INIT_PROGRAM, HOLD_PATH)]
    if _TOOLBOX in spec.images:
        binds.append(_bind(plan.image_disks(spec)[_TOOLBOX].mount_path, TOOLBOX_PATH))
    members["config"]["mounts"] = [*members["config"]["mounts"], *binds]
    return members


def _bind(source: str, destination: str) -> dict[str, Any]:
    return {"destination": destination, "source": source, "type": "bind", "options": ["bind", "ro"]}
