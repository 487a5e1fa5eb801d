"""Copies of running tasks, from which their forks go on. Each is there until all that it was made for have had it."""

import asyncio
import re
import shutil
from pathlib import Path

from hutch.host.drivers.contract import HostFault

LIFE_S = 600.0
"""So long after it was made a copy goes, whoever still waits for it."""
MAX_SNAPSHOTS = 8
_ID = re.compile(r"[0-9a-f]{32}")


class Snapshots:
    """All of one host; `directory` is their own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._uses: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._removing: set[asyncio.Task[None]] = set()

    def clear(self) -> None:
        """Remove what an earlier agent left. Blocks."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def path(self, snapshot_id: str) -> Path:
        """Where a copy is, or is to be made."""
        if not _ID.fullmatch(snapshot_id):
            raise HostFault("NotFound", f"{snapshot_id[:60]!r} names no snapshot")
        return self._directory / snapshot_id

    def expect(self, snapshot_id: str, uses: int) -> Path:
        """Room for a new copy, which so many tasks will go on from. Raises `HostFault`."""
        if len(self._uses) >= MAX_SNAPSHOTS:
            raise HostFault("TooManySnapshots", "too many forks are under way on this host", retryable=True)
        path = self.path(snapshot_id)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._uses[snapshot_id] = uses
        loop = asyncio.get_running_loop()
        self._timers[snapshot_id] = loop.call_later(LIFE_S, self._expire, snapshot_id)
        return path

    async def used(self, snapshot_id: str) -> None:
        """One of the tasks has had it, or will not have it any more."""
        left = self._uses.get(snapshot_id, 1) - 1
        self._uses[snapshot_id] = left
        if left <= 0:
            await self.remove(snapshot_id)

    async def remove(self, snapshot_id: str) -> None:
        """Remove a copy; no error if there is none."""
        if timer := self._timers.pop(snapshot_id, None):
            timer.cancel()
        self._uses.pop(snapshot_id, None)
        await asyncio.to_thread(shutil.rmtree, self.path(snapshot_id), True)

    def _expire(self, snapshot_id: str) -> None:
        task = asyncio.create_task(self.remove(snapshot_id))
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)

    async def close(self) -> None:
        """No more timers; nothing of a copy outlives the agent that made it."""
        for timer in self._timers.values():
            timer.cancel()
        await asyncio.gather(*self._removing, return_exceptions=True)
        await asyncio.to_thread(self.clear)
