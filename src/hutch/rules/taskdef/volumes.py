"""The volumes of a task definition, and what a launch says about those that are configured then (reference B.10)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.rules.taskdef.file_volumes import DRIVERS, check_file_volume
from hutch.rules.taskdef.refusals import refuse

FILESYSTEMS = ("ext3", "ext4", "xfs")
DEFAULT_FILESYSTEM = "xfs"
MAX_DISK_GIB = 16384
VOLUME_TYPES = ("gp2", "gp3", "io1", "io2", "st1", "sc1", "standard")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
_SOURCES = (
    "host",
    "dockerVolumeConfiguration",
    "configuredAtLaunch",
    "efsVolumeConfiguration",
)
_FILE_SYSTEM_ID = re.compile(r"fs-[0-9a-f]{8,40}")
_ACCESS_POINT_ID = re.compile(r"fsap-[0-9a-f]{8,40}")


class ManagedVolumeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A disk to be made for one task."""

    name: str
    size_gib: int
    filesystem: str
    role_arn: str
    delete_on_termination: bool
    snapshot_id: str = ""


def check_volumes(document: dict[str, Any]) -> None:
    """Raises `Invalid` for the first thing that is wrong."""
    names: set[str] = set()
    for volume in document["volumes"]:
        name = volume.get("name", "")
        if not _NAME.fullmatch(name):
            raise refuse(f"Volume name {name[:100]!r} is invalid; use letters, digits, '-' and '_'.")
        if name in names:
            raise refuse(f"Duplicate volume name {name}.")
        names.add(name)
        if len([s for s in _SOURCES if volume.get(s)]) > 1:
            raise refuse(f"Volume {name} can be only one of {', '.join(_SOURCES)}.")
        path = volume.get("host", {}).get("sourcePath", "")
        if path and (not path.startswith("/") or ".." in path.split("/")):
            raise refuse(f"Volume {name}: sourcePath must be an absolute path without '..'.")
        if "dockerVolumeConfiguration" in volume:
            _check_docker(name, volume["dockerVolumeConfiguration"])
        if "efsVolumeConfiguration" in volume:
            _check_efs(name, volume["efsVolumeConfiguration"])
    if sum(1 for v in document["volumes"] if v.get("configuredAtLaunch")) > 1:
        raise refuse("Only one volume of a task definition can be configured at launch.")
    for container in document["containerDefinitions"]:
        _check_mounts(container, names)


def _check_mounts(container: dict[str, Any], names: set[str]) -> None:
    seen: set[str] = set()
    for mount in container.get("mountPoints", []):
        path = str(mount.get("containerPath", ""))
        if mount.get("sourceVolume") not in names:
            raise refuse(
                f"Container '{container.get('name')}' mounts unknown volume {mount.get('sourceVolume')!r}."
            )
        if not path.startswith("/") or ".." in path.split("/"):
            raise refuse(f"Container '{container.get('name')}': containerPath must be an absolute path.")
        if path in seen:
            raise refuse(f"Container '{container.get('name')}' mounts two volumes at {path}.")
        seen.add(path)


def _check_docker(name: str, given: dict[str, Any]) -> None:
    if given.get("driver") in DRIVERS:
        check_file_volume(name, given)
        return
    if given.get("driver", "local") != "local":
        raise refuse(f"Volume {name}: hutch has only the volume drivers local, {' and '.join(DRIVERS)}.")
    if given.get("driverOpts"):
        raise refuse(f"Volume {name}: hutch's volume driver takes no driverOpts.")
    scope = given.get("scope", "task")
    if scope not in ("task", "shared"):
        raise refuse(f"Volume {name}: scope must be task or shared.")
    if scope == "task" and given.get("autoprovision"):
        raise refuse(f"Volume {name}: autoprovision is for volumes of scope shared.")
    if scope == "shared" and not given.get("autoprovision"):
        raise refuse(
            f"Volume {name}: hutch makes a shared volume when it is first used: set autoprovision to true."
        )


