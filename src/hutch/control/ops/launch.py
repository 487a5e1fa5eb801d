"""From a request to run something to task records: every rule that is checked before a task exists.

Shared by RunTask, StartTask and (later) services. Messages are AWS's where they are known (reference B.2, B.7).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import Invalid, NotServed
from hutch.base.ids import IdSource
from hutch.model.cluster import Cluster
from hutch.model.task import LAUNCH_TYPES, Container, ManagedVolume, Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules.capacity_providers import check_bases, check_weights
from hutch.rules.cpu_burst import cpu_capped
from hutch.rules.deadline import max_runtime_s
from hutch.rules.environment_files import check_environment_files
from hutch.rules.placement_request import check_constraints, check_strategies
from hutch.rules.secret_references import check_override
from hutch.rules.sizes import check_fargate_size, parse_cpu_units, parse_memory_mib
from hutch.rules.taskdef.overrides import check_overrides
from hutch.rules.taskdef.volumes import has_file_systems, managed_volumes

MAX_COUNT = 10
MAX_OVERRIDES_CHARACTERS = 8192
_CLIENT_TOKEN = re.compile(r"[!-~]{0,64}")
LATEST_PLATFORM_VERSION = "1.4.0"
PLATFORM_VERSIONS = ("LATEST", "1.4.0", "1.3.0")
FARGATE_PROVIDERS = ("FARGATE", "FARGATE_SPOT")
PUBLISH_TAG = "hutch:publish"
ENDPOINT_TAG = "hutch:endpoint"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class LaunchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What RunTask and StartTask have in common, as Python values. `input` is kept for the idempotency digest."""

    count: int = 1
    launch_type: str = ""
    capacity_provider_strategy: tuple[dict[str, Any], ...] = ()
    platform_version: str = ""
    overrides: dict[str, Any] = {}
    group: str = ""
    started_by: str = ""
    tags: dict[str, str] = {}
    propagate_tags: str = ""
    managed_tags: bool = False
    enable_execute_command: bool = False
    awsvpc: dict[str, Any] | None = None
    placement_constraints: tuple[dict[str, str], ...] = ()
    placement_strategy: tuple[dict[str, str], ...] = ()
    client_token: str = ""
    volume_configurations: tuple[dict[str, Any], ...] = ()


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """How a task is launched."""

    launch_type: str
    capacity_provider: str = ""


def choose_routes(request: LaunchRequest, cluster: Cluster, definition: TaskDefinition) -> list[Route]:
    """One route for each task of the request, by launch type or capacity provider strategy."""
    if not 1 <= request.count <= MAX_COUNT:
        raise Invalid(f"count must be between 1 and {MAX_COUNT}.")
    if request.launch_type and request.capacity_provider_strategy:
        raise Invalid(
            "Specifying both a launch type and capacity provider strategy is not supported. "
            "Remove one and try again."
        )
    strategy: Sequence[Mapping[str, Any]] = request.capacity_provider_strategy
    if not request.launch_type and not strategy:
        strategy = cluster.default_capacity_provider_strategy
    if strategy:
        return _by_strategy(strategy, cluster, request.count)
    launch_type = request.launch_type or _default_launch_type(definition)
    if launch_type not in LAUNCH_TYPES:
        raise NotServed(f"hutch does not run launch type {launch_type}; use FARGATE, EC2 or EXTERNAL.")
    return [Route(launch_type=launch_type)] * request.count


def _default_launch_type(definition: TaskDefinition) -> str:
    """AWS's default is EC2; a definition that is meant for Fargate only gets what it is meant for."""
    required = definition.document.get("requiresCompatibilities", [])
    return "FARGATE" if required == ["FARGATE"] else "EC2"


