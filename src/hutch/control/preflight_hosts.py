"""Facts for a pre-flight check: which hosts could run the task, and what one of them finds of its images and ports."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hutch.base.errors import HutchError
from hutch.control.ops.images import HostRequests
from hutch.control.ops.placing import PlacementLimits, snapshot
from hutch.control.ops.vpc import full_subnets
from hutch.control.preflight_roles import Login
from hutch.control.taskspec import ARCHITECTURES
from hutch.model.task import Task
from hutch.rules import preflight as rules
from hutch.rules.placement import Candidate, looks_at_groups
from hutch.rules.preflight_capacity import (
    HostRoom,
    PortFacts,
    capacity_problems,
    disk_warnings,
    rooms,
    subnet_full,
)
from hutch.rules.preflight_findings import Finding
from hutch.store import tables
from hutch.store.contract import Reader
from hutch.wire.image_requests import ImageWanted, PreflightSeen, PreflightWanted, SeenImage

HOST_ANSWER_S = 120.0


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What the hosts could take, and what of the task's host ports other tasks have."""

    findings: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    hosts: tuple[HostRoom, ...] = ()
    leased: tuple[PortFacts, ...] = ()


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a host said of images and ports; `findings` if it could not."""

    images: tuple[rules.ImageFacts, ...] = ()
    busy: tuple[PortFacts, ...] = ()
    findings: tuple[Finding, ...] = ()


class HostFacts:
    """Gathers them."""

    def __init__(self, fleet: HostRequests, limits: PlacementLimits) -> None:
        self._fleet = fleet
        self._limits = limits

    def capacity(
        self,
        reader: Reader,
        document: Mapping[str, Any],
        task: Task | None,
        count: int,
        ports: Sequence[int],
    ) -> Capacity:
        """Where `count` such tasks could be placed now. Without a task (it can't be made) nothing can be said."""
        if task is None:
            return Capacity()
        candidates = snapshot(reader, self._limits, with_groups=looks_at_groups(task))
        architecture = _architecture(document)
        clusters = [c.name for c in reader.scan(tables.CLUSTERS) if c.status == "ACTIVE"]
        findings = capacity_problems(task, count, candidates, architecture, clusters)
        findings += [subnet_full(s) for s in full_subnets(reader, task.requested_subnets)]
        return Capacity(
            findings=tuple(findings),
            warnings=tuple(disk_warnings(task, candidates)),
            hosts=rooms(task, candidates, architecture),
            leased=tuple(_leased(reader, ports, candidates)),
        )

    async def look(
        self,
        document: Mapping[str, Any],
        logins: Mapping[str, Login],
        ports: Sequence[int],
        capacity: Capacity,
    ) -> Seen:
        """Have the host that would run the task look at its images and ports: the first that fits, else any. `logins`:
        of the containers whose registry wants one and whose login could be had."""
        containers: dict[tuple[str, Login], list[str]] = {}
        for container in document["containerDefinitions"]:
            if container.get("repositoryCredentials") and container["name"] not in logins:
                continue  # what its registry says without them is of no use
            key = (container["image"], logins.get(container["name"]))
            containers.setdefault(key, []).append(container["name"])
        connected = self._fleet.connected_host_ids
        fitting = [h.host_id for h in capacity.hosts if not h.missing and h.host_id in connected]
        host_id = next(iter((*fitting, *connected)), "")
        if not host_id:
            return _not_seen("no host is connected")
        wanted = PreflightWanted(
            images=tuple(ImageWanted(reference=r, credentials=c) for r, c in containers),
            architecture=_architecture(document),
            host_ports=tuple(dict.fromkeys(p for p in ports if p)),
        )
        try:
            async with asyncio.timeout(HOST_ANSWER_S):
                answer = await self._fleet.request(host_id, "task.preflight", msgspec.to_builtins(wanted))
            seen = msgspec.convert(answer, PreflightSeen)
        except (HutchError, TimeoutError, msgspec.ValidationError) as error:
            return _not_seen(str(error) or "the host did not answer in time")
        name = next((h.name for h in capacity.hosts if h.host_id == host_id), host_id)
        return Seen(
            images=tuple(
                _image_facts(image, names, name, seen.free_bytes)
                for image, names in zip(seen.images, containers.values(), strict=False)
            ),
            busy=tuple(PortFacts(host=name, port=int(p), program=w) for p, w in seen.busy_ports.items()),
        )


def _image_facts(image: SeenImage, containers: Sequence[str], host: str, free_bytes: int) -> rules.ImageFacts:
    return rules.ImageFacts(
        containers=tuple(containers),
        reference=image.reference,
        host=host,
        size_bytes=image.size_bytes,
        unpacked_bytes=image.unpacked_bytes,
        is_here=image.is_here,
        is_stale=image.is_stale,
        free_bytes=free_bytes,
        error_kind=image.error_kind,
        error=image.error,
        fix=image.fix,
    )


def _not_seen(why: str) -> Seen:
    finding = Finding(
        kind="ImagesNotChecked",
        subject="images",
        text=f"images and host ports could not be looked at: {why}",
        fix="`hutch doctor` says what the host lacks; check again",
    )
    return Seen(findings=(finding,))


def _architecture(document: Mapping[str, Any]) -> str:
    return ARCHITECTURES[document.get("runtimePlatform", {}).get("cpuArchitecture", "X86_64")]


def _leased(reader: Reader, ports: Sequence[int], candidates: Sequence[Candidate]) -> list[PortFacts]:
    """Which of the ports are published by other tasks, on connected hosts."""
    found = []
    for host in (c.host for c in candidates if c.host.connected):
        for port in dict.fromkeys(p for p in ports if p):
            lease = reader.get(tables.PORT_LEASES, host.host_id, "tcp", f"{port:05d}")
            if lease is not None:
                found.append(PortFacts(host=host.name, port=port, task_id=lease.task_id))
    return found