def _check_efs(name: str, given: dict[str, Any]) -> None:
    if not _FILE_SYSTEM_ID.fullmatch(given.get("fileSystemId", "")):
        raise refuse(f"Volume {name}: fileSystemId must be the id of a file system (fs-...).")
    root = given.get("rootDirectory") or "/"
    if not root.startswith("/") or ".." in root.split("/") or "\0" in root:
        raise refuse(f"Volume {name}: rootDirectory must be an absolute path without '..'.")
    authorization = given.get("authorizationConfig", {})
    encrypted = given.get("transitEncryption", "DISABLED") == "ENABLED"
    if authorization.get("iam", "DISABLED") == "ENABLED" and not encrypted:
        raise refuse("EFS IAM authorization requires TransitEncryption to be enabled")
    if given.get("transitEncryptionPort") is not None and not encrypted:
        raise refuse(f"Volume {name}: transitEncryptionPort needs transitEncryption to be enabled.")
    point = authorization.get("accessPointId", "")
    if point and not _ACCESS_POINT_ID.fullmatch(point):
        raise refuse(f"Volume {name}: accessPointId must be the id of an access point (fsap-...).")
    if point and not encrypted:
        raise refuse("EFS access points require TransitEncryption to be enabled")
    if point and root != "/":
        raise refuse(
            'When using an EFS access point, the root directory must either be set to "/" or be omitted'
        )


def has_file_systems(document: Mapping[str, Any]) -> bool:
    """Whether a task definition mounts file systems."""
    return any("efsVolumeConfiguration" in v for v in document.get("volumes", ()))


def shared_name(volume: Mapping[str, Any]) -> str:
    """The name by which a volume outlives its tasks; "" for one that does not."""
    return str(volume["name"]) if volume.get("dockerVolumeConfiguration", {}).get("scope") == "shared" else ""


def managed_volumes(
    document: Mapping[str, Any], given: Iterable[Mapping[str, Any]]
) -> tuple[ManagedVolumeRequest, ...]:
    """What a launch says about the definition's volumes. Raises `Invalid` unless each volume that is configured at launch is
    configured once, and no other."""
    wanted = {v["name"] for v in document.get("volumes", []) if v.get("configuredAtLaunch")}
    found: dict[str, ManagedVolumeRequest] = {}
    for item in given:
        name = item.get("name", "")
        if name not in wanted:
            raise Invalid(
                f"The volume name '{name[:255]}' in your request does not have a matching volume in your Task Definition"
            )
        if name in found:
            raise _wrong(f"volume {name} is configured twice")
        found[name] = _managed(name, item.get("managedEBSVolume") or {})
    if missing := sorted(wanted - set(found)):
        raise _wrong(f"volume {missing[0]} is configured at launch: name it in volumeConfigurations")
    return tuple(found.values())


def _managed(name: str, given: Mapping[str, Any]) -> ManagedVolumeRequest:
    size = given.get("sizeInGiB")
    if size is None or not 1 <= size <= MAX_DISK_GIB:
        raise _wrong(f"sizeInGiB of volume {name} must be between 1 and {MAX_DISK_GIB}")
    filesystem = given.get("filesystemType", DEFAULT_FILESYSTEM)
    if filesystem not in FILESYSTEMS:
        raise _wrong(f"filesystemType of volume {name} must be one of {', '.join(FILESYSTEMS)}")
    if given.get("volumeType", "gp3") not in VOLUME_TYPES:
        raise _wrong(f"volumeType of volume {name} must be one of {', '.join(VOLUME_TYPES)}")
    if given.get("encrypted"):
        raise _wrong(f"hutch has no KMS and can't encrypt volume {name}: keep the data directory encrypted")
    return ManagedVolumeRequest(
        name=name,
        size_gib=size,
        filesystem=filesystem,
        role_arn=given.get("roleArn", ""),
        delete_on_termination=given.get("terminationPolicy", {}).get("deleteOnTermination", True),
        snapshot_id=given.get("snapshotId", ""),
    )


def _wrong(text: str) -> Invalid:
    return Invalid(f"ECS managed EBS volume configuration was invalid: {text}.")
