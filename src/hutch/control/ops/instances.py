"""Use cases of container instances: hosts as members of ECS clusters.

A host joins its clusters by itself when it connects. An instance that was deregistered keeps its record, INACTIVE,
so that the host stays away when it connects again; registering it again brings it back under the same id.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import Invalid, LimitExceeded, NotFound
from hutch.base.ids import IdSource
from hutch.control.ops.hosts import ensure_instance
from hutch.control.ops.placing import store_stopped
from hutch.control.ops.tasks import active_cluster
from hutch.model.host import ContainerInstance, Host, Reservation
from hutch.model.record import Cause
from hutch.model.task import RUNNING, STOPPED, Task
from hutch.rules import lifecycle
from hutch.rules.arns import short_name
from hutch.rules.attributes import MAX_CUSTOM_ATTRIBUTES, all_attributes, check_attribute, subject
from hutch.rules.placement_expression import parse as parse_expression
from hutch.store import tables
from hutch.store.contract import IndexKey, Reader, Store, Tx

ACTIVE, DRAINING, INACTIVE = "ACTIVE", "DRAINING", "INACTIVE"
MAX_ATTRIBUTES_PER_CALL = 10
FORCED = "Container instance deregistration forced by user"


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """A container instance with its host and what the host has promised."""

    instance: ContainerInstance
    host: Host
    reservation: Reservation
    running: int
    pending: int
    groups: frozenset[str]
    """The groups of the tasks on it."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What RegisterContainerInstance says: which host, or which earlier instance, and what it is to carry."""

    host_id: str
    instance_id: str
    attributes: dict[str, str]
    tags: dict[str, str]