def _by_strategy(strategy: Sequence[Mapping[str, Any]], cluster: Cluster, count: int) -> list[Route]:
    for item in strategy:
        name = item["capacityProvider"]
        if name not in FARGATE_PROVIDERS:
            raise Invalid(f"The specified capacity provider '{name}' was not found.")
        if name not in cluster.capacity_providers:
            raise Invalid(
                f"The specified capacity provider '{name}' is not associated with cluster '{cluster.name}'. "
                f"Associate it with PutClusterCapacityProviders first."
            )
    check_bases(strategy)
    check_weights(strategy)
    routes: list[Route] = []
    given = {item["capacityProvider"]: 0 for item in strategy}
    for _ in range(count):
        name = _next_provider(strategy, given)
        given[name] += 1
        routes.append(Route(launch_type="FARGATE", capacity_provider=name))
    return routes


def _next_provider(strategy: Sequence[Mapping[str, Any]], given: Mapping[str, int]) -> str:
    """The base first; then whoever is furthest below its share by weight."""
    for item in strategy:
        if given[item["capacityProvider"]] < (item.get("base") or 0):
            return str(item["capacityProvider"])
    weights = [(str(i["capacityProvider"]), i.get("weight") or 0, i.get("base") or 0) for i in strategy]
    return min((w for w in weights if w[1] > 0), key=lambda w: (given[w[0]] - w[2] + 1) / w[1])[0]


def check_request(request: LaunchRequest, routes: Sequence[Route], definition: TaskDefinition) -> None:
    """Everything that can be refused by looking at the request and the task definition alone."""
    if definition.status != "ACTIVE":
        raise Invalid("TaskDefinition is inactive", code="ClientException")
    if not _CLIENT_TOKEN.fullmatch(request.client_token):
        raise Invalid("clientToken can have at most 64 characters, from '!' to '~'.")
    if len(request.started_by) > 128:
        raise Invalid("startedBy can have at most 128 characters.")
    if len(msgspec.json.encode(request.overrides)) > MAX_OVERRIDES_CHARACTERS:
        raise Invalid(f"The overrides can have at most {MAX_OVERRIDES_CHARACTERS} characters in all.")
    if request.propagate_tags == "SERVICE":
        raise Invalid("propagateTags SERVICE is only for tasks of a service; use TASK_DEFINITION or NONE.")
    for route in routes[:1]:
        _check_route(request, route, definition)
    _check_overrides(request.overrides, definition)
    disks = managed_volumes(definition.document, request.volume_configurations)
    if any(d.snapshot_id for d in disks) and any(r.launch_type != "FARGATE" for r in routes):
        raise NotServed("hutch makes volumes from snapshots for microVMs: use launch type FARGATE.")


def _check_route(request: LaunchRequest, route: Route, definition: TaskDefinition) -> None:
    fargate = route.launch_type == "FARGATE"
    mode = definition.document.get("networkMode", "bridge")
    if route.launch_type not in definition.compatibilities:
        raise Invalid(f"Task definition does not support launch_type {route.launch_type}.")
    if not fargate and request.platform_version:
        raise Invalid(
            f"The platform version must be null when specifying an {route.launch_type} launch type."
        )
    if fargate and request.platform_version and request.platform_version not in PLATFORM_VERSIONS:
        raise Invalid(
            f"The platform version {request.platform_version} does not exist; use LATEST or 1.4.0.",
            code="PlatformUnknownException",
        )
    if not fargate and has_file_systems(definition.document):
        raise NotServed("hutch serves file systems to microVMs: use launch type FARGATE.")
    if request.awsvpc is not None and mode != "awsvpc":
        raise Invalid("Network Configuration is not valid for the given networkMode of this task definition.")
    if request.awsvpc is not None and not request.awsvpc.get("subnets"):
        raise Invalid("subnets can not be empty.")
    if request.awsvpc is not None and not fargate and request.awsvpc.get("assignPublicIp") == "ENABLED":
        raise Invalid("Assign public IP is not supported for this launch type.")
    if fargate and request.placement_constraints:
        raise Invalid("Placement constraints are not supported with FARGATE launch type.")
    if fargate and request.placement_strategy:
        raise Invalid("Placement strategies are not supported with FARGATE launch type.")
    check_constraints((*definition.document.get("placementConstraints", ()), *request.placement_constraints))
    check_strategies(request.placement_strategy)


