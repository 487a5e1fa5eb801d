"""Looks at all that a task would need before anything is started. The facts are gathered here, `rules.preflight` says what
they mean; a registry is asked by a host, which pulls nothing.

What is looked at is what a launch uses: the same secrets as the same role, the same placement, the same image look-up. So
what is found fine here fails later only if it has changed meanwhile.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import HutchError
from hutch.base.ids import IdSource
from hutch.control.execution_roles import ExecutionRoles
from hutch.control.launch_secrets import LaunchSecrets
from hutch.control.ops import launch
from hutch.control.ops.disk_snapshots import filled_from_snapshots
from hutch.control.ops.images import HostRequests
from hutch.control.ops.launch import LaunchRequest
from hutch.control.ops.logs import LogOps
from hutch.control.ops.placing import PlacementLimits
from hutch.control.ops.tasks import active_cluster
from hutch.control.ops.vpc import resolve_awsvpc
from hutch.control.preflight_hosts import HostFacts
from hutch.control.preflight_roles import RoleFacts, with_files
from hutch.control.taskspec import DEFAULT_EPHEMERAL_GIB
from hutch.model.cluster import Cluster
from hutch.model.task import Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules import preflight as rules
from hutch.rules.placement_expression import parse as parse_expression
from hutch.rules.preflight_capacity import port_problems
from hutch.rules.preflight_findings import Finding
from hutch.rules.taskdef.problems import examine
from hutch.store.contract import Reader, Store

MAX_COUNT = 1000


class PreflightRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run: a registered definition, or (`given`) an input of RegisterTaskDefinition."""

    definition: TaskDefinition | None = None
    given: dict[str, Any] | None = None
    cluster: str = ""
    launch: LaunchRequest = LaunchRequest()
    """As RunTask; of `count` any number, also more than RunTask takes."""


class _Target(msgspec.Struct, kw_only=True):
    """What is checked, as far as it could be made out."""

    document: dict[str, Any]
    definition: TaskDefinition
    refusals: list[str]
    launch_type: str = ""
    cluster: Cluster | None = None
    task: Task | None = None
    """What would be placed; None if it can't be made."""


