"""How a task moves through its states: legal moves, and what a host's facts change.

    PROVISIONING ─ placed ─► PENDING ─► ACTIVATING ─► RUNNING
         │                      │            │            │
         └── stop before ───────┴────────────┴────────────┴─► DEACTIVATING ─► STOPPING ─► DEPROVISIONING ─► STOPPED

The source of the words is the ECS task life cycle (reference B.3). A state is never left backwards: facts that come
late, or twice, change nothing.
"""

from msgspec.structs import replace

from hutch.base.errors import Invalid
from hutch.model.task import (
    ACTIVATING,
    DEACTIVATING,
    DEPROVISIONING,
    PENDING,
    PROVISIONING,
    RUNNING,
    STOPPED,
    STOPPING,
    CauseLink,
    Container,
    NetworkInterface,
    Phase,
    Task,
)
from hutch.rules.events.task_changes import passed_states
from hutch.rules.facts import ObservedContainer, ObservedTask

ORDER = (
    PROVISIONING,
    PENDING,
    ACTIVATING,
    RUNNING,
    DEACTIVATING,
    STOPPING,
    DEPROVISIONING,
    STOPPED,
)
_RANK = {status: rank for rank, status in enumerate(ORDER)}

USER_INITIATED = "UserInitiated"
FAILED_TO_START = "TaskFailedToStart"
TERMINATION_NOTICE = "TerminationNotice"


def can_move(old: str, new: str) -> bool:
    """Whether a task may go from one state to another (staying is no move)."""
    if old not in _RANK or new not in _RANK:
        raise Invalid(f"unknown task status {new!r}")
    return _RANK[new] > _RANK[old]


def placed(task: Task, host_id: str, now: float) -> Task:
    """The task after a host was found for it."""
    return replace(
        task,
        host_id=host_id,
        last_status=PENDING,
        waiting_reason="",
        placed_at=now,
        phases=(*task.phases, Phase(name="placement", started_at=task.created_at, ended_at=now)),
        event_version=task.event_version + 1,
    )


def stop_requested(
    task: Task, code: str, reason: str, by: str, now: float, kind: str = "StopRequested"
) -> Task:
    """The task after somebody asked for its end. The first to ask gives the reason; later ones change nothing."""
    if task.desired_status == STOPPED:
        return task
    changed = replace(
        task,
        desired_status=STOPPED,
        stop_code=code,
        stopped_reason=reason,
        stop_requested_by=by,
        causes=(*task.causes, CauseLink(kind=kind, text=reason, evidence={"by": by})),
        event_version=task.event_version + 1,
    )
    return changed if task.host_id else _stopped(changed, now)


def never_ran(task: Task, reason: str, causes: tuple[CauseLink, ...], now: float) -> Task:
    """The task after it turned out that it can't be started at all."""
    changed = replace(
        task,
        desired_status=STOPPED,
        stop_code=task.stop_code or FAILED_TO_START,
        stopped_reason=task.stopped_reason or reason,
        causes=(*task.causes, *causes),
    )
    return _counted(task, _stopped(changed, now))


def host_lost(task: Task, cause: CauseLink, now: float) -> Task:
    """The task after its host was given up: nothing more is known of it, and nobody waits for it. `cause` is of kind
    HostLost, with the host's id as evidence; whoever asked for the task's end before gives the reason."""
    words = f"Host EC2 (instance {cause.evidence.get('host_id', '')}) terminated."  # AWS's own
    changed = replace(
        task,
        desired_status=STOPPED,
        stop_code=task.stop_code or TERMINATION_NOTICE,
        stopped_reason=task.stopped_reason or words,
        causes=(*task.causes, cause),
        suspended_at=None,
    )
    return _counted(task, _stopped(changed, now))


