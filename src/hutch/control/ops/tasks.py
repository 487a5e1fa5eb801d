"""Use cases of tasks: run, start, stop, describe, list. The only writers of task records besides the fleet."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import Conflict, Invalid, NotFound
from hutch.base.ids import IdSource
from hutch.control.ops import launch
from hutch.control.ops.disk_snapshots import filled_from_snapshots
from hutch.control.ops.launch import LaunchRequest, Route
from hutch.control.ops.placing import PlacementLimits, as_shown, place_new, store_stopped
from hutch.control.ops.taskdefs import resolve_task_definition
from hutch.control.ops.vpc import resolve_awsvpc
from hutch.model.cluster import Cluster, IdempotencyToken
from hutch.model.record import Cause
from hutch.model.task import STOPPED, Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules import lifecycle
from hutch.rules.arns import short_name, task_id
from hutch.store import tables
from hutch.store.contract import IndexKey, Reader, Store, Tx

MAX_DESCRIBE = 100
RUN_TASK_SCOPE = "RunTask"
"""Of its idempotency tokens: one for the account, so that the cluster is a part of the request like any other."""
MAX_HOSTS_PLACED_AT_ONCE = 16
MAX_REASON_CHARACTERS = 1024
MIN_ID_PREFIX = 4
"""Fewer characters of an id name no task: the beginning of an id is for people, who see twelve of them."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A member of an answer's `failures`."""

    arn: str = ""
    reason: str
    detail: str = ""


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What ListTasks filters by; empty means any."""

    family: str = ""
    started_by: str = ""
    service_name: str = ""
    launch_type: str = ""
    desired_status: str = "RUNNING"
    container_instance: str = ""


class TaskOps:
    """Task use cases. One instance per control plane."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdSource,
        *,
        limits: PlacementLimits,
        wait_for_placement: bool,
        strict_aws: bool,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._limits = limits
        self._wait = wait_for_placement
        self._strict_aws = strict_aws

    async def run(
        self,
        cause: Cause,
        cluster: str,
        reference: str,
        request: LaunchRequest,
        request_input: dict[str, Any],
    ) -> tuple[list[Task], list[Failure]]:
        """RunTask. The same client token with the same request gives the same tasks again; with another,
        `Conflict`."""

        digest = launch.request_digest(cause.actor, request_input) if request.client_token else ""

        def work(tx: Tx) -> tuple[list[Task], list[Failure]]:
            cluster_record = active_cluster(tx, cluster)
            if request.client_token and (
                before := tx.get(tables.IDEMPOTENCY_TOKENS, RUN_TASK_SCOPE, request.client_token)
            ):
                return self._replay(tx, before, digest), []
            definition = resolve_task_definition(tx, reference)
            new = self._new_tasks(tx, request, cluster_record, definition)
            tasks, failures = self._store_new(tx, new)
            if request.client_token:
                tx.put(
                    tables.IDEMPOTENCY_TOKENS,
                    IdempotencyToken(
                        scope=RUN_TASK_SCOPE,
                        token=request.client_token,
                        request_digest=digest,
                        resource_ids=tuple(f"{t.cluster}/{t.task_id}" for t in tasks),
                        created_at=self._clock.now(),
                    ),
                )
            return tasks, failures

        return await self._store.write(cause, work)

    def _replay(self, tx: Tx, before: IdempotencyToken, digest: str) -> list[Task]:
        if before.request_digest != digest:
            raise Conflict(
                "The RunTask request could not be processed due to conflicts. The provided clientToken is already in "
                "use with a different RunTask request.",
                resource_ids=before.resource_ids,
                code="ConflictException",
            )
        keys = [r.split("/") for r in before.resource_ids]
        found = [tx.get(tables.TASKS, *key) for key in keys]
        return [t for t in found if t is not None]

    def _new_tasks(
        self, reader: Reader, request: LaunchRequest, cluster: Cluster, definition: TaskDefinition
    ) -> list[Task]:
        """Task records that are checked and not stored."""
        request = msgspec.structs.replace(
            request, volume_configurations=filled_from_snapshots(reader, request.volume_configurations)
        )
        routes = launch.choose_routes(request, cluster, definition)
        launch.check_request(request, routes, definition)
        subnets, groups = self._network(reader, request, definition)
        return [self._new(request, route, cluster, definition, subnets, groups) for route in routes]

    def _network(
        self, reader: Reader, request: LaunchRequest, definition: TaskDefinition
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Subnets and security groups; without a networkConfiguration those of the default VPC. A `bridge` task gets
        an address from the same range, since its bridge is the VPC's."""
        if definition.document.get("networkMode", "bridge") in ("host", "none"):
            return (), ()
        given = request.awsvpc or {}
        return resolve_awsvpc(reader, given.get("subnets", ()), given.get("securityGroups", ()))

    def _new(
        self,
        request: LaunchRequest,
        route: Route,
        cluster: Cluster,
        definition: TaskDefinition,
        subnets: tuple[str, ...],
        groups: tuple[str, ...],
    ) -> Task:
        return launch.new_task(
            request,
            route,
            cluster,
            definition,
            subnets=subnets,
            security_groups=groups,
            ids=self._ids,
            clock=self._clock,
            strict_aws=self._strict_aws,
        )

    def _store_new(self, tx: Tx, tasks: list[Task]) -> tuple[list[Task], list[Failure]]:
        """Write new tasks, placed at once where that is cheap; what is answered are the tasks as they were made.

        A fleet's hosts are too many to look through within a request: there the placement loop does it, for many tasks
        at once.
        """
        if not self._wait:
            return self._place_or_fail(tx, tasks)
        if tx.count(tables.HOSTS) > MAX_HOSTS_PLACED_AT_ONCE:
            return [tx.put(tables.TASKS, t) for t in tasks], []
        _, waiting = place_new(tx, tasks, self._limits, self._ids, self._clock)
        for left in waiting:
            tx.put(tables.TASKS, msgspec.structs.replace(left.task, waiting_reason=left.reason))
        return tasks, []

    def _place_or_fail(self, tx: Tx, tasks: list[Task]) -> tuple[list[Task], list[Failure]]:
        """AWS's manner: what can't be placed at once is a failure, and no task is made."""
        placed, waiting = place_new(tx, tasks, self._limits, self._ids, self._clock)
        return placed, [Failure(reason=w.failure, detail=w.reason) for w in waiting]

    async def start(
        self,
        cause: Cause,
        cluster: str,
        reference: str,
        instances: Sequence[str],
        request: LaunchRequest,
    ) -> tuple[list[Task], list[Failure]]:
        """StartTask: one task on each of the named container instances, whatever else would be chosen."""
        if not 1 <= len(instances) <= launch.MAX_COUNT:
            raise Invalid(f"containerInstances must name 1 to {launch.MAX_COUNT} instances.")

        def work(tx: Tx) -> tuple[list[Task], list[Failure]]:
            cluster_record = active_cluster(tx, cluster)
            definition = resolve_task_definition(tx, reference)
            one = msgspec.structs.replace(
                request,
                count=1,
                launch_type=request.launch_type or "EC2",
                volume_configurations=filled_from_snapshots(tx, request.volume_configurations),
            )
            routes = launch.choose_routes(one, cluster_record, definition)
            launch.check_request(one, routes, definition)
            subnets, groups = self._network(tx, one, definition)
            tasks: list[Task] = []
            failures: list[Failure] = []
            for given in instances:
                instance = tx.get(tables.CONTAINER_INSTANCES, cluster_record.name, short_name(given))
                if instance is None or instance.status != "ACTIVE":
                    failures.append(Failure(arn=given, reason="MISSING" if instance is None else "INACTIVE"))
                    continue
                task = self._new(one, routes[0], cluster_record, definition, subnets, groups)
                tasks.append(msgspec.structs.replace(task, container_instance_id=instance.instance_id))
            placed, unplaced = self._place_or_fail(tx, tasks)
            return placed, failures + unplaced

        return await self._store.write(cause, work)

    async def stop(self, cause: Cause, cluster: str, task: str, reason: str) -> Task:
        """StopTask: asks for the end; the host carries it out in order. Stopping a stopped task changes nothing."""
        if len(reason) > MAX_REASON_CHARACTERS:
            raise Invalid(f"reason can have at most {MAX_REASON_CHARACTERS} characters.")

        def work(tx: Tx) -> Task:
            current = find_task(tx, active_cluster(tx, cluster).name, task)
            changed = lifecycle.stop_requested(
                current,
                lifecycle.USER_INITIATED,
                reason or "Task stopped by user",
                cause.actor,
                self._clock.now(),
            )
            return current if changed is current else store_stopped(tx, current, changed)

        return await self._store.write(cause, work)

    def describe(self, cluster: str, tasks: Sequence[str]) -> tuple[list[Task], list[str]]:
        """DescribeTasks: the tasks found, and the names that were not."""
        if not tasks:
            raise Invalid("Tasks cannot be empty.")
        if len(tasks) > MAX_DESCRIBE:
            raise Invalid(f"tasks can have at most {MAX_DESCRIBE} items.")
        with self._store.read() as reader:
            name = active_cluster(reader, cluster).name
            found, missing = [], []
            for given in tasks:
                record = reader.get(tables.TASKS, name, task_id(given, name))
                if record is None:
                    missing.append(given)
                else:
                    found.append(as_shown(reader, record))
            return found, missing

    def page(
        self, cluster: str, wanted: TaskFilter, after: IndexKey | None, limit: int
    ) -> tuple[list[Task], bool]:
        """ListTasks: a page of tasks in index order, and whether there are more."""
        with self._store.read() as reader:
            name = active_cluster(reader, cluster).name
            page: list[Task] = []
            while True:
                batch = reader.scan(
                    tables.TASKS, name, wanted.desired_status, index="by_desired", after=after, limit=500
                )
                for task in batch:
                    if _wanted(task, wanted):
                        if len(page) == limit:
                            return page, True
                        page.append(task)
                if len(batch) < 500:
                    return page, False
                after = (name, wanted.desired_status, name, batch[-1].task_id)

    async def wait(self, task: str, statuses: frozenset[str], timeout_s: float) -> Task:
        """The task as soon as it has one of these statuses, or as it is after the time."""
        return await self.wait_until(task, lambda t: t.last_status in statuses, timeout_s)

    async def wait_until(self, task: str, holds: Callable[[Task], bool], timeout_s: float = 10.0) -> Task:
        """The task as soon as this holds of it, or as it is after the time."""
        found = self.find_anywhere(task)
        try:
            async with asyncio.timeout(timeout_s):
                while not holds(found):
                    seen = self._store.last_seq()
                    found = self.find_anywhere(found.task_id)
                    if not holds(found):
                        await self._store.wait_for_change(seen)
        except TimeoutError:
            pass  # the caller sees by the task that the time was up
        return found

    def find_anywhere(self, task: str) -> Task:
        """A task by id or a unique prefix of its id, in any cluster; for hutch's own tools. Raises `NotFound`."""
        wanted = short_name(task)
        with self._store.read() as reader:
            found = reader.scan(tables.TASKS, wanted, index="by_id")
            if not found and MIN_ID_PREFIX <= len(wanted) < 32:
                found = [t for t in reader.scan(tables.TASKS) if t.task_id.startswith(wanted)]
            found = [as_shown(reader, t) for t in found]
        if len(found) > 1:
            raise NotFound(f"{len(found)} tasks have an id that starts with {wanted!r}; give more of it")
        if not found and len(wanted) < MIN_ID_PREFIX:
            raise NotFound(
                f"{wanted!r} is too short for a task's id; give {MIN_ID_PREFIX} characters of it, or more"
            )
        if not found:
            raise NotFound(f"no task has an id that starts with {wanted!r}; `hutch ps --all` lists them")
        return found[0]


def active_cluster(reader: Reader, reference: str) -> Cluster:
    """A cluster by short name or ARN (`""`: default). Raises AWS's `ClusterNotFoundException`."""
    cluster = reader.get(tables.CLUSTERS, short_name(reference or "default"))
    if cluster is None or cluster.status != "ACTIVE":
        raise NotFound("Cluster not found.", code="ClusterNotFoundException")
    return cluster


def find_task(reader: Reader, cluster: str, reference: str, *, member: str = "taskId") -> Task:
    """A task by id or ARN, given as `member`. Raises AWS's words for one that is not there."""
    task = reader.get(tables.TASKS, cluster, task_id(reference, cluster, member))
    if task is None:
        raise Invalid("The referenced task was not found.", code="InvalidParameterException")
    return task


def _wanted(task: Task, wanted: TaskFilter) -> bool:
    return (
        (not wanted.family or task.family == wanted.family)
        and (not wanted.started_by or task.started_by == wanted.started_by)
        and (not wanted.service_name or task.group == f"service:{short_name(wanted.service_name)}")
        and (not wanted.launch_type or task.launch_type == wanted.launch_type)
        and (
            not wanted.container_instance
            or task.container_instance_id == short_name(wanted.container_instance)
        )
    )


def stopped_before(reader: Reader, moment: float, limit: int) -> list[Task]:
    """The longest stopped tasks that ended before `moment` (epoch seconds)."""
    oldest = reader.scan(tables.TASKS, index="stopped", limit=limit)
    return [
        t for t in oldest if t.last_status == STOPPED and t.stopped_at is not None and t.stopped_at < moment
    ]
