"""Placing tasks: the plan is made from a snapshot by `rules.placement` and committed in the same unit of work.

The reservation of a host is a record of its own, so that two plans from one snapshot can't both claim the same
memory: the second put is refused as stale and the unit of work runs again.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import LimitExceeded
from hutch.base.ids import IdSource
from hutch.control.ops.vpc import NetworkExhausted, lease_address, lease_port, release_address, release_ports
from hutch.model.host import Reservation
from hutch.model.task import CauseLink, Container, Endpoint, NetworkBinding, Task
from hutch.rules import lifecycle, placement
from hutch.store import tables
from hutch.store.contract import Reader, Tx, ordering_key


class PlacementLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that placement goes by."""

    cpu_overcommit: float
    memory_reserve_mib: int
    ingress_ports: tuple[int, int]
    """First and last host port that may be chosen for a published port."""


def snapshot(reader: Reader, limits: PlacementLimits, *, with_groups: bool) -> list[placement.Candidate]:
    """All hosts with what is left of them. `with_groups` reads their tasks too (see `looks_at_groups`)."""
    candidates = []
    for host in reader.scan(tables.HOSTS):
        groups: set[tuple[str, str]] = set()
        if with_groups:
            groups = {(t.cluster, t.group) for t in reader.scan(tables.TASKS, host.host_id, index="by_host")}
        candidates.append(
            placement.candidate(
                host,
                reader.get(tables.RESERVATIONS, host.host_id),
                reader.scan(tables.CONTAINER_INSTANCES, host.host_id, index="by_host"),
                groups,
                cpu_overcommit=limits.cpu_overcommit,
                memory_reserve_mib=limits.memory_reserve_mib,
            )
        )
    return candidates


def plan_for(reader: Reader, queue: Sequence[Task], limits: PlacementLimits) -> placement.Plan:
    """A plan for a queue of tasks, from what the reader sees."""
    with_groups = any(placement.looks_at_groups(t) for t in queue)
    return placement.make_plan(queue, snapshot(reader, limits, with_groups=with_groups))


def place_new(
    tx: Tx, tasks: Sequence[Task], limits: PlacementLimits, ids: IdSource, clock: Clock
) -> tuple[list[Task], list[placement.Waiting]]:
    """Place tasks that are not in the store yet, in the unit of work that makes them: each is written once.

    Returns the placed ones as stored, and the others, not stored.
    """
    plan = plan_for(tx, tasks, limits)
    placed = [tx.put(tables.TASKS, _place_or_end(tx, d.task, d, limits, ids, clock)) for d in plan.placements]
    return placed, list(plan.waiting)


def commit_plan(tx: Tx, plan: placement.Plan, limits: PlacementLimits, ids: IdSource, clock: Clock) -> int:
    """Carry a plan for stored tasks out; write down why the others wait. Returns how many were placed."""
    count = 0
    for decision in plan.placements:
        if current := _still_waits(tx, decision.task):
            task = tx.put(tables.TASKS, _place_or_end(tx, current, decision, limits, ids, clock))
            count += not task.is_stopped
    for waiting in plan.waiting:
        current = _still_waits(tx, waiting.task)
        if current and current.waiting_reason != waiting.reason:
            tx.put(tables.TASKS, replace(current, waiting_reason=waiting.reason))
    return count


def _still_waits(reader: Reader, task: Task) -> Task | None:
    """The task as it is now, unless it was placed or ended meanwhile."""
    current = reader.get(tables.TASKS, task.cluster, task.task_id)
    return current if current and not current.host_id and not current.is_stopped else None


def _place_or_end(
    tx: Tx, task: Task, decision: placement.Placement, limits: PlacementLimits, ids: IdSource, clock: Clock
) -> Task:
    """The task on its host, with what it holds there leased. A full subnet or a taken port is not cured by waiting
    for a host: then the task says so and ends."""
    try:
        bound = _bind(tx, task, decision.host_id, limits, ids, clock)
    except NetworkExhausted as refusal:
        cause = CauseLink(kind=refusal.kind, text=refusal.text, fix=refusal.fix)
        reason = f"ResourceInitializationError: {refusal.text}"
        return lifecycle.never_ran(task, reason, (cause,), clock.now())
    except LimitExceeded as refusal:
        cause = CauseLink(kind="NetworkUnavailable", text=refusal.message)
        reason = f"ResourceInitializationError: {refusal.message}"
        return lifecycle.never_ran(task, reason, (cause,), clock.now())
    instance = decision.container_instance_id or task.container_instance_id
    reserve(tx, decision.host_id, bound, +1)
    return lifecycle.placed(replace(bound, container_instance_id=instance), decision.host_id, clock.now())


def as_shown(reader: Reader, task: Task) -> Task:
    """The task with what is not stored with it: one that waits says its place in the queue; one whose host is away is not
    connected, as far as anybody knows."""
    if task.connectivity and not task.is_stopped:
        host = reader.get(tables.HOSTS, task.host_id)
        return task if host is None or host.connected else replace(task, connectivity="DISCONNECTED")
    if not task.waiting_reason:
        return task
    key = ordering_key(tables.TASKS, task, "unplaced")
    ahead = reader.count(tables.TASKS, index="unplaced", before=key)
    return replace(task, waiting_reason=f"position {ahead + 1} in the queue: {task.waiting_reason}")


