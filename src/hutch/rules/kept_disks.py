"""Which disks of stopped tasks stay on a host, and which have to go."""

from collections.abc import Sequence

import msgspec

MAX_DISKS = 256
"""However small they are: each has files and images of its own."""


class KeptDiskView(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that is kept, as this rule sees it. Sizes in bytes, times in seconds since the epoch."""

    task_id: str
    kept_at: float
    bytes: int
    is_failure: bool
    """Its task failed: it was not stopped by anybody, nor did it end well."""
    is_open: bool = False
    """Somebody looks into it now: it goes when they have gone."""


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that has to go, and why, as its owner is told."""

    task_id: str
    reason: str


def disks_to_drop(
    disks: Sequence[KeptDiskView], *, limit_bytes: int, life_s: float, now: float
) -> tuple[Drop, ...]:
    """First those that are too old; then, until the rest is within the limit, those of tasks that did not fail, then the
    others, the oldest first. One that is open stays, and counts."""
    drops = [
        Drop(task_id=d.task_id, reason=f"it was kept for {_hours(life_s)} (--kept-disks-hours)")
        for d in disks
        if not d.is_open and now - d.kept_at >= life_s
    ]
    gone = {d.task_id for d in drops}
    left = sorted(
        (d for d in disks if d.task_id not in gone), key=lambda d: (d.is_failure, d.kept_at, d.task_id)
    )
    total, count = sum(d.bytes for d in left), len(left)
    for disk in left:
        if total <= limit_bytes and count <= MAX_DISKS:
            break
        if disk.is_open:
            continue
        why = "--kept-disks-mib" if total > limit_bytes else f"at most {MAX_DISKS} are kept"
        drops.append(
            Drop(task_id=disk.task_id, reason=f"it made room for the disks of other stopped tasks ({why})")
        )
        total, count = total - disk.bytes, count - 1
    return tuple(drops)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} h"
