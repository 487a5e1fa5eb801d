"""Where a task goes: a snapshot of hosts and a queue in, placements and reasons for waiting out.

Memory is a hard limit, CPU may be promised several times over (`cpu_overcommit`). Tasks are served in the order they
were asked for; a task that does not fit does not hold up one behind it that does.
"""

from collections.abc import Callable, Sequence

import msgspec

from hutch.model.host import ContainerInstance, Host, Reservation
from hutch.model.task import Task
from hutch.rules.attributes import all_attributes, subject
from hutch.rules.placement_expression import TASK_GROUP, Subject, parse


class Candidate(msgspec.Struct, kw_only=True):
    """A host with what is left of it while a plan is made."""

    host: Host
    cpu_units: int
    """What it offers in all."""
    memory_mib: int
    cpu_left: int
    memory_left_mib: int
    task_count: int
    instances: dict[str, ContainerInstance]
    """Its memberships, by cluster."""
    groups: set[tuple[str, str]]
    """(cluster, task group) of the tasks it runs, if a constraint `looks_at_groups`."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A task and the host that has room for it."""

    task: Task
    host_id: str
    container_instance_id: str


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A task that has to wait. `failure` is AWS's word for it (RESOURCE:MEMORY, ...).

    `reason` names nothing that changes with every other task's coming and going: it is stored with the task.
    """

    task: Task
    failure: str
    reason: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    placements: tuple[Placement, ...]
    waiting: tuple[Waiting, ...]


def candidate(
    host: Host,
    reservation: Reservation | None,
    instances: Sequence[ContainerInstance],
    groups: set[tuple[str, str]],
    *,
    cpu_overcommit: float,
    memory_reserve_mib: int,
) -> Candidate:
    """A host as the planner sees it."""
    used = reservation or Reservation(host_id=host.host_id)
    cpu_units, memory_mib = int(host.cpu_units * cpu_overcommit), host.memory_mib - memory_reserve_mib
    return Candidate(
        host=host,
        cpu_units=cpu_units,
        memory_mib=memory_mib,
        cpu_left=cpu_units - used.cpu_units,
        memory_left_mib=memory_mib - used.memory_mib,
        task_count=used.task_count,
        instances={i.cluster: i for i in instances},
        groups=groups,
    )


def make_plan(queue: Sequence[Task], candidates: Sequence[Candidate]) -> Plan:
    """Place as many of the queue as fit, in order."""
    placements: list[Placement] = []
    waiting: list[Waiting] = []
    # Within a plan hosts only get fuller, so what did not fit once needs no second look: a long queue of equal tasks
    # costs one.
    refused: dict[_Need, tuple[str, str]] = {}
    for task in queue:
        need = _need(task)
        known = refused.get(need) if need else None
        fits, failure, reason = ([], *known) if known else _feasible(task, candidates)
        if not fits:
            waiting.append(Waiting(task=task, failure=failure, reason=reason))
            if need:
                refused[need] = (failure, reason)
            continue
        chosen = _best(task, fits, candidates)
        chosen.cpu_left -= task.cpu
        chosen.memory_left_mib -= task.memory_mib
        chosen.task_count += 1
        chosen.groups.add((task.cluster, task.group))
        instance = chosen.instances.get(task.cluster)
        on_instance = instance is not None and task.launch_type != "FARGATE"
        placements.append(
            Placement(
                task=task,
                host_id=chosen.host.host_id,
                container_instance_id=instance.instance_id if on_instance and instance else "",
            )
        )
    return Plan(placements=tuple(placements), waiting=tuple(waiting))


_Need = tuple[str, str, str, int, int]


def _need(task: Task) -> _Need | None:
    """All that decides where a task fits; None if its constraints look at more."""
    if task.placement_constraints:
        return None
    cluster = "" if task.launch_type == "FARGATE" else task.cluster
    return task.launch_type, cluster, task.container_instance_id, task.cpu, task.memory_mib


def _feasible(task: Task, candidates: Sequence[Candidate]) -> tuple[list[Candidate], str, str]:
    """The hosts that can take the task; else the first filter that left none, in AWS's word and in ours."""
    left = list(candidates)
    for keep, failure, reason in _filters(task):
        narrowed = [c for c in left if keep(c)]
        if not narrowed:
            return [], failure, reason(left)
        left = narrowed
    return left, "", ""


_Filter = tuple[Callable[[Candidate], bool], str, Callable[[list[Candidate]], str]]


def _filters(task: Task) -> list[_Filter]:
    filters = _named_instance(task)
    filters += [
        (lambda c: c.host.connected, "AGENT", lambda left: _away(task, left)),
        (lambda c: c.host.status == "ACTIVE", "AGENT", lambda _: "every connected host is draining"),
        (
            lambda c: any(d.healthy and task.launch_type in d.launch_types for d in c.host.drivers),
            "ATTRIBUTE",
            lambda left: f"no host can run launch type {task.launch_type}: {_driver_reasons(task, left)}",
        ),
    ]
    if task.launch_type != "FARGATE":
        filters += _instance_filters(task)
    filters += [
        (
            lambda c: c.memory_left_mib >= task.memory_mib,
            "RESOURCE:MEMORY",
            lambda left: _too_much(
                f"{task.memory_mib} MiB of memory",
                "smaller memory size",
                task.memory_mib,
                [c.memory_mib for c in left],
            ),
        ),
        (
            lambda c: c.cpu_left >= task.cpu,
            "RESOURCE:CPU",
            lambda left: _too_much(
                f"{task.cpu} CPU units", "higher --cpu-overcommit", task.cpu, [c.cpu_units for c in left]
            ),
        ),
    ]
    return filters


