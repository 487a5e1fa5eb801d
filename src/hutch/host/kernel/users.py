"""User ids for programs that shall have no rights: leased by name, so that no two that live share one.

A lease is a symbolic link `<directory>/<uid>` that points to its owner's name: made whole in one step, and found again,
by the name, after a crash. The directory belongs to the host, not to a platform: user ids are the host's.
"""

import os
import zlib
from pathlib import Path

from hutch.base.errors import StorageFull

LEASES = Path("/run/hutch/vm-users")


class UserLeases:
    """User ids of a range (first, last). Blocking; safe in threads and between processes."""

    def __init__(self, first: int, last: int, directory: Path = LEASES) -> None:
        self._first = first
        self._count = last - first + 1
        self._directory = directory

    def lease(self, name: str) -> int:
        """A user id for `name`, the same one if it has one already. Raises `StorageFull`, `OSError`."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = self._of(name)
        if held:
            return held[0]
        start = zlib.crc32(name.encode())
        for offset in range(self._count):
            user_id = self._first + (start + offset) % self._count
            try:
                os.symlink(name, self._directory / str(user_id))
            except FileExistsError:
                continue
            return user_id
        last = self._first + self._count - 1
        raise StorageFull(f"all user ids from {self._first} to {last} are in use; widen --vm-user-ids")

    def release(self, name: str) -> None:
        """Give back what `name` holds. Idempotent."""
        for user_id in self._of(name):
            (self._directory / str(user_id)).unlink(missing_ok=True)

    def _of(self, name: str) -> list[int]:
        if not self._directory.is_dir():
            return []
        held = []
        for entry in os.listdir(self._directory):
            try:
                if os.readlink(self._directory / entry) == name:
                    held.append(int(entry))
            except FileNotFoundError:
                continue  # given back this moment
        return held