class InstanceOps:
    """Container instance use cases."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids

    async def register(self, cause: Cause, cluster: str, wanted: Registration) -> InstanceView:
        """Make a known host a member of a cluster, or bring back an instance that was deregistered.

        Raises `Invalid` for a host that has never connected: only a host agent brings a new one.
        """

        def work(tx: Tx) -> InstanceView:
            name = active_cluster(tx, cluster).name
            instance = self._registered(tx, name, wanted)
            after = replace(
                instance,
                status=ACTIVE if instance.status == INACTIVE else instance.status,
                attributes={**instance.attributes, **wanted.attributes},
                tags={**instance.tags, **wanted.tags},
            )
            if after != instance:
                after = tx.put(tables.CONTAINER_INSTANCES, after)
            return instance_view(tx, after)

        return await self._store.write(cause, work)

    def _registered(self, tx: Tx, cluster: str, wanted: Registration) -> ContainerInstance:
        if wanted.instance_id:
            known = tx.get(tables.CONTAINER_INSTANCES, cluster, wanted.instance_id)
            if known is None:
                raise Invalid("The specified container instance was not found in the cluster.")
            return known
        if not wanted.host_id or tx.get(tables.HOSTS, wanted.host_id) is None:
            raise Invalid(
                f"There is no host {wanted.host_id[:100]!r}: a host joins by starting hutch's host agent on it; "
                "instanceIdentityDocument can name the instanceId of a host that has joined before.",
                code="ClientException",
            )
        return ensure_instance(tx, cluster, wanted.host_id, self._ids, self._clock)

    async def deregister(self, cause: Cause, cluster: str, reference: str, *, force: bool) -> InstanceView:
        """ACTIVE or DRAINING to INACTIVE. Tasks placed on the instance are refused, or with `force` stopped."""

        def work(tx: Tx) -> InstanceView:
            name = active_cluster(tx, cluster).name
            instance = tx.get(tables.CONTAINER_INSTANCES, name, short_name(reference))
            if instance is None:
                raise Invalid("The specified container instance was not found in the cluster.")
            tasks = _tasks_on(tx, instance)
            if any(t.desired_status != STOPPED for t in tasks) and not force:
                raise Invalid("Found running tasks on the instance.")
            for task in tasks:
                after = lifecycle.stop_requested(
                    task, lifecycle.USER_INITIATED, FORCED, cause.actor, self._clock.now()
                )
                if after is not task:
                    store_stopped(tx, task, after)
            if instance.status != INACTIVE:
                instance = tx.put(tables.CONTAINER_INSTANCES, replace(instance, status=INACTIVE))
            return instance_view(tx, instance)

        return await self._store.write(cause, work)

    def describe(self, cluster: str, references: Sequence[str]) -> tuple[list[InstanceView], list[str]]:
        """(found, missing)."""
        if not 1 <= len(references) <= 100:
            raise Invalid("containerInstances must name 1 to 100 instances.")
        with self._store.read() as reader:
            name = active_cluster(reader, cluster).name
            found, missing = [], []
            for reference in references:
                instance = reader.get(tables.CONTAINER_INSTANCES, name, short_name(reference))
                if instance is None:
                    missing.append(reference)
                else:
                    found.append(instance_view(reader, instance))
            return found, missing

    def page(
        self, cluster: str, status: str, expression: str, after: IndexKey | None, limit: int
    ) -> tuple[list[ContainerInstance], bool]:
        """A page, filtered by status ("" for all but INACTIVE) and by the cluster query language."""
        wanted = parse_expression(expression) if expression else None
        with self._store.read() as reader:
            name = active_cluster(reader, cluster).name
            page = []
            for instance in reader.scan(tables.CONTAINER_INSTANCES, name, after=after):
                if instance.status != status if status else instance.status == INACTIVE:
                    continue
                view = instance_view(reader, instance)
                if wanted is None or wanted(subject(instance, view.host, view.running, view.groups)):
                    page.append(instance)
        return page[:limit], len(page) > limit

    async def set_status(
        self, cause: Cause, cluster: str, references: Sequence[str], status: str
    ) -> tuple[list[InstanceView], list[tuple[str, str]]]:
        """ACTIVE or DRAINING; (changed, [(reference, reason)]).

        A draining instance gets no new tasks; what runs on it is left alone. An INACTIVE one is registered again
        instead.
        """
        if not 1 <= len(references) <= 10:
            raise Invalid("containerInstances must name 1 to 10 instances.")
        if status not in (ACTIVE, DRAINING):
            raise Invalid("status must be ACTIVE or DRAINING.")

        def work(tx: Tx) -> tuple[list[InstanceView], list[tuple[str, str]]]:
            name = active_cluster(tx, cluster).name
            found, failures = [], []
            for reference in references:
                instance = tx.get(tables.CONTAINER_INSTANCES, name, short_name(reference))
                if instance is None or instance.status == INACTIVE:
                    failures.append((reference, "MISSING" if instance is None else INACTIVE))
                    continue
                if instance.status != status:
                    instance = tx.put(tables.CONTAINER_INSTANCES, replace(instance, status=status))
                found.append(instance_view(tx, instance))
            return found, failures

        return await self._store.write(cause, work)

    async def put_attributes(
        self, cause: Cause, cluster: str, attributes: Sequence[dict[str, str]]
    ) -> list[ContainerInstance]:
        """Set custom attributes of instances; those without "value" are removed. The instance of each, in order."""
        if not 1 <= len(attributes) <= MAX_ATTRIBUTES_PER_CALL:
            raise Invalid(f"attributes must have 1 to {MAX_ATTRIBUTES_PER_CALL} items.")

        def work(tx: Tx) -> list[ContainerInstance]:
            name = active_cluster(tx, cluster).name
            changed = []
            for attribute in attributes:
                instance = tx.get(tables.CONTAINER_INSTANCES, name, short_name(attribute.get("targetId", "")))
                if instance is None or instance.status == INACTIVE:
                    raise NotFound("The specified target was not found.", code="TargetNotFoundException")
                kept = {k: v for k, v in instance.attributes.items() if k != attribute["name"]}
                if "value" in attribute:
                    check_attribute(attribute["name"], attribute["value"])
                    kept[attribute["name"]] = attribute["value"]
                if len(kept) > max(MAX_CUSTOM_ATTRIBUTES, len(instance.attributes)):
                    raise LimitExceeded(
                        f"A container instance can have at most {MAX_CUSTOM_ATTRIBUTES} custom attributes.",
                        code="AttributeLimitExceededException",
                    )
                changed.append(tx.put(tables.CONTAINER_INSTANCES, replace(instance, attributes=kept)))
            return changed

        return await self._store.write(cause, work)

    def attributes(
        self, cluster: str, name: str, value: str | None, after: IndexKey | None, limit: int
    ) -> tuple[list[tuple[ContainerInstance, str, str]], bool]:
        """A page of (instance, attribute, value) by instance and attribute, and whether there are more.

        Only attributes of this name ("" for all), and only with this value (None for any).
        """
        found = []
        with self._store.read() as reader:
            for instance in reader.scan(tables.CONTAINER_INSTANCES, active_cluster(reader, cluster).name):
                if instance.status == INACTIVE:
                    continue
                host = reader.get(tables.HOSTS, instance.host_id) or Host(host_id=instance.host_id, name="")
                for key, held in sorted(all_attributes(instance, host).items()):
                    if name in ("", key) and value in (None, held):
                        found.append((instance, key, held))
        if after is not None:
            found = [f for f in found if (f[0].instance_id, f[1]) > after]
        return found[:limit], len(found) > limit


def _tasks_on(reader: Reader, instance: ContainerInstance) -> list[Task]:
    """Tasks that are not stopped and were placed on this instance."""
    return [
        t
        for t in reader.scan(tables.TASKS, instance.host_id, index="by_host")
        if t.container_instance_id == instance.instance_id
    ]


def instance_view(reader: Reader, instance: ContainerInstance) -> InstanceView:
    tasks = _tasks_on(reader, instance)
    return InstanceView(
        instance=instance,
        host=reader.get(tables.HOSTS, instance.host_id) or Host(host_id=instance.host_id, name=""),
        reservation=reader.get(tables.RESERVATIONS, instance.host_id)
        or Reservation(host_id=instance.host_id),
        running=sum(1 for t in tasks if t.last_status == RUNNING),
        pending=sum(1 for t in tasks if t.desired_status != STOPPED and t.last_status != RUNNING),
        groups=frozenset(t.group for t in tasks),
    )