def _too_much(what: str, cure: str, wanted: int, whole_hosts: Sequence[int]) -> str:
    """Why a size fits nowhere: a wait that will end is told from one that never will."""
    if wanted > max(whole_hosts):
        return (
            f"needs {what}, and the largest host has {max(0, max(whole_hosts))} in all; run it with a {cure}"
        )
    return f"needs {what}, and no host has as much left; it starts when a task stops, or with a {cure}"


def _named_instance(task: Task) -> list[_Filter]:
    """First of all: of a task that is for one instance, only that one counts."""
    if not task.container_instance_id or task.launch_type == "FARGATE":
        return []

    def is_it(c: Candidate) -> bool:
        instance = c.instances.get(task.cluster)
        return instance is not None and instance.instance_id == task.container_instance_id

    text = f"there is no container instance {task.container_instance_id} in cluster {task.cluster}"
    return [(is_it, "MISSING", lambda _: text)]


def _away(task: Task, left: list[Candidate]) -> str:
    if task.container_instance_id and left:
        return f"host {left[0].host.name} of container instance {task.container_instance_id} is not connected"
    return "no host is connected"


def _instance_filters(task: Task) -> list[_Filter]:
    def instance_ok(c: Candidate) -> bool:
        instance = c.instances.get(task.cluster)
        return instance is not None and instance.status == "ACTIVE"

    filters: list[_Filter] = [
        (
            lambda c: task.cluster in c.instances,
            "NO ACTIVE INSTANCES",
            lambda _: f"no container instance in cluster {task.cluster} (see --host-clusters)",
        ),
        (instance_ok, "NO ACTIVE INSTANCES", lambda _: "every container instance of the cluster is draining"),
    ]
    for constraint in task.placement_constraints:
        filters.append(_constraint(task, constraint))
    return filters


def _constraint(task: Task, constraint: dict[str, str]) -> _Filter:
    if constraint.get("type") == "distinctInstance":
        return (
            lambda c: (task.cluster, task.group) not in c.groups,
            "MemberOf placement constraint unsatisfied",
            lambda _: f"every instance already runs a task of group {task.group} (distinctInstance)",
        )
    expression = constraint.get("expression", "")
    wanted = parse(expression)
    return (
        lambda c: wanted(_subject(c, task.cluster)),
        "MemberOf placement constraint unsatisfied",
        lambda _: f"no container instance matches {expression!r}",
    )


def looks_at_groups(task: Task) -> bool:
    """Whether where the task may go depends on the groups of the tasks that are there."""
    return any(
        c.get("type") == "distinctInstance" or TASK_GROUP in c.get("expression", "")
        for c in task.placement_constraints
    )


def _subject(c: Candidate, cluster: str) -> Subject:
    groups = (group for in_cluster, group in c.groups if in_cluster == cluster)
    return subject(c.instances[cluster], c.host, c.task_count, groups)


def _driver_reasons(task: Task, left: Sequence[Candidate]) -> str:
    reasons = {
        f"{d.name}: {d.reason or 'not healthy'}"
        for c in left
        for d in c.host.drivers
        if task.launch_type in d.launch_types
    }
    return "; ".join(sorted(reasons)) or "no driver offers it (see --drivers and `hutch doctor`)"


def _best(task: Task, fits: list[Candidate], candidates: Sequence[Candidate]) -> Candidate:
    """By the task's strategies in order; by default the host with the most memory left (spread)."""
    strategies = [_strategy(s, task.cluster, candidates) for s in task.placement_strategy]

    def rank(c: Candidate) -> tuple[float | str, ...]:
        return (*(s(c) for s in strategies), -c.memory_left_mib, c.task_count, c.host.host_id)

    return min(fits, key=rank)


def _strategy(
    strategy: dict[str, str], cluster: str, candidates: Sequence[Candidate]
) -> Callable[[Candidate], float]:
    """What a strategy wants as little of as it can get. `random` leaves the choice to us."""
    kind, field = strategy.get("type"), strategy.get("field", "")
    if kind == "binpack":
        return lambda c: c.memory_left_mib if field.lower() == "memory" else c.cpu_left
    if kind != "spread":
        return lambda c: 0
    if not field.startswith("attribute:"):
        return lambda c: c.task_count
    tasks: dict[str, int] = {}

    def value(c: Candidate) -> str:
        instance = c.instances.get(cluster)
        return all_attributes(instance, c.host).get(field.partition(":")[2], "") if instance else ""

    for one in candidates:
        tasks[value(one)] = tasks.get(value(one), 0) + one.task_count
    return lambda c: tasks.get(value(c), 0)
