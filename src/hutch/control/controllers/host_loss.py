"""Gives up the tasks of hosts that stay away for too long.

Level-triggered: what counts is who is away now. How long is measured from when this control plane saw it first, on a
clock that stands still while the machine sleeps: a host is never blamed for the time in which nobody could have heard it.
"""

import asyncio

from hutch.base.clock import Clock
from hutch.base.errors import Conflict
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.ops.host_loss import HostLossOps
from hutch.control.ops.hosts import HostOps
from hutch.control.rounds import is_done
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Store

log = get_logger(__name__)

OVERSLEPT_S = 1.0
"""Woken so much later than asked for, this process itself was not running; hosts could not have reached it."""


class HostLossLoop:
    """One per platform; with `lost_after_s` 0 it gives nobody up."""

    def __init__(
        self, store: Store, hosts: HostOps, clock: Clock, ids: IdSource, *, lost_after_s: float
    ) -> None:
        self._store = store
        self._changed = hosts.connections_changed
        self._ops = HostLossOps(store, clock)
        self._clock = clock
        self._ids = ids
        self._lost_after_s = lost_after_s
        self._deadlines: dict[str, float] = {}
        """Hosts that are away to when they are given up (monotonic)."""
        self._given_up: set[str] = set()

    def gives_up_at(self, host_id: str) -> float | None:
        """When the tasks of a host that is away will be given up (epoch seconds); None: they will not be, or were."""
        deadline = self._deadlines.get(host_id)
        if deadline is None or host_id in self._given_up:
            return None
        return self._clock.now() + deadline - self._clock.monotonic()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._changed.clear()
            self._look()
            if await is_done(self._give_up_due, "giving up a lost host's tasks"):
                await self._sleep()

    def _look(self) -> None:
        """Bring what is known of who is away up to date."""
        now = self._clock.monotonic()
        with self._store.read() as reader:
            away = {h.host_id for h in reader.scan(tables.HOSTS) if not h.connected}
        if self._lost_after_s:
            self._deadlines = {h: self._deadlines.get(h, now + self._lost_after_s) for h in away}
        self._given_up &= away

    async def _give_up_due(self) -> None:
        now = self._clock.monotonic()
        for host_id in [h for h, at in self._deadlines.items() if at <= now and h not in self._given_up]:
            cause = Cause(id=self._ids.uuid(), actor="controller:hosts", action="give up")
            why = f"was given up (--host-lost-after-s {self._lost_after_s:g})"
            try:
                count = await self._ops.give_up(cause, host_id, why)
            except Conflict:
                continue  # it has just come back
            self._given_up.add(host_id)
            log.error("host lost", host=host_id, tasks_given_up=count, lost_after_s=self._lost_after_s)

    async def _sleep(self) -> None:
        """Until a connection comes or goes, or the next host is due."""
        left = [at for h, at in self._deadlines.items() if h not in self._given_up]
        wake_at = min(left) if left else None
        try:
            async with asyncio.timeout(None if wake_at is None else wake_at - self._clock.monotonic()):
                await self._changed.wait()
        except TimeoutError:
            pass
        if wake_at is not None and (late_s := self._clock.monotonic() - wake_at) > OVERSLEPT_S:
            log.warning(
                "hosts get more time: the control plane itself was not running", seconds=round(late_s)
            )
            again = self._clock.monotonic() + self._lost_after_s
            self._deadlines = dict.fromkeys(self._deadlines, again)
