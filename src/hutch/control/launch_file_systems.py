"""Which directory of which file system a task's volumes are: looked up when the task is given to its host."""

from typing import Any

from msgspec.structs import replace

from hutch.control.launch_refusals import unavailable
from hutch.model.taskdef import TaskDefinition
from hutch.store import tables
from hutch.store.contract import Reader
from hutch.wire.taskspec import FileSystemSpec, TaskSpec

_PREFIX = "ResourceInitializationError: failed to invoke EFS utils commands to set up EFS volumes: stderr: "


def with_file_systems(reader: Reader, spec: TaskSpec, definition: TaskDefinition, region: str) -> TaskSpec:
    """The specification with its file systems. Raises `LaunchRefused` for the first that is not there."""
    wanted = {
        v["name"]: v["efsVolumeConfiguration"]
        for v in definition.document.get("volumes", ())
        if "efsVolumeConfiguration" in v
    }
    if not wanted:
        return spec
    volumes = tuple(
        replace(v, file_system=file_system_of(reader, wanted[v.name], region)) if v.name in wanted else v
        for v in spec.volumes
    )
    return replace(spec, volumes=volumes)


def file_system_of(reader: Reader, given: dict[str, Any], region: str) -> FileSystemSpec:
    """What an `efsVolumeConfiguration` means. Raises `LaunchRefused` if it is not there."""
    file_system_id = given["fileSystemId"]
    found = reader.get(tables.FILE_SYSTEMS, file_system_id)
    if found is None or found.deleting:
        message = f'Failed to resolve "{file_system_id}.efs.{region}.amazonaws.com" - check that your file system ID is correct'
        raise unavailable("FileSystemNotFound", message, {}, file_system_id, _PREFIX)
    point_id = given.get("authorizationConfig", {}).get("accessPointId", "")
    if not point_id:
        root = given.get("rootDirectory") or "/"
        return FileSystemSpec(file_system_id=file_system_id, root=root)
    point = reader.get(tables.ACCESS_POINTS, point_id)
    if point is None or point.file_system_id != file_system_id:
        message = f"mount.nfs4: access denied by server while mounting: file system {file_system_id} has no access point {point_id}"
        raise unavailable("AccessPointNotFound", message, {}, point_id, _PREFIX)
    return FileSystemSpec(file_system_id=file_system_id, root=point.path, owner=point.owner)
