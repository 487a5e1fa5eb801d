"""Use cases of hosts that are lost for good: what runs on them is given up, so that nobody waits for it any more.

The host may well come back, its tasks still running: its agent ends them then, since they are no longer assigned to it.
"""

from hutch.base.clock import Clock, iso_time
from hutch.base.errors import Conflict, NotFound
from hutch.control.ops.placing import store_stopped
from hutch.model.host import Host
from hutch.model.record import Cause
from hutch.model.task import CauseLink
from hutch.rules import lifecycle
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx

BATCH = 100
"""Tasks that are given up in one unit of work."""


class HostLossOps:
    """Giving hosts up."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def give_up(self, cause: Cause, host_id: str, why: str) -> int:
        """All tasks of a host that is not connected become STOPPED; how many. `why`: who decided so, for the cause.

        Raises `NotFound`, and `Conflict` if the host is connected (or connects meanwhile).
        """
        count = 0
        while True:

            def work(tx: Tx) -> int:
                host = _away(tx, host_id)
                link = self._cause(host, why)
                tasks = tx.scan(tables.TASKS, host_id, index="by_host", limit=BATCH)
                for task in tasks:
                    store_stopped(tx, task, lifecycle.host_lost(task, link, self._clock.now()))
                return len(tasks)

            done = await self._store.write(cause, work)
            count += done
            if done < BATCH:
                return count

    def _cause(self, host: Host, why: str) -> CauseLink:
        silent_s = round(self._clock.now() - host.last_seen_at)
        return CauseLink(
            kind="HostLost",
            text=f"host {host.name} was not heard of for {silent_s} s, and {why}",
            evidence={
                "host_id": host.host_id,
                "host": host.name,
                "last_seen_at": iso_time(host.last_seen_at),
                "silent_s": silent_s,
            },
            fix="find out why the machine or its host agent ended (`hutch host ls`; its hutch.log), and run the task again",
        )


def _away(reader: Reader, host_id: str) -> Host:
    host = reader.get(tables.HOSTS, host_id)
    if host is None:
        raise NotFound(f"there is no host {host_id[:100]}; `hutch host ls` lists them")
    if host.connected:
        raise Conflict(
            f"host {host.name} ({host_id}) is connected: only one that is not can be given up. To empty a host that "
            "runs, drain it with UpdateContainerInstancesState and stop its tasks"
        )
    return host
