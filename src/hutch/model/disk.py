"""Snapshots of the disks that were made for tasks."""

from hutch.model.record import Record

PENDING, COMPLETED = "pending", "completed"


class DiskSnapshot(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A copy of a volume as it was, on the host that has the volume. `state` is pending while it is made; one that stays so
    was cut off, and can be deleted."""

    snapshot_id: str
    volume_id: str
    host_id: str
    size_gib: int
    filesystem: str
    description: str = ""
    tags: dict[str, str] = {}
    state: str = PENDING
    created_at: float
    completed_at: float | None = None