def _check_overrides(overrides: Mapping[str, Any], definition: TaskDefinition) -> None:
    names = {c["name"]: c for c in definition.document["containerDefinitions"]}
    seen: set[str] = set()
    for override in overrides.get("containerOverrides", []):
        name = override.get("name")
        if name not in names:
            raise Invalid(f"Override for container named {name} is not a container in the TaskDefinition.")
        if name in seen:
            raise Invalid(f"There is more than one override for container {name}.")
        seen.add(name)
        check_override(names[name], override.get("environment"))
        check_environment_files(name, override.get("environmentFiles", ()))
    check_overrides(overrides, definition.document)


def new_task(
    request: LaunchRequest,
    route: Route,
    cluster: Cluster,
    definition: TaskDefinition,
    *,
    subnets: tuple[str, ...],
    security_groups: tuple[str, ...],
    ids: IdSource,
    clock: Clock,
    strict_aws: bool,
) -> Task:
    """A task record in its first state. The definition and the request have been checked."""
    document = definition.document
    overrides = {c["name"]: c for c in request.overrides.get("containerOverrides", [])}
    containers = tuple(
        _container(d, overrides.get(d["name"], {}), ids) for d in document["containerDefinitions"]
    )
    cpu, memory = _size(request.overrides, document, containers)
    fargate = route.launch_type == "FARGATE"
    if fargate and (message := check_fargate_size(cpu, memory)) and strict_aws:
        raise Invalid(message, code="ClientException")
    tags = dict(request.tags)
    if request.propagate_tags == "TASK_DEFINITION":
        tags = {**definition.tags, **tags}
    if request.managed_tags:
        tags["aws:ecs:clusterName"] = cluster.name
    storage = request.overrides.get("ephemeralStorage", document.get("ephemeralStorage", {}))
    task_id = ids.hex(32)
    return Task(
        task_id=task_id,
        cluster=cluster.name,
        family=definition.family,
        revision=definition.revision,
        launch_type=route.launch_type,
        capacity_provider=route.capacity_provider,
        platform_version=LATEST_PLATFORM_VERSION if fargate else "",
        cpu=cpu,
        memory_mib=memory,
        ephemeral_gib=storage.get("sizeInGiB", 0),
        overrides=request.overrides,
        group=request.group or f"family:{definition.family}",
        started_by=request.started_by,
        enable_execute_command=request.enable_execute_command,
        tags=tags,
        max_runtime_s=max_runtime_s(tags),
        cpu_capped=cpu_capped(tags, definition.tags, cpu),
        network_mode=document.get("networkMode", "bridge"),
        assign_public_ip=(request.awsvpc or {}).get("assignPublicIp") == "ENABLED",
        requested_subnets=subnets,
        requested_security_groups=security_groups,
        placement_constraints=(*document.get("placementConstraints", ()), *request.placement_constraints),
        placement_strategy=request.placement_strategy,
        publish=published_ports(request, route, document),
        endpoint_name=_endpoint_name(request.tags.get(ENDPOINT_TAG, ""), definition.family, task_id),
        volumes=_volumes(request, document, ids),
        containers=containers,
        created_at=clock.now(),
    )


def _volumes(request: LaunchRequest, document: Mapping[str, Any], ids: IdSource) -> tuple[ManagedVolume, ...]:
    return tuple(
        ManagedVolume(
            attachment_id=ids.uuid(),
            volume_id=f"vol-{ids.hex(17)}",
            name=v.name,
            size_gib=v.size_gib,
            filesystem=v.filesystem,
            role_arn=v.role_arn,
            delete_on_termination=v.delete_on_termination,
            snapshot_id=v.snapshot_id,
        )
        for v in managed_volumes(document, request.volume_configurations)
    )


def _container(definition: Mapping[str, Any], override: Mapping[str, Any], ids: IdSource) -> Container:
    return Container(
        name=definition["name"],
        container_id=ids.uuid(),
        image=definition["image"],
        cpu=override.get("cpu", definition.get("cpu", 0)),
        memory_mib=override.get("memory", definition.get("memory")),
        memory_reservation_mib=override.get("memoryReservation", definition.get("memoryReservation")),
        essential=definition.get("essential", True),
        has_health_check=bool(definition.get("healthCheck")),
        ports=tuple(p["containerPort"] for p in definition.get("portMappings", []) if "containerPort" in p),
    )


