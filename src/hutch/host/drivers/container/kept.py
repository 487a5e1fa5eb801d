"""What the containers of a box wrote, kept when the box goes, and a box over it for who looks into it. Blocking.

`overlay/<container>/upper` and `volumes/<volume>` move as they are; a box over them has overlays of its own on top.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from hutch.host.drivers.container import plan
from hutch.host.drivers.container.plan import Places
from hutch.host.drivers.contract import Attachment, DriverError, SandboxSpec
from hutch.host.drivers.looking import hold_mounts, waiting, with_toolbox
from hutch.host.drivers.oci_config import OciContext
from hutch.wire.taskspec import ContainerSpec, VolumeSpec

MAX_ENTRIES = 1_000_000
_PARTS = ("volumes", "overlay")
"""In the order in which they are moved: whoever finds the last finds both."""


def keep_files(places: Places, directory: Path) -> int:
    """Move what containers wrote out of a box in which nothing runs and nothing is mounted; what it takes of the host's disk,
    in bytes. What was moved before by somebody who was killed is there already. Raises `DriverError`."""
    try:
        for part in _PARTS:
            if (places.box / part).is_dir():
                os.replace(places.box / part, directory / part)
        check_files(directory)
        return _taken(directory)
    except OSError as error:
        raise DriverError("NoDiskKept", f"what the containers wrote can't be moved: {error}") from None


def check_files(directory: Path) -> None:
    """Raises `DriverError` unless something is kept there."""
    if not (directory / _PARTS[-1]).is_dir():
        raise DriverError("NoDiskKept", "what the containers wrote is not there any more")


def _taken(directory: Path) -> int:
    total = entries = 0
    waiting_for = [str(directory)]
    while waiting_for:
        with os.scandir(waiting_for.pop()) as found:
            for entry in found:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                entries += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting_for.append(entry.path)
        if entries > MAX_ENTRIES:
            raise DriverError("NoDiskKept", f"the containers wrote more than {MAX_ENTRIES} files")
    return total


def look_spec(spec: SandboxSpec, toolbox: Path) -> SandboxSpec:
    """The specification of a box over kept files: without a network, the host's namespaces, and what outlives tasks."""
    for image in spec.images.values():
        if not os.path.isdir(image.directory):
            raise DriverError("NoRootDirectory", f"image {image.reference} is not on this host any more")
    containers = spec.task.containers
    if toolbox.is_dir():
        containers = tuple(with_toolbox(c, spec.images[c.name]) for c in containers)
    task = msgspec.structs.replace(
        spec.task,
        containers=containers,
        volumes=tuple(VolumeSpec(name=v.name) for v in spec.task.volumes),
        pid_mode="" if spec.task.pid_mode == "host" else spec.task.pid_mode,
        ipc_mode="" if spec.task.ipc_mode == "host" else spec.task.ipc_mode,
    )
    link = Attachment(nameservers=spec.attachment.nameservers, search=spec.attachment.search)
    return msgspec.structs.replace(spec, task=task, attachment=link)


def hold_config(
    spec: SandboxSpec, container: ContainerSpec, context: OciContext, toolbox: Path
) -> dict[str, Any]:
    """`config.json` of a container whose process only waits. Raises `DriverError`."""
    if not Path(plan.INIT_PROGRAM).is_file():
        raise DriverError("InitMissing", "this host has no program that waits", fix="install catatonit")
    config = plan.bundle_config(spec, waiting(container), context)
    tools = str(toolbox) if toolbox.is_dir() else ""
    config["mounts"] = [*config["mounts"], *hold_mounts(plan.INIT_PROGRAM, tools)]
    return config