def observed(task: Task, facts: ObservedTask) -> Task:
    """The task after a host reported what it knows of it. Returns the same object if nothing changed."""
    if task.is_stopped:
        return task
    moves = can_move(task.last_status, facts.status)
    status = facts.status if moves else task.last_status
    ends = _RANK[status] >= _RANK[DEACTIVATING]
    changed = replace(
        task,
        last_status=status,
        desired_status=STOPPED if ends else task.desired_status,
        containers=tuple(_container(c, facts.containers) for c in task.containers),
        stop_code=task.stop_code or (facts.stop_code if ends else ""),
        stopped_reason=task.stopped_reason or (facts.stopped_reason if ends else ""),
        causes=_causes(task, facts),
        phases=(*(p for p in task.phases if p.name == "placement"), *facts.phases),
        connectivity="CONNECTED" if facts.network_ready_at else task.connectivity,
        connectivity_at=task.connectivity_at or facts.network_ready_at,
        pull_started_at=task.pull_started_at or facts.pull_started_at,
        pull_stopped_at=task.pull_stopped_at or facts.pull_stopped_at,
        started_at=task.started_at or facts.started_at,
        stopping_at=task.stopping_at or facts.stopping_at,
        execution_stopped_at=task.execution_stopped_at or facts.execution_stopped_at,
        stopped_at=task.stopped_at or (facts.stopped_at if status == STOPPED else None),
        network=_network(task, facts, status),
        suspended_at=None if ends else facts.suspended_at,
    )
    changed = replace(changed, health_status=task_health(changed.containers))
    if changed == task:
        return task
    emits = (
        changed.last_status != task.last_status
        or changed.containers != task.containers
        or changed.suspended_at != task.suspended_at
    )
    if not emits:
        return changed
    return _counted(task, changed)


def task_health(containers: tuple[Container, ...]) -> str:
    """Any essential container UNHEALTHY: UNHEALTHY; else any UNKNOWN: UNKNOWN; else HEALTHY. Only containers with a
    health check count; without any, UNKNOWN (reference B.4)."""
    states = [c.health_status for c in containers if c.essential and c.has_health_check]
    if "UNHEALTHY" in states:
        return "UNHEALTHY"
    if not states or "UNKNOWN" in states:
        return "UNKNOWN"
    return "HEALTHY"


def _stopped(task: Task, now: float) -> Task:
    """Straight to the end, for a task that no host ever had."""
    placement = Phase(name="placement", started_at=task.created_at, ended_at=now)
    return replace(
        task,
        last_status=STOPPED,
        stopping_at=task.stopping_at or now,
        stopped_at=now,
        waiting_reason="",
        containers=tuple(replace(c, last_status="STOPPED") for c in task.containers),
        network=replace(task.network, status="DELETED") if task.network else None,
        phases=task.phases if task.placed_at is not None else (*task.phases, placement),
    )


def _counted(before: Task, after: Task) -> Task:
    """The task with a version for each state that it passed: each is an event of its own."""
    passed = len(passed_states(before.last_status, after))
    return replace(after, event_version=before.event_version + passed)


def _container(container: Container, facts: tuple[ObservedContainer, ...]) -> Container:
    fact = next((f for f in facts if f.name == container.name), None)
    if fact is None:
        return container
    return replace(
        container,
        last_status=fact.status,
        runtime_id=fact.runtime_id or container.runtime_id,
        image_digest=fact.image_digest or container.image_digest,
        health_status=fact.health,
        exit_code=fact.exit_code,
        reason=fact.reason,
        restart_count=fact.restart_count,
        started_at=fact.started_at,
        finished_at=fact.finished_at,
        log_dropped_bytes=fact.log_dropped_bytes,
        log_waiting_bytes=fact.log_waiting_bytes,
        log_problem=fact.log_problem,
    )


def _causes(task: Task, facts: ObservedTask) -> tuple[CauseLink, ...]:
    """What was known here (who asked for the stop) comes first, then all that the host found out."""
    own = tuple(
        c
        for c in task.causes
        if c.kind in ("StopRequested", "MaxRuntimeExceeded", "HostLost", "SpotInterruption")
    )
    return (*own, *(c for c in facts.causes if c not in own))


def _network(task: Task, facts: ObservedTask, status: str) -> NetworkInterface | None:
    if task.network is None:
        return None
    if status == STOPPED:
        return replace(task.network, status="DELETED")
    if facts.network_ready_at:
        return replace(task.network, status="ATTACHED")
    return task.network
