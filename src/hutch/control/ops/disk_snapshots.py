"""Use cases of disk snapshots: records here, copies on the hosts; and volumes that are made from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import HutchError, InUse, Invalid, NotFound
from hutch.base.ids import IdSource
from hutch.control.ops.images import HostRequests
from hutch.model.disk import COMPLETED, DiskSnapshot
from hutch.model.record import Cause
from hutch.model.task import ManagedVolume, Task
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx


class DiskSnapshotOps:
    """Make, list and delete snapshots. One instance per control plane."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource, hosts: HostRequests) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._hosts = hosts

    async def create(
        self, cause: Cause, volume_id: str, description: str, tags: Mapping[str, str]
    ) -> DiskSnapshot:
        """A copy of a volume that no task has now; done when this returns. Raises `NotFound`, `InUse`, or what its host
        says."""

        def begin(tx: Tx) -> DiskSnapshot:
            task, volume = _volume(tx, volume_id)
            if not task.is_stopped:
                raise InUse(
                    f"Volume {volume_id} is attached to task {task.task_id}: hutch copies a volume when its task has ended.",
                    code="IncorrectState",
                )
            return tx.put(
                tables.DISK_SNAPSHOTS,
                DiskSnapshot(
                    snapshot_id=f"snap-{self._ids.hex(17)}",
                    volume_id=volume_id,
                    host_id=task.host_id,
                    size_gib=volume.size_gib,
                    filesystem=volume.filesystem,
                    description=description,
                    tags=dict(tags),
                    created_at=self._clock.now(),
                ),
            )

        begun = await self._store.write(cause, begin)
        asked = {"volume_id": volume_id, "snapshot_id": begun.snapshot_id}
        try:
            await self._hosts.request(begun.host_id, "disk_snapshot.make", asked)
        except HutchError:
            await self._store.write(cause, lambda tx: tx.delete(tables.DISK_SNAPSHOTS, begun.snapshot_id))
            raise

        def complete(tx: Tx) -> DiskSnapshot:
            found = _snapshot(tx, begun.snapshot_id)
            done = replace(found, state=COMPLETED, completed_at=self._clock.now())
            return tx.put(tables.DISK_SNAPSHOTS, done)

        return await self._store.write(cause, complete)

    def all(self) -> Sequence[DiskSnapshot]:
        """All of them, by id."""
        with self._store.read() as reader:
            return reader.scan(tables.DISK_SNAPSHOTS)

    async def delete(self, cause: Cause, snapshot_id: str) -> None:
        """Remove a snapshot; volumes that were made from it have copies of their own. Raises `NotFound`."""
        with self._store.read() as reader:
            found = _snapshot(reader, snapshot_id)
        await self._hosts.request(found.host_id, "disk_snapshot.remove", {"snapshot_id": snapshot_id})
        await self._store.write(cause, lambda tx: tx.delete(tables.DISK_SNAPSHOTS, snapshot_id))


def filled_from_snapshots(
    reader: Reader, configurations: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """Volume configurations of a launch; what names a snapshot has its size and file system. Raises `Invalid`."""
    return tuple(_filled(reader, dict(c)) for c in configurations)


def _filled(reader: Reader, configuration: dict[str, Any]) -> dict[str, Any]:
    given = configuration.get("managedEBSVolume") or {}
    if not given.get("snapshotId"):
        return configuration
    found = reader.get(tables.DISK_SNAPSHOTS, given["snapshotId"])
    name = configuration.get("name", "")[:255]
    if found is None or found.state != COMPLETED:
        state = "does not exist" if found is None else "is not completed"
        raise _wrong(f"snapshot {given['snapshotId'][:60]} of volume {name} {state}")
    if given.get("sizeInGiB", found.size_gib) != found.size_gib:
        raise _wrong(
            f"volume {name} must have the {found.size_gib} GiB of its snapshot: hutch does not change the size of a file system"
        )
    if given.get("filesystemType", found.filesystem) != found.filesystem:
        raise _wrong(f"volume {name} has the file system of its snapshot, which is {found.filesystem}")
    filled = {**given, "sizeInGiB": found.size_gib, "filesystemType": found.filesystem}
    return {**configuration, "managedEBSVolume": filled}


def _wrong(text: str) -> Invalid:
    return Invalid(f"ECS managed EBS volume configuration was invalid: {text}.")


def _volume(reader: Reader, volume_id: str) -> tuple[Task, ManagedVolume]:
    """A volume that outlives its task, with the task that it was made for. Raises `NotFound`."""
    for task in reader.scan(tables.TASKS):
        for volume in task.volumes:
            if volume.volume_id == volume_id and not (volume.delete_on_termination and task.is_stopped):
                return task, volume
    raise NotFound(f"The volume '{volume_id[:60]}' does not exist.", code="InvalidVolume.NotFound")


def _snapshot(reader: Reader, snapshot_id: str) -> DiskSnapshot:
    found = reader.get(tables.DISK_SNAPSHOTS, snapshot_id)
    if found is None:
        raise NotFound(f"The snapshot '{snapshot_id[:60]}' does not exist.", code="InvalidSnapshot.NotFound")
    return found
