"""Use cases of file systems: their records here, their content on the hosts."""

import asyncio
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, HutchError, InUse, Invalid, NotFound
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.ops.images import HostRequests
from hutch.model.filesystem import AccessPoint, FileSystem, MountTarget
from hutch.model.record import Cause
from hutch.rules.tags import merged
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx

log = get_logger(__name__)
SIZES_TIMEOUT_S = 5.0


class FileSystemOps:
    """File systems, access points and mount targets. One instance per control plane."""

    def __init__(
        self, store: Store, clock: Clock, ids: IdSource, hosts: HostRequests, *, region: str, account_id: str
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._hosts = hosts
        self.arn_prefix = f"arn:aws:elasticfilesystem:{region}:{account_id}:"

    # -- file systems

    async def create(self, cause: Cause, wanted: FileSystem) -> FileSystem:
        """A new file system; its id and time are given here. Raises `AlreadyExists` for a token that has one."""

        def work(tx: Tx) -> FileSystem:
            for found in tx.scan(tables.FILE_SYSTEMS, wanted.token, index="by_token"):
                raise AlreadyExists(
                    f"File system '{found.file_system_id}' already exists with creation token '{wanted.token}'"
                )
            made = replace(
                wanted, file_system_id=f"fs-{self._ids.hex(17)}", created_at=self._clock.now(), version=0
            )
            return tx.put(tables.FILE_SYSTEMS, made)

        return await self._store.write(cause, work)

    def file_systems(self, file_system_id: str = "", token: str = "") -> Sequence[FileSystem]:
        """All of them, or the one of an id (raises `NotFound`) or of a token."""
        with self._store.read() as reader:
            if file_system_id:
                return [_file_system(reader, file_system_id)]
            if token:
                return reader.scan(tables.FILE_SYSTEMS, token, index="by_token")
            return reader.scan(tables.FILE_SYSTEMS)

    async def delete(self, cause: Cause, file_system_id: str) -> None:
        """Remove a file system with all that is in it. Raises `NotFound`, `InUse`, or `Unavailable` if its host is away:
        it is marked then, and removed when this is asked again."""

        def mark(tx: Tx) -> None:
            found = _file_system(tx, file_system_id)
            if tx.scan(tables.MOUNT_TARGETS, file_system_id, index="by_file_system", limit=1):
                raise InUse(f"File system {file_system_id} has mount targets: delete them first.")
            if task := _user(tx, file_system_id):
                raise InUse(f"File system {file_system_id} is used by task {task}: stop it first.")
            if not found.deleting:
                tx.put(tables.FILE_SYSTEMS, replace(found, deleting=True))

        def forget(tx: Tx) -> None:
            for point in tx.scan(tables.ACCESS_POINTS, file_system_id, index="by_file_system"):
                tx.delete(tables.ACCESS_POINTS, point.access_point_id)
            tx.delete(tables.FILE_SYSTEMS, file_system_id)

        await self._store.write(cause, mark)
        # Without an id: any host, so that one that is about to connect is waited for.
        for host_id in self._hosts.connected_host_ids or ("",):
            await self._hosts.request(host_id, "filesystem.remove", {"id": file_system_id})
        await self._store.write(cause, forget)

    async def sizes(self, file_system_ids: Sequence[str]) -> dict[str, int]:
        """Bytes that each takes, as far as a host can tell soon."""
        hosts = self._hosts.connected_host_ids
        if not hosts or not file_system_ids:
            return {}
        try:
            async with asyncio.timeout(SIZES_TIMEOUT_S):
                asked = {"ids": list(file_system_ids)}
                answer = await self._hosts.request(hosts[0], "filesystem.sizes", asked)
        except (HutchError, TimeoutError) as error:
            log.warning("the sizes of file systems are not known", reason=str(error))
            return {}
        found: dict[str, int] = answer["sizes"]
        return found

    # -- access points

    async def create_access_point(self, cause: Cause, wanted: AccessPoint) -> AccessPoint:
        """A new access point; its id and time are given here."""

        def work(tx: Tx) -> AccessPoint:
            _file_system(tx, wanted.file_system_id)
            for found in tx.scan(tables.ACCESS_POINTS, wanted.file_system_id, index="by_file_system"):
                if found.token == wanted.token:
                    raise AlreadyExists(
                        f"Access point '{found.access_point_id}' already exists with client token '{wanted.token}'",
                        code="AccessPointAlreadyExists",
                    )
            made = replace(
                wanted, access_point_id=f"fsap-{self._ids.hex(17)}", created_at=self._clock.now(), version=0
            )
            return tx.put(tables.ACCESS_POINTS, made)

        return await self._store.write(cause, work)

    def access_points(self, file_system_id: str = "", access_point_id: str = "") -> Sequence[AccessPoint]:
        """All of them, those of a file system, or the one of an id. Raises `NotFound`."""
        with self._store.read() as reader:
            if access_point_id:
                return [_access_point(reader, access_point_id)]
            if file_system_id:
                _file_system(reader, file_system_id)
                return reader.scan(tables.ACCESS_POINTS, file_system_id, index="by_file_system")
            return reader.scan(tables.ACCESS_POINTS)

    async def delete_access_point(self, cause: Cause, access_point_id: str) -> None:
        """Remove an access point; its directory stays."""

        def work(tx: Tx) -> None:
            _access_point(tx, access_point_id)
            tx.delete(tables.ACCESS_POINTS, access_point_id)

        await self._store.write(cause, work)

    # -- mount targets

    async def create_mount_target(self, cause: Cause, wanted: MountTarget) -> MountTarget:
        """A new mount target; its id and time are given here. One for each availability zone."""

        def work(tx: Tx) -> MountTarget:
            _file_system(tx, wanted.file_system_id)
            subnet = tx.get(tables.SUBNETS, wanted.subnet_id)
            if subnet is None:
                raise NotFound(f"The subnet ID '{wanted.subnet_id}' does not exist", code="SubnetNotFound")
            for group in wanted.security_group_ids:
                if tx.get(tables.SECURITY_GROUPS, group) is None:
                    raise NotFound(
                        f"The security group '{group}' does not exist", code="SecurityGroupNotFound"
                    )
            for other in tx.scan(tables.MOUNT_TARGETS, wanted.file_system_id, index="by_file_system"):
                theirs = tx.get(tables.SUBNETS, other.subnet_id)
                if theirs is not None and theirs.availability_zone == subnet.availability_zone:
                    raise AlreadyExists("mount target already exists in this AZ", code="MountTargetConflict")
            made = replace(
                wanted, mount_target_id=f"fsmt-{self._ids.hex(17)}", created_at=self._clock.now(), version=0
            )
            return tx.put(tables.MOUNT_TARGETS, made)

        return await self._store.write(cause, work)

    def mount_targets(self, file_system_id: str = "", mount_target_id: str = "") -> Sequence[MountTarget]:
        """Those of a file system, or the one of an id. Raises `NotFound`."""
        with self._store.read() as reader:
            if mount_target_id:
                return [_mount_target(reader, mount_target_id)]
            _file_system(reader, file_system_id)
            return reader.scan(tables.MOUNT_TARGETS, file_system_id, index="by_file_system")

    async def delete_mount_target(self, cause: Cause, mount_target_id: str) -> None:
        """Remove a mount target."""

        def work(tx: Tx) -> None:
            _mount_target(tx, mount_target_id)
            tx.delete(tables.MOUNT_TARGETS, mount_target_id)

        await self._store.write(cause, work)

    # -- tags

    async def change_tags(
        self, cause: Cause, resource_id: str, more: dict[str, str], without: Sequence[str] = ()
    ) -> dict[str, str]:
        """The tags of a file system or access point after a change. Raises `NotFound`."""

        def work(tx: Tx) -> dict[str, str]:
            before = _tagged(tx, resource_id)
            tags = {k: v for k, v in merged(before.tags, more).items() if k not in without}
            if isinstance(before, FileSystem):
                return tx.put(tables.FILE_SYSTEMS, replace(before, tags=tags)).tags
            return tx.put(tables.ACCESS_POINTS, replace(before, tags=tags)).tags

        return await self._store.write(cause, work)

    def tags(self, resource_id: str) -> dict[str, str]:
        """The tags of a file system or access point. Raises `NotFound`."""
        with self._store.read() as reader:
            return _tagged(reader, resource_id).tags

    def subnet_facts(self, subnet_id: str) -> dict[str, Any]:
        """Zone and VPC of a subnet."""
        with self._store.read() as reader:
            subnet = reader.get(tables.SUBNETS, subnet_id)
        if subnet is None:
            return {}
        return {
            "AvailabilityZoneName": subnet.availability_zone,
            "AvailabilityZoneId": subnet.availability_zone_id,
            "VpcId": subnet.vpc_id,
        }


def _file_system(reader: Reader, file_system_id: str) -> FileSystem:
    found = reader.get(tables.FILE_SYSTEMS, file_system_id)
    if found is None:
        raise NotFound(f"File system '{file_system_id[:128]}' does not exist.", code="FileSystemNotFound")
    return found


def _access_point(reader: Reader, access_point_id: str) -> AccessPoint:
    found = reader.get(tables.ACCESS_POINTS, access_point_id)
    if found is None:
        raise NotFound(f"Access point '{access_point_id[:128]}' does not exist.", code="AccessPointNotFound")
    return found


def _mount_target(reader: Reader, mount_target_id: str) -> MountTarget:
    found = reader.get(tables.MOUNT_TARGETS, mount_target_id)
    if found is None:
        raise NotFound(f"Mount target '{mount_target_id[:128]}' does not exist.", code="MountTargetNotFound")
    return found


def _tagged(reader: Reader, resource_id: str) -> FileSystem | AccessPoint:
    if resource_id.startswith("fsap-"):
        return _access_point(reader, resource_id)
    return _file_system(reader, resource_id)


def _user(reader: Reader, file_system_id: str) -> str:
    """A task that has the file system; "" if none has."""
    mounting: dict[tuple[str, int], bool] = {}
    for task in reader.scan(tables.TASKS):
        if task.is_stopped:
            continue
        name = (task.family, task.revision)
        if name not in mounting:
            definition = reader.get(tables.TASK_DEFINITIONS, task.family, f"{task.revision:010d}")
            volumes = definition.document.get("volumes", ()) if definition else ()
            mounting[name] = any(
                v.get("efsVolumeConfiguration", {}).get("fileSystemId") == file_system_id for v in volumes
            )
        if mounting[name]:
            return task.task_id
    return ""


def check_root(path: str) -> None:
    """Raises `Invalid` for what is no path of a directory in a file system."""
    parts = path.split("/")[1:]
    if not path.startswith("/") or ".." in parts or "." in parts or "\0" in path or len(path) > 255:
        raise Invalid(f"{path[:255]!r} is not an absolute path without '.' and '..'.")
