"""What this host's drivers can do, looked at again whenever that may have changed.

At the start; at each new connection to the control plane; after a task could not be started; and, while a driver is not
healthy, when something is put where programs and guest images are installed. Nothing is looked at by the clock.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hutch.base.log import get_logger
from hutch.host.drivers.contract import Driver
from hutch.host.kernel.inotify import DirectoryWatch, FileWatcher
from hutch.wire.facts import DriverFactMsg

log = get_logger(__name__)

SETTLE_S = 1.0
"""An installation is many files: look when there were no more for so long."""
SETTLE_MOST_S = 30.0


class DriverWatch:
    """The drivers' own words, kept fresh. `places`: directories whose new files may heal a driver."""

    def __init__(self, drivers: Sequence[Driver], watcher: FileWatcher, places: Sequence[Path]) -> None:
        self._drivers = drivers
        self._watcher = watcher
        self._places = places
        self._suspected = asyncio.Event()
        self.facts: dict[str, DriverFactMsg] = {}

    async def look(self) -> bool:
        """Ask every driver; whether any says something new."""
        found = await asyncio.gather(*(d.fingerprint() for d in self._drivers))
        before, self.facts = self.facts, {f.name: f for f in found}
        for fact in found:
            old = before.get(fact.name)
            if old is not None and old.healthy != fact.healthy:
                log.warning("driver changed", driver=fact.name, healthy=fact.healthy, reason=fact.reason)
        return before != self.facts

    def suspect(self) -> None:
        """Something happened that a driver's state may explain: look again."""
        self._suspected.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Look again on each occasion, for ever; `changed` is called when a driver says something new."""
        if not all(f.healthy for f in self.facts.values()):
            # What was installed between the first look and now, when the watch begins, is not missed.
            self._suspected.set()
        while True:
            with self._watches() as watches:
                if self._suspected.is_set():
                    self._suspected.clear()
                    if await self.look():
                        changed()
                    continue
                await self._occasion(watches)
            self._suspected.set()

    async def _occasion(self, watches: list[DirectoryWatch]) -> None:
        events = [self._suspected, *(w.changed for w in watches)]
        waits = [asyncio.ensure_future(e.wait()) for e in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._suspected.is_set():
            await _settled(watches)

    @contextlib.contextmanager
    def _watches(self) -> Iterator[list[DirectoryWatch]]:
        """On the places, while some driver needs healing."""
        watches: list[DirectoryWatch] = []
        try:
            if not all(f.healthy for f in self.facts.values()):
                watches = [self._watcher.watch(p) for p in self._places if p.is_dir()]
            yield watches
        finally:
            for watch in watches:
                watch.close()


async def _settled(watches: list[DirectoryWatch]) -> None:
    """Wait until nothing more comes for a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_MOST_S):
            while any(w.changed.is_set() for w in watches):
                for watch in watches:
                    watch.changed.clear()
                await asyncio.sleep(SETTLE_S)


def program_directories() -> tuple[Path, ...]:
    """Where programs are installed."""
    return tuple(Path(p) for p in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"))
