"""What a change of a task's record says to the world: the states it passed through, and the task in each of them.

A record may jump over states: a task that is placed at once is written first as PENDING, and of several reports of a
host only the newest is applied. AWS tells every state, so what lies between is made up again from the times that the
record carries.
"""

from msgspec.structs import replace

from hutch.model.notes import TaskNote
from hutch.model.task import (
    ACTIVATING,
    DEACTIVATING,
    DEPROVISIONING,
    PENDING,
    PROVISIONING,
    RUNNING,
    STOPPED,
    STOPPING,
    Container,
    Task,
)

_ORDER = (PROVISIONING, PENDING, ACTIVATING, RUNNING, DEACTIVATING, STOPPING, DEPROVISIONING, STOPPED)
_RANK = {status: rank for rank, status in enumerate(_ORDER)}


def passed_states(before: str, task: Task) -> tuple[str, ...]:
    """The states that a task went through to be what it is now, itself included. `before`: "" for a new task.

    A task that no host had ends without the steps of a host's cleaning up; one that never ran did not pass RUNNING.
    """
    last = task.last_status
    if before == last:
        return (last,)
    first = _RANK[before] + 1 if before else 0
    return (*(s for s in _ORDER[first : _RANK[last]] if _was_in(task, s)), last)


def _was_in(task: Task, status: str) -> bool:
    if status == PROVISIONING:
        return True
    if not task.host_id:
        return False
    if status == ACTIVATING:
        return task.pull_started_at is not None or task.started_at is not None
    return status != RUNNING or task.started_at is not None


def snapshots(note: TaskNote) -> list[tuple[Task, float | None]]:
    """The task in each state it passed, oldest first, with when that was (None: at the time of the change)."""
    states = passed_states(note.before, note.task)
    made = []
    for back, status in zip(range(len(states) - 1, -1, -1), states, strict=True):
        task = note.task
        if back:
            task = replace(_as_it_was(task, status), event_version=max(1, task.event_version - back))
        made.append((task, _entered_at(task, status) if status != note.before else None))
    return made


def _entered_at(task: Task, status: str) -> float | None:
    return {
        PROVISIONING: task.created_at,
        PENDING: task.placed_at,
        ACTIVATING: task.pull_started_at or task.connectivity_at,
        RUNNING: task.started_at,
        DEACTIVATING: task.stopping_at,
        STOPPING: task.stopping_at,
        DEPROVISIONING: task.execution_stopped_at or task.stopping_at,
        STOPPED: task.stopped_at,
    }[status]


def _as_it_was(task: Task, status: str) -> Task:
    """The task in an earlier state: nothing of what came later."""
    rank = _RANK[status]
    started, ending = rank >= _RANK[RUNNING], rank > _RANK[RUNNING]
    ended = rank >= _RANK[DEPROVISIONING]
    network = task.network
    if network is not None:
        network = replace(network, status="ATTACHED" if rank >= _RANK[ACTIVATING] else "PRECREATED")
    return replace(
        task,
        last_status=status,
        desired_status=STOPPED if ending else RUNNING,
        containers=tuple(c if ended else _container_then(c, started) for c in task.containers),
        network=network,
        health_status=task.health_status if ended else "UNKNOWN",
        stop_code=task.stop_code if ending else "",
        stopped_reason=task.stopped_reason if ending else "",
        container_instance_id=task.container_instance_id if status != PROVISIONING else "",
        connectivity=task.connectivity if rank >= _RANK[ACTIVATING] else "",
        connectivity_at=task.connectivity_at if rank >= _RANK[ACTIVATING] else None,
        pull_started_at=task.pull_started_at if rank >= _RANK[ACTIVATING] else None,
        pull_stopped_at=task.pull_stopped_at if started else None,
        started_at=task.started_at if started else None,
        stopping_at=task.stopping_at if ending else None,
        execution_stopped_at=task.execution_stopped_at if ended else None,
        stopped_at=None,
    )


def _container_then(container: Container, started: bool) -> Container:
    return replace(
        container,
        last_status="RUNNING" if started else "PENDING",
        exit_code=None,
        reason="",
        health_status="UNKNOWN",
        runtime_id=container.runtime_id if started else "",
        started_at=container.started_at if started else None,
        finished_at=None,
    )
