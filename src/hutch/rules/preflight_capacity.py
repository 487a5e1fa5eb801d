"""Which hosts could take a task now, and what the others lack; whether its host ports are free."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from hutch.model.task import Task
from hutch.rules.placement import Candidate, make_plan
from hutch.rules.preflight_findings import Finding

_KINDS = {
    "AGENT": "NoHost",
    "ATTRIBUTE": "NoDriver",
    "NO ACTIVE INSTANCES": "NoContainerInstance",
    "RESOURCE:MEMORY": "NoMemory",
    "RESOURCE:CPU": "NoCpu",
}
_FIXES = {
    "NoHost": "start a host (hutch up), or wait for it to connect; `hutch doctor` says what is missing",
    "NoDriver": "`hutch doctor` says what the host lacks",
    "NoContainerInstance": "let a host join the cluster (--host-clusters), or name a cluster that has one",
    "NoMemory": "stop tasks, choose a smaller memory size, or add a host",
    "NoCpu": "stop tasks, choose a smaller cpu size, raise --cpu-overcommit, or add a host",
    "WrongArchitecture": "set runtimePlatform.cpuArchitecture to a host's, or add such a host",
    "ConstraintUnmet": "relax the placement constraints, or add a host that satisfies them",
}


class HostRoom(msgspec.Struct, frozen=True, kw_only=True):
    """A host and a task. `missing` "": it can take it now."""

    host_id: str
    name: str
    missing: str
    memory_left_mib: int
    cpu_left: int


class PortFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A host port that a task wants and that is taken: by another task, or by a program."""

    host: str
    port: int
    task_id: str = ""
    program: str = ""


def rooms(task: Task, candidates: Sequence[Candidate], architecture: str) -> tuple[HostRoom, ...]:
    """Each host by itself."""
    found = []
    for c in candidates:
        missing = _foreign(c, architecture)
        if not missing:
            waiting = make_plan([task], [_copy(c)]).waiting
            missing = waiting[0].reason if waiting else ""
        found.append(
            HostRoom(
                host_id=c.host.host_id,
                name=c.host.name,
                missing=missing,
                memory_left_mib=max(0, c.memory_left_mib),
                cpu_left=max(0, c.cpu_left),
            )
        )
    return tuple(found)


def capacity_problems(
    task: Task,
    count: int,
    candidates: Sequence[Candidate],
    architecture: str,
    other_clusters: Sequence[str] = (),
) -> list[Finding]:
    """Why not all of `count` such tasks could be placed now; nothing if they could. Placement itself is asked, so that it
    can't say otherwise later."""
    able = [_copy(c) for c in candidates if not _foreign(c, architecture)]
    connected = [c for c in candidates if c.host.connected]
    if connected and not any(c.host.connected for c in able):
        text = f"the task is for {architecture}, and no connected host is"
        evidence: dict[str, Any] = {"hosts": {c.host.name: c.host.architecture for c in connected}}
        return [_finding("WrongArchitecture", text, evidence)]
    plan = make_plan([task] * count, able)
    if not plan.waiting:
        return []
    first = plan.waiting[0]
    kind = _KINDS.get(first.failure, "ConstraintUnmet")
    placed = len(plan.placements)
    text = first.reason
    if placed:
        text = f"{placed} of {count} tasks fit now: {text}"
    elsewhere = [
        n for n in other_clusters if n != task.cluster and _fits_in(task, n, count, candidates, architecture)
    ]
    if elsewhere:
        text += f"; cluster {', '.join(elsewhere)} could take it"
    evidence = {"failure": first.failure, "fits": placed, "wanted": count}
    return [_finding(kind, text, evidence)]


def _finding(kind: str, text: str, evidence: dict[str, Any]) -> Finding:
    return Finding(kind=kind, subject="capacity", text=text, fix=_FIXES[kind], evidence=evidence)


def _fits_in(
    task: Task, cluster: str, count: int, candidates: Sequence[Candidate], architecture: str
) -> bool:
    able = [_copy(c) for c in candidates if not _foreign(c, architecture)]
    return not make_plan([replace(task, cluster=cluster)] * count, able).waiting


def _foreign(c: Candidate, architecture: str) -> str:
    """A host starts nothing for another machine, though placement does not look at it."""
    if c.host.architecture == architecture:
        return ""
    return f"is {c.host.architecture}, and the task is for {architecture}"


def _copy(c: Candidate) -> Candidate:
    """A plan takes room away from its candidates."""
    return replace(c, groups=set(c.groups))


def disk_warnings(task: Task, candidates: Sequence[Candidate]) -> list[Finding]:
    """Hosts whose disk may not be enough for the disks that the task asks for (by default it asks for none of its own): no
    room is kept for them, they grow as they are written."""
    asked_gib = task.ephemeral_gib + sum(v.size_gib for v in task.volumes)
    return [
        Finding(
            kind="HostDiskSmall",
            subject=f"host {c.host.name}",
            text=f"the task's disks may grow to {asked_gib} GiB, and the host has {c.host.disk_gib} GiB free",
            fix="lower ephemeralStorage.sizeInGiB, or free space in the host's data directory",
        )
        for c in candidates
        if c.host.connected and asked_gib > c.host.disk_gib
    ]


def subnet_full(subnet_id: str) -> Finding:
    """A subnet in which the task would get no address."""
    return Finding(
        kind="SubnetFull",
        subject="network",
        text=f"subnet {subnet_id} has no free address",
        fix="stop tasks that are in it, or name another subnet",
    )


def port_problems(
    wanted: Sequence[int], taken: Sequence[PortFacts], count: int, hosts_that_fit: int
) -> list[Finding]:
    """`wanted`: fixed host ports (0 for any free one is never a problem)."""
    fixed = [p for p in wanted if p]
    found = []
    for port in sorted({p for p in fixed if fixed.count(p) > 1}):
        text = f"host port {port} is wanted twice by the task itself"
        found.append(_port(text, "publish each container port on a host port of its own"))
    for t in taken:
        by = f"published by task {t.task_id}" if t.task_id else f"taken: {t.program} listens there"
        found.append(
            _port(
                f"host port {t.port} of host {t.host} is {by}",
                "stop that task, or publish on another port (0: any free one)"
                if t.task_id
                else "stop that program, or publish on another port (0: any free one)",
            )
        )
    if fixed and count > max(1, hosts_that_fit):
        text = f"{count} tasks want host port {fixed[0]}, each on a host of its own, and {hosts_that_fit} fit"
        found.append(_port(text, "publish on any free port (0), or run fewer tasks"))
    return found


def _port(text: str, fix: str) -> Finding:
    return Finding(kind="PortInUse", subject="ports", text=text, fix=fix)
