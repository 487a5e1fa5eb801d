"""Use cases of tasks that leave their host's memory and come back, and of copies of running tasks."""

from hutch.base.clock import Clock
from hutch.base.errors import Conflict, HutchError, Invalid, LimitExceeded
from hutch.base.ids import IdSource
from hutch.control.ops.images import HostRequests
from hutch.control.ops.placing import (
    PlacementLimits,
    missing_room,
    place_on,
    settle_suspension,
    take_again,
)
from hutch.control.ops.tasks import TaskOps
from hutch.model.record import Cause
from hutch.model.task import PROVISIONING, RUNNING, Container, Task
from hutch.store import tables
from hutch.store.contract import Store, Tx

MAX_FORKS = 10
FORK_STARTED_BY = "hutch-fork/"


class SuspendOps:
    """Suspend, resume and fork. One instance per control plane."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdSource,
        tasks: TaskOps,
        fleet: HostRequests,
        *,
        limits: PlacementLimits,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._tasks = tasks
        self._fleet = fleet
        self._limits = limits

    async def suspend(self, task: str) -> Task:
        """Take a running task out of its host's memory; it returns when that is done and known. A suspended task stays as
        it is. Raises `Invalid` for a task that can't be, with the reason; it then runs on."""
        found = self._running(task, "suspended")
        await self._fleet.request(found.host_id, "task.suspend", {"task_id": found.task_id})
        return await self._tasks.wait_until(found.task_id, lambda t: t.is_suspended or t.is_stopped)

    async def resume(self, cause: Cause, task: str) -> Task:
        """Let a suspended task go on; it returns when its processes do. A task that runs stays as it is.

        Raises `LimitExceeded` if its host has no room for it now: it stays suspended, and another try may succeed.
        """
        found = self._running(task, "resumed")

        def hold(tx: Tx) -> bool:
            current = self._current(tx, found)
            if current is None or not current.is_suspended:
                return False
            if current.gave_back:
                if missing := missing_room(tx, current.host_id, current, 1, self._limits):
                    raise LimitExceeded(
                        f"task {current.task_id} can't be resumed now: {missing}; stop or suspend another one"
                    )
                tx.put(tables.TASKS, take_again(tx, current))
            return True

        def settle(tx: Tx) -> None:
            current = self._current(tx, found)
            if current is not None and (settled := settle_suspension(tx, current)) is not current:
                tx.put(tables.TASKS, settled)

        if not await self._store.write(cause, hold):
            return self._tasks.find_anywhere(found.task_id)
        try:
            await self._fleet.request(found.host_id, "task.resume", {"task_id": found.task_id})
        except HutchError:
            await self._store.write(cause, settle)
            raise
        return await self._tasks.wait_until(found.task_id, lambda t: not t.is_suspended)

    async def fork(self, cause: Cause, task: str, count: int) -> list[Task]:
        """Copies of a running task, which go on from where it is now, each with an identity, address and randomness of its
        own, on the same host. Raises `Invalid`; `LimitExceeded` if the host has no room for all of them."""
        if not 1 <= count <= MAX_FORKS:
            raise Invalid(f"between 1 and {MAX_FORKS} copies can be made at once, not {count}")
        found = self._running(task, "forked")
        if found.is_suspended:
            raise Conflict(f"task {found.task_id} is suspended; resume it first")
        with self._store.read() as reader:
            if missing := missing_room(reader, found.host_id, found, count, self._limits):
                raise LimitExceeded(f"task {found.task_id} can't be forked now: {missing}")
        snapshot_id = self._ids.hex(32)
        given = {"task_id": found.task_id, "snapshot_id": snapshot_id, "uses": count}
        await self._fleet.request(found.host_id, "task.snapshot", given)
        forks = [self._copy(found, snapshot_id) for _ in range(count)]

        def work(tx: Tx) -> list[Task]:
            if missing := missing_room(tx, found.host_id, found, count, self._limits):
                raise LimitExceeded(f"task {found.task_id} can't be forked now: {missing}")
            return [place_on(tx, f, found.host_id, self._limits, self._ids, self._clock) for f in forks]

        try:
            return await self._store.write(cause, work)
        except HutchError:
            await self._fleet.request(found.host_id, "snapshot.remove", {"snapshot_id": snapshot_id})
            raise

    def _running(self, task: str, what: str) -> Task:
        found = self._tasks.find_anywhere(task)
        if found.last_status != RUNNING or found.desired_status != RUNNING:
            raise Conflict(
                f"only a task that is RUNNING can be {what}; task {found.task_id} is {found.last_status}"
            )
        return found

    @staticmethod
    def _current(tx: Tx, task: Task) -> Task | None:
        current = tx.get(tables.TASKS, task.cluster, task.task_id)
        return current if current is not None and not current.is_stopped else None

    def _copy(self, task: Task, snapshot_id: str) -> Task:
        """A new task of the same definition; what is of one task alone is made anew."""
        return Task(
            task_id=self._ids.hex(32),
            cluster=task.cluster,
            family=task.family,
            revision=task.revision,
            launch_type=task.launch_type,
            capacity_provider=task.capacity_provider,
            platform_version=task.platform_version,
            last_status=PROVISIONING,
            cpu=task.cpu,
            memory_mib=task.memory_mib,
            ephemeral_gib=task.ephemeral_gib,
            overrides=task.overrides,
            group=task.group,
            started_by=f"{FORK_STARTED_BY}{task.task_id}",
            enable_execute_command=task.enable_execute_command,
            tags=task.tags,
            max_runtime_s=task.max_runtime_s,
            cpu_capped=task.cpu_capped,
            network_mode=task.network_mode,
            assign_public_ip=task.assign_public_ip,
            requested_subnets=task.requested_subnets,
            requested_security_groups=task.requested_security_groups,
            # Host ports are the original's; a copy gets any that are free.
            publish=tuple((0, container_port) for _, container_port in task.publish),
            endpoint_name=task.endpoint_name,
            containers=tuple(self._copy_container(c) for c in task.containers),
            created_at=self._clock.now(),
            fork_of=task.fork_of or task.task_id,
            snapshot_id=snapshot_id,
        )

    def _copy_container(self, container: Container) -> Container:
        return Container(
            name=container.name,
            container_id=self._ids.uuid(),
            image=container.image,
            cpu=container.cpu,
            memory_mib=container.memory_mib,
            memory_reservation_mib=container.memory_reservation_mib,
            essential=container.essential,
            has_health_check=container.has_health_check,
            ports=container.ports,
        )