def _bind(tx: Tx, task: Task, host_id: str, limits: PlacementLimits, ids: IdSource, clock: Clock) -> Task:
    """Give the task its address and its published ports. Raises `LimitExceeded`."""
    if task.requested_subnets and task.network_mode not in ("host", "none"):
        subnet_id = task.requested_subnets[int(task.task_id[:8], 16) % len(task.requested_subnets)]
        network = lease_address(tx, task.task_id, subnet_id, task.requested_security_groups, ids, clock)
        subnet = tx.get(tables.SUBNETS, subnet_id)
        task = replace(task, network=network, availability_zone=subnet.availability_zone if subnet else "")
    endpoints = []
    try:
        for wanted, container_port in task.publish:
            port = lease_port(tx, host_id, wanted, limits.ingress_ports, task.task_id, container_port)
            endpoints.append(Endpoint(name=task.endpoint_name, host_port=port, container_port=container_port))
    except LimitExceeded:
        release_all(tx, task)
        raise
    return replace(task, endpoints=tuple(endpoints), containers=_with_bindings(task, endpoints))


def _with_bindings(task: Task, endpoints: Sequence[Endpoint]) -> tuple[Container, ...]:
    """Each published port at the container that maps it; at the first if the task's record does not say."""
    if not endpoints:
        return task.containers
    bindings: dict[str, list[NetworkBinding]] = {}
    for e in endpoints:
        owner = next((c for c in task.containers if e.container_port in c.ports), task.containers[0])
        binding = NetworkBinding(container_port=e.container_port, host_port=e.host_port)
        bindings.setdefault(owner.name, []).append(binding)
    return tuple(
        replace(c, network_bindings=tuple(bindings[c.name])) if c.name in bindings else c
        for c in task.containers
    )


def reserve(tx: Tx, host_id: str, task: Task, sign: int) -> None:
    """Add a task to (or, with `sign` -1, take it from) what a host has promised."""
    cpu_units, memory_mib = promised(task)
    _promise(tx, host_id, sign * cpu_units, sign * memory_mib, sign)


def promised(task: Task) -> tuple[int, int]:
    """CPU units and MiB that a host keeps for a task: nothing for one that is suspended."""
    return (0, 0) if task.gave_back else (task.cpu, task.memory_mib)


def settle_suspension(tx: Tx, task: Task) -> Task:
    """The task with its reservation as it should be by what its host says: given back while it is suspended. One that runs
    has it, even if that is more than the host wants to promise."""
    if task.is_stopped or task.gave_back == task.is_suspended:
        return task
    if task.is_suspended:
        return give_back(tx, task)
    return take_again(tx, task)


def give_back(tx: Tx, task: Task) -> Task:
    """The task without its reservation; to be stored in the same unit of work."""
    _promise(tx, task.host_id, -task.cpu, -task.memory_mib, 0)
    return replace(task, gave_back=True)


def take_again(tx: Tx, task: Task) -> Task:
    """The task with its reservation; to be stored in the same unit of work."""
    _promise(tx, task.host_id, task.cpu, task.memory_mib, 0)
    return replace(task, gave_back=False)


def missing_room(reader: Reader, host_id: str, task: Task, count: int, limits: PlacementLimits) -> str:
    """Why a host can't take so many tasks of that size now; "" if it can."""
    host = reader.get(tables.HOSTS, host_id)
    if host is None:
        return f"its host {host_id} is not there any more"
    room = placement.candidate(
        host,
        reader.get(tables.RESERVATIONS, host_id),
        (),
        set(),
        cpu_overcommit=limits.cpu_overcommit,
        memory_reserve_mib=limits.memory_reserve_mib,
    )
    if room.memory_left_mib < count * task.memory_mib:
        return (
            f"its host {host.name} has {max(0, room.memory_left_mib)} MiB of memory left, and "
            f"{count * task.memory_mib} are needed"
        )
    if room.cpu_left < count * task.cpu:
        return f"its host {host.name} has {max(0, room.cpu_left)} CPU units left, and {count * task.cpu} are needed"
    return ""


def _promise(tx: Tx, host_id: str, cpu_units: int, memory_mib: int, tasks: int) -> None:
    current = tx.get(tables.RESERVATIONS, host_id) or Reservation(host_id=host_id)
    tx.put(
        tables.RESERVATIONS,
        replace(
            current,
            cpu_units=current.cpu_units + cpu_units,
            memory_mib=current.memory_mib + memory_mib,
            task_count=current.task_count + tasks,
        ),
    )


def place_on(tx: Tx, task: Task, host_id: str, limits: PlacementLimits, ids: IdSource, clock: Clock) -> Task:
    """Store a new task on a host that was chosen for it. Raises `LimitExceeded` if it has no address or port for it."""
    bound = _bind(tx, task, host_id, limits, ids, clock)
    reserve(tx, host_id, bound, +1)
    return tx.put(tables.TASKS, lifecycle.placed(bound, host_id, clock.now()))


def release_all(tx: Tx, task: Task) -> None:
    """Give back the task's address and ports. Idempotent."""
    if task.network is not None:
        release_address(tx, task.task_id, task.network.private_ipv4)
    if task.publish:
        release_ports(tx, task.task_id)


def store_stopped(tx: Tx, before: Task, after: Task) -> Task:
    """Put a task back; if it became STOPPED with this, give back all that it held."""
    stored = tx.put(tables.TASKS, after)
    if after.is_stopped and not before.is_stopped:
        release_all(tx, after)
        if before.host_id:
            reserve(tx, before.host_id, before, -1)
    return stored
