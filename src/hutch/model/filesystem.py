"""File systems that tasks share, as EFS has them, and the doors to them."""

from hutch.model.record import Record


class FileSystem(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A file system. `token` is the caller's own: with the same one nothing is made twice."""

    file_system_id: str
    token: str
    performance_mode: str = "generalPurpose"
    throughput_mode: str = "bursting"
    tags: dict[str, str] = {}
    created_at: float
    deleting: bool = False
    """Its content is being removed, or could not be yet; no task gets it any more."""


class AccessPoint(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A directory of a file system under a name. `owner` (user id, group id, permissions): it is made if it is missing."""

    access_point_id: str
    file_system_id: str
    token: str
    path: str = "/"
    owner: tuple[int, int, int] | None = None
    tags: dict[str, str] = {}
    created_at: float


class MountTarget(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Kept for those who expect it: hutch's tasks reach a file system from every subnet without one."""

    mount_target_id: str
    file_system_id: str
    subnet_id: str
    security_group_ids: tuple[str, ...] = ()
    created_at: float