class Preflight:
    """One per control plane."""

    def __init__(
        self,
        store: Store,
        fleet: HostRequests,
        secrets: LaunchSecrets,
        roles: ExecutionRoles,
        logs: LogOps,
        clock: Clock,
        ids: IdSource,
        *,
        limits: PlacementLimits,
        region: str,
        account_id: str,
    ) -> None:
        self._store = store
        self._hosts = HostFacts(fleet, limits)
        self._roles = RoleFacts(secrets, roles, logs, region=region, account_id=account_id)
        self._clock = clock
        self._ids = ids

    async def check(self, request: PreflightRequest) -> rules.Report:
        """All that can be said. Nothing is written, and nothing is kept of what was looked at."""
        overrides = request.launch.overrides
        with self._store.read() as reader:
            target = self._target(reader, request)
            document = target.document
            roles, execution = self._roles.assume(document, overrides)
            unavailable, denied, logins = self._roles.fetched(
                reader, with_files(document, overrides), execution
            )
            unavailable += self._roles.file_systems(reader, document)
            if target.task and not (target.refusals or unavailable or denied or roles):
                unavailable = self._roles.rehearsed(reader, target.task, target.definition)
            ports = _host_ports(target)
            capacity = self._hosts.capacity(reader, document, target.task, request.launch.count, ports)
        seen = await self._hosts.look(document, logins, ports, capacity)
        fits = sum(1 for h in capacity.hosts if not h.missing)
        taken = (*capacity.leased, *seen.busy)
        return rules.report(
            rules.Facts(
                document=document,
                launch_type=target.launch_type,
                refusals=tuple(dict.fromkeys(target.refusals)),
                images=seen.images,
                roles=roles,
                denied=(*denied, *self._roles.logging_denied(document, execution)),
                unavailable=tuple(unavailable),
                logs=self._roles.logs(document),
                disk_gib=_disk_gib(document, overrides),
                others=(
                    *capacity.findings,
                    *port_problems(ports, taken, request.launch.count, fits),
                    *seen.findings,
                ),
                warnings=(*capacity.warnings, *_at_launch(request.launch, target)),
                hosts=capacity.hosts,
            )
        )

    # -- what is to be run

    def _target(self, reader: Reader, request: PreflightRequest) -> _Target:
        """Everything that RegisterTaskDefinition and RunTask would refuse, collected instead of raised."""
        refusals: list[str] = []
        definition, has_size = request.definition, True
        if definition is None:
            given = request.given or {}
            examined = examine(given)
            refusals += examined.refusals
            has_size = examined.has_size
            definition = TaskDefinition(
                family=given["family"],
                revision=0,
                registered_at=self._clock.now(),
                registered_by="",
                compatibilities=examined.compatibilities,
                document=examined.document,
            )
        target = _Target(document=definition.document, definition=definition, refusals=refusals)
        try:
            target.cluster = active_cluster(reader, request.cluster)
        except HutchError as error:
            name = request.cluster or "default"
            refusals.append(
                f"{error.message} There is no active cluster {name}: aws ecs create-cluster --cluster-name {name}"
            )
        self._route(reader, request, target, has_size)
        return target

    def _route(self, reader: Reader, request: PreflightRequest, target: _Target, has_size: bool) -> None:
        """How it would be launched, and the task that would be placed."""
        cluster = target.cluster or Cluster(name="default", created_at=self._clock.now())
        wanted = replace(request.launch, count=1)
        try:
            disks = filled_from_snapshots(reader, wanted.volume_configurations)
            wanted = replace(wanted, volume_configurations=disks)
            route = launch.choose_routes(wanted, cluster, target.definition)[0]
        except HutchError as error:
            target.refusals.append(error.message)
            return
        target.launch_type = route.launch_type
        try:
            launch.check_request(
                replace(wanted, volume_configurations=_stand_ins(wanted, target)), [route], target.definition
            )
        except HutchError as error:
            target.refusals.append(error.message)
        if not has_size:
            return
        try:
            for constraint in target.document.get("placementConstraints", ()):
                if constraint.get("type") != "distinctInstance":
                    parse_expression(constraint.get("expression", ""))
            subnets, groups = self._network(reader, request, target.document)
            target.task = launch.new_task(
                replace(wanted, volume_configurations=_stand_ins(wanted, target)),
                route,
                cluster,
                target.definition,
                subnets=subnets,
                security_groups=groups,
                ids=self._ids,
                clock=self._clock,
                strict_aws=False,
            )
        except HutchError as error:
            target.refusals.append(error.message)

    @staticmethod
    def _network(
        reader: Reader, request: PreflightRequest, document: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if document.get("networkMode", "bridge") in ("host", "none"):
            return (), ()
        given = request.launch.awsvpc or {}
        return resolve_awsvpc(reader, given.get("subnets", ()), given.get("securityGroups", ()))


def _stand_ins(request: LaunchRequest, target: _Target) -> tuple[dict[str, Any], ...]:
    """RunTask needs a configuration of each volume that is configured at launch; a check can do without."""
    if request.volume_configurations:
        return request.volume_configurations
    return tuple(
        {"name": v["name"], "managedEBSVolume": {"sizeInGiB": 1}} for v in _volumes_at_launch(target)
    )


def _volumes_at_launch(target: _Target) -> list[dict[str, Any]]:
    return [v for v in target.document.get("volumes", []) if v.get("configuredAtLaunch")]


def _at_launch(request: LaunchRequest, target: _Target) -> list[Finding]:
    """The volumes that whoever runs the task must say more of."""
    if request.volume_configurations:
        return []
    return [
        Finding(
            kind="VolumeAtLaunch",
            subject=f"volume {v['name']}",
            text="it is configured at launch: RunTask refuses the task without its volumeConfigurations",
            fix="give its size to run-task: --volume-configurations "
            f"name={v['name']},managedEBSVolume={{sizeInGiB=10,roleArn=ROLE}}",
        )
        for v in _volumes_at_launch(target)
    ]


def _host_ports(target: _Target) -> tuple[int, ...]:
    """The host ports that the task would take: published ones (0: any), or its own on the host's network."""
    if target.document.get("networkMode") == "host":
        return tuple(
            p["containerPort"]
            for c in target.document["containerDefinitions"]
            for p in c.get("portMappings", ())
            if p.get("protocol", "tcp") == "tcp"
        )
    return tuple(host for host, _ in target.task.publish) if target.task else ()


def _disk_gib(document: Mapping[str, Any], overrides: Mapping[str, Any]) -> int:
    given = overrides.get("ephemeralStorage") or document.get("ephemeralStorage") or {}
    return int(given.get("sizeInGiB") or DEFAULT_EPHEMERAL_GIB)