def _size(
    overrides: Mapping[str, Any], document: Mapping[str, Any], containers: Sequence[Container]
) -> tuple[int, int]:
    """CPU units and MiB that are reserved on the host: the task's, else the sum of its containers' (reference B.1)."""
    cpu_text = overrides.get("cpu") or document.get("cpu")
    memory_text = overrides.get("memory") or document.get("memory")
    cpu = parse_cpu_units(cpu_text) if cpu_text else sum(c.cpu for c in containers)
    if memory_text:
        return cpu, parse_memory_mib(memory_text)
    return cpu, sum(c.memory_reservation_mib or c.memory_mib or 0 for c in containers)


def published_ports(
    request: LaunchRequest, route: Route, document: Mapping[str, Any]
) -> tuple[tuple[int, int], ...]:
    """What the tag asks for, and what network mode `bridge` implies and the tag does not name."""
    tagged = parse_publish(request.tags.get(PUBLISH_TAG, ""), document)
    named = {port for _, port in tagged}
    return (*tagged, *((h, p) for h, p in _mapped_ports(document, route) if h or p not in named))


def _mapped_ports(document: Mapping[str, Any], route: Route) -> tuple[tuple[int, int], ...]:
    """Network mode `bridge`: every port mapping is a host port (0: any free one), as on AWS. The containers of a task
    share one address here, which leaves some mappings without a meaning: they are refused. Raises `NotServed`."""
    if route.launch_type == "FARGATE" or document.get("networkMode", "bridge") != "bridge":
        return ()
    mapped: dict[int, int] = {}
    for container in document["containerDefinitions"]:
        for mapping in container.get("portMappings", []):
            port = mapping["containerPort"]
            if mapping.get("protocol", "tcp") != "tcp":
                raise NotServed(
                    f"hutch's ingress carries TCP only: it can't publish {mapping['protocol']} port {port}. "
                    "Use network mode host."
                )
            if port in mapped:
                raise NotServed(
                    f"Two containers of the task map container port {port}: with hutch the containers of a task share "
                    "one network namespace. Let one of them listen on another port."
                )
            mapped[port] = mapping.get("hostPort", 0)
    return tuple((host, port) for port, host in mapped.items())


def parse_publish(text: str, document: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """The tag `hutch:publish`: `80`, `8080:80`, several separated by spaces or `+` (host port 0: any free one)."""
    ports = {
        p["containerPort"]
        for c in document["containerDefinitions"]
        for p in c.get("portMappings", [])
        if "containerPort" in p
    }
    published: list[tuple[int, int]] = []
    for item in text.replace("+", " ").split():
        host, _, container = item.rpartition(":")
        try:
            pair = (int(host or 0), int(container))
        except ValueError:
            raise Invalid(f"tag {PUBLISH_TAG}: {item!r} is not PORT or HOSTPORT:PORT.") from None
        if not (0 <= pair[0] < 65536 and 0 < pair[1] < 65536):
            raise Invalid(f"tag {PUBLISH_TAG}: {item!r} is not a port number from 1 to 65535.")
        if pair[1] not in ports:
            raise Invalid(f"tag {PUBLISH_TAG}: no container of the task definition maps port {pair[1]}.")
        published.append(pair)
    return tuple(published)


def _endpoint_name(wanted: str, family: str, task_id: str) -> str:
    name = wanted or re.sub(r"[^a-z0-9-]", "-", family.lower()).strip("-")[:63] or f"task-{task_id[:8]}"
    if not _LABEL.fullmatch(name):
        raise Invalid(f"tag {ENDPOINT_TAG}: {name!r} is not a DNS label (a-z, 0-9 and '-', at most 63).")
    return name


def request_digest(principal_arn: str, request_input: Mapping[str, Any]) -> str:
    """What an idempotency token is compared by: the whole request but the token itself."""
    body = {k: v for k, v in request_input.items() if k != "clientToken"}
    return hashlib.sha256(msgspec.json.encode([principal_arn, body], order="sorted")).hexdigest()
