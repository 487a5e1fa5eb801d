"""The loop that lets hosts join clusters that come into being."""

from hutch.control.ops.hosts import HostOps
from hutch.store import tables
from hutch.store.contract import Store


class MembershipLoop:
    """Follows the change feed from where it is at the start: hosts that come later join all clusters themselves."""

    def __init__(self, store: Store, hosts: HostOps) -> None:
        self._store = store
        self._hosts = hosts

    async def run(self) -> None:
        """For ever."""
        seen = self._store.last_seq()
        while True:
            await self._store.wait_for_change(seen, {tables.CLUSTERS.name})
            newest = self._store.last_seq()
            changes = self._store.changes(seen)
            with self._store.read() as reader:
                if changes is None:  # the feed was trimmed: all clusters may be new
                    clusters = reader.scan(tables.CLUSTERS)
                else:
                    names = {c.key[0] for c in changes if c.table == tables.CLUSTERS.name and c.version}
                    clusters = [c for n in names if (c := reader.get(tables.CLUSTERS, n))]
            # The feed answers a bounded number of changes at a time: the rest is for the next round.
            seen = changes[-1].seq if changes else newest
            for cluster in clusters:
                if cluster.status == "ACTIVE":
                    await self._hosts.join_cluster(cluster.name)
