"""Use cases of hosts: a host connects, disconnects, reports what it is. Called by the fleet."""

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.control.ops.placing import promised
from hutch.model.host import ContainerInstance, DriverFact, Host, Reservation
from hutch.model.image import LocalImage
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx
from hutch.wire.facts import Fingerprint, ImageFact


class HostOps:
    """Host use cases. `clusters` is the `host_clusters` setting: names, or ("*",) for all."""

    def __init__(
        self, store: Store, clock: Clock, ids: IdSource, *, clusters: tuple[str, ...], default_zone: str
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._clusters = clusters
        self._default_zone = default_zone
        self.connections_changed = asyncio.Event()
        """Set whenever a host has come or gone; whoever waits for it clears it."""

    async def connected(self, host_id: str, fingerprint: Fingerprint) -> int:
        """Record a host and its memberships; its newest durable report sequence number."""

        def work(tx: Tx) -> int:
            before = tx.get(tables.HOSTS, host_id) or Host(
                host_id=host_id, name=fingerprint.name, registered_at=self._clock.now()
            )
            host = replace(
                before,
                name=fingerprint.name,
                connected=True,
                last_seen_at=before.last_seen_at if before.connected else self._clock.now(),
                agent_version=fingerprint.agent_version,
                architecture=fingerprint.architecture,
                availability_zone=before.availability_zone or self._default_zone,
                cpu_units=fingerprint.cpu_units,
                memory_mib=fingerprint.memory_mib,
                disk_gib=fingerprint.disk_gib,
                drivers=tuple(
                    DriverFact(
                        name=d.name,
                        launch_types=d.launch_types,
                        healthy=d.healthy,
                        reason=d.reason,
                        details=d.details,
                    )
                    for d in fingerprint.drivers
                ),
                attributes=fingerprint.attributes,
            )
            tx.put(tables.HOSTS, host)
            self._recount(tx, host_id)
            for cluster in self._member_of(tx):
                ensure_instance(tx, cluster, host_id, self._ids, self._clock)
            reports = tx.get(tables.HOST_REPORTS, host_id)
            return reports.last_seq if reports else 0

        newest = await self._store.write(self._cause(host_id, "connect"), work)
        self.connections_changed.set()
        return newest

    async def disconnected(self, host_id: str, silent_s: float = 0.0) -> None:
        """The host's connection ended, or nothing came for `silent_s`. Its tasks are left as they are: they go on
        without us."""

        def work(tx: Tx) -> None:
            host = tx.get(tables.HOSTS, host_id)
            if host and host.connected:
                seen_at = self._clock.now() - silent_s
                tx.put(tables.HOSTS, replace(host, connected=False, last_seen_at=seen_at))

        await self._store.write(self._cause(host_id, "disconnect"), work)
        self.connections_changed.set()

    async def all_disconnected(self) -> None:
        """At start: whoever was connected to an earlier control plane is not connected to this one yet, and was last
        heard of we don't know when, but not after now."""

        def work(tx: Tx) -> None:
            for host in tx.scan(tables.HOSTS):
                if host.connected:
                    tx.put(tables.HOSTS, replace(host, connected=False, last_seen_at=self._clock.now()))

        await self._store.write(self._cause("", "start"), work)

    def get(self, host_id: str) -> Host | None:
        """A host."""
        with self._store.read() as reader:
            return reader.get(tables.HOSTS, host_id)

    def all(self) -> list[tuple[Host, Reservation]]:
        """Every host that was ever here, with what it has promised."""
        with self._store.read() as reader:
            return [
                (h, reader.get(tables.RESERVATIONS, h.host_id) or Reservation(host_id=h.host_id))
                for h in reader.scan(tables.HOSTS)
            ]

    async def images_reported(self, host_id: str, images: Sequence[ImageFact]) -> None:
        """Make the list of local images equal to what the host says."""

        def work(tx: Tx) -> None:
            told = {i.name: i for i in images}
            for record in tx.scan(tables.LOCAL_IMAGES):
                if record.host_id == host_id and record.name not in told:
                    tx.delete(tables.LOCAL_IMAGES, record.name)
            for image in images:
                put_image(tx, host_id, image)

        await self._store.write(self._cause(host_id, "images"), work)

    async def join_cluster(self, cluster: str) -> None:
        """A cluster came into being: hosts that serve every cluster join it."""

        def work(tx: Tx) -> None:
            if self._clusters == ("*",) or cluster in self._clusters:
                for host in tx.scan(tables.HOSTS):
                    ensure_instance(tx, cluster, host.host_id, self._ids, self._clock)

        await self._store.write(self._cause("", f"join {cluster}"), work)

    def _member_of(self, reader: Reader) -> list[str]:
        active = [c.name for c in reader.scan(tables.CLUSTERS) if c.status == "ACTIVE"]
        return active if self._clusters == ("*",) else [c for c in active if c in self._clusters]

    @staticmethod
    def _recount(tx: Tx, host_id: str) -> None:
        """What the host has promised, counted anew from its tasks: a drift can't outlive a reconnect."""
        tasks = tx.scan(tables.TASKS, host_id, index="by_host")
        before = tx.get(tables.RESERVATIONS, host_id) or Reservation(host_id=host_id)
        counted = replace(
            before,
            cpu_units=sum(promised(t)[0] for t in tasks),
            memory_mib=sum(promised(t)[1] for t in tasks),
            task_count=len(tasks),
        )
        if counted != before:
            tx.put(tables.RESERVATIONS, counted)

    @staticmethod
    def _cause(host_id: str, action: str) -> Cause:
        return Cause(
            id=f"{host_id}/{action}", actor=f"host:{host_id}" if host_id else "control", action=action
        )


def ensure_instance(tx: Tx, cluster: str, host_id: str, ids: IdSource, clock: Clock) -> ContainerInstance:
    """The host's membership of a cluster; made if it has none. One that was deregistered stays away."""
    for instance in tx.scan(tables.CONTAINER_INSTANCES, host_id, index="by_host"):
        if instance.cluster == cluster:
            return instance
    return tx.put(
        tables.CONTAINER_INSTANCES,
        ContainerInstance(
            instance_id=ids.hex(32), cluster=cluster, host_id=host_id, registered_at=clock.now()
        ),
    )


def put_image(tx: Tx, host_id: str, image: ImageFact) -> LocalImage:
    """Write down a local image of a host."""
    before = tx.get(tables.LOCAL_IMAGES, image.name)
    record = LocalImage(
        version=before.version if before else 0,
        name=image.name,
        digest=image.digest,
        size_bytes=image.size_bytes,
        architecture=image.architecture,
        imported_at=image.imported_at,
        host_id=host_id,
    )
    return record if record == before else tx.put(tables.LOCAL_IMAGES, record)
