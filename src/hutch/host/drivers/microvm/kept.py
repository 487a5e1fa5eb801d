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
from hutch.host.drivers.looking import hold_mounts, waiting, with_toolbox
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.image import NoRoomForImage, check_room
from hutch.host.drivers.microvm.vm import VmFiles
from hutch.wire.taskspec import ContainerSpec, VolumeSpec

LOOK_MEMORY_MIB = 512
"""The most common size, for which a template is often there."""
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
    for volumes that outlive tasks (they may be another task's by now) and for secrets, which ended with their task. Pure but
    for asking whether there is a toolbox."""
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
    if volume.shared_name or volume.file_system or (volume.disk is not None and volume.disk.keep):
        return VolumeSpec(name=volume.name)
    if volume.files is not None and volume.files.secret_names:
        return VolumeSpec(name=volume.name)
    return volume


def with_tools(spec: SandboxSpec, container: ContainerSpec) -> ContainerSpec:
    """The container with the toolbox's programs after all that it has, if there is one. Pure."""
    return with_toolbox(container, spec.images[container.name]) if _TOOLBOX in spec.images else container


def hold_members(spec: SandboxSpec, container: ContainerSpec, number: int) -> dict[str, Any]:
    """Members of the `start` request for a container whose process only waits. Pure. Raises `DriverError`."""
    members = plan.start_members(spec, waiting(container), number, first=False)
    tools = plan.image_disks(spec)[_TOOLBOX].mount_path if _TOOLBOX in spec.images else ""
    members["config"]["mounts"] = [*members["config"]["mounts"], *hold_mounts(plan.INIT_PROGRAM, tools)]
    return members
