"""What a task can see of itself: the documents of ECS's task metadata endpoint, versions 4 and 3.

Members that this host knows nothing of are left out, as ECS leaves them out; docs/design/metadata.md lists them.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from hutch.base.units import CPU_UNITS_PER_VCPU, GIB, MIB
from hutch.host.agent.dockerstats import docker_name, rfc3339
from hutch.host.drivers.contract import SandboxStats
from hutch.host.network.contract import Traffic
from hutch.rules.containers import ProbeAnswer
from hutch.wire.facts import ContainerFact, TaskFacts
from hutch.wire.taskspec import ContainerSpec, TaskSpec


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What a container's health check says."""

    status: str
    since: float | None = None
    last_probe: ProbeAnswer | None = None


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task as its host sees it at one moment."""

    spec: TaskSpec
    facts: TaskFacts
    stops: bool
    """Whether it is to be stopped."""
    take_stats: Callable[[], Awaitable[SandboxStats]]
    take_traffic: Callable[[], Traffic | None]
    created_at: float | None = None
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    health: dict[str, Health] = {}

    @property
    def desired_status(self) -> str:
        return "STOPPED" if self.stops else "RUNNING"

    def fact(self, container: ContainerSpec) -> ContainerFact:
        """What is known of a container."""
        known = (f for f in self.facts.containers if f.name == container.name)
        return next(known, ContainerFact(name=container.name, status="PENDING"))


def docker_id(view: TaskView, container: ContainerSpec) -> str:
    """What names the container in statistics; also before it was started."""
    return view.fact(container).runtime_id or container.container_id.replace("-", "")


def task_document(
    view: TaskView, version: str, *, tags: bool, disk_bytes: int | None = None
) -> dict[str, Any]:
    """`/task`, or with `tags` `/taskWithTags`."""
    spec, facts, around = view.spec, view.facts, view.spec.surroundings
    document: dict[str, Any] = {
        "Cluster": _cluster(spec, version),
        "TaskARN": spec.arn,
        "Family": spec.family,
        "Revision": str(spec.revision),
        "ServiceName": around.service,
        "DesiredStatus": view.desired_status,
        "KnownStatus": facts.status,
        "Limits": _task_limits(spec),
        "PullStartedAt": _time(facts.pull_started_at),
        "PullStoppedAt": _time(facts.pull_stopped_at),
        "ExecutionStoppedAt": _time(facts.execution_stopped_at),
        "AvailabilityZone": around.availability_zone,
        "Containers": [container_document(view, c, version) for c in spec.containers],
    }
    if version == "v4":
        document |= {"LaunchType": spec.launch_type, "VPCID": around.vpc_id, "FaultInjectionEnabled": False}
        if spec.launch_type == "FARGATE":
            utilized = {"Utilized": disk_bytes // MIB} if disk_bytes is not None else {}
            document["EphemeralStorageMetrics"] = {**utilized, "Reserved": spec.ephemeral_gib * GIB // MIB}
    document = _known(document)
    if tags:
        document["TaskTags"] = around.tags
    return document


def container_document(view: TaskView, container: ContainerSpec, version: str) -> dict[str, Any]:
    """What is at the container's own path."""
    spec, fact = view.spec, view.fact(container)
    document: dict[str, Any] = {
        "DockerId": docker_id(view, container),
        "Name": container.name,
        "DockerName": docker_name(spec, container),
        "Image": container.image,
        "ImageID": fact.image_digest,
        "Ports": _ports(spec, container),
        "Labels": container.labels,
        "DesiredStatus": view.desired_status,
        "KnownStatus": fact.status,
        "ExitCode": fact.exit_code,
        "Limits": _limits(container),
        "CreatedAt": _time(view.created_at),
        "StartedAt": _time(fact.started_at),
        "FinishedAt": _time(fact.finished_at),
        "Type": "NORMAL",
        "Health": _health(view.health.get(container.name)),
        "Volumes": [{"DockerName": m.volume, "Destination": m.path} for m in container.mounts],
        "Networks": [_network(view, container, version)],
    }
    if version == "v4":
        document |= {
            "ContainerARN": f"{spec.arn.replace(':task/', ':container/', 1)}/{container.container_id}",
            "LogDriver": container.log.driver,
            "LogOptions": _log_options(container),
            "RestartCount": fact.restart_count if container.restart_policy else None,
            "Snapshotter": "overlayfs",
        }
    return _known(document)


def _known(document: dict[str, Any]) -> dict[str, Any]:
    """What is empty is left out, as ECS does; an exit code of 0 is not empty."""
    return {k: v for k, v in document.items() if v is not None and v not in ("", [], {})}


def _time(at: float | None) -> str | None:
    return rfc3339(at) if at is not None else None


def _cluster(spec: TaskSpec, version: str) -> str:
    """Fargate gives the ARN, instances give the name."""
    if spec.launch_type != "FARGATE" or version != "v4":
        return spec.cluster
    return f"{spec.arn.partition(':task/')[0]}:cluster/{spec.cluster}"


def _task_limits(spec: TaskSpec) -> dict[str, Any]:
    limits: dict[str, Any] = {"CPU": spec.cpu_units / CPU_UNITS_PER_VCPU} if spec.cpu_units else {}
    return {**limits, "Memory": spec.memory_mib} if spec.memory_is_limit else limits


def _limits(container: ContainerSpec) -> dict[str, int]:
    memory = {"Memory": container.memory_mib} if container.memory_mib else {}
    return {"CPU": container.cpu_units, **memory}


def _ports(spec: TaskSpec, container: ContainerSpec) -> list[dict[str, Any]]:
    published = {p.container_port: p.host_port for p in spec.publish}
    return [
        {"ContainerPort": port, "Protocol": protocol}
        | ({"HostPort": published[port]} if protocol == "tcp" and port in published else {})
        for port, protocol in container.container_ports
    ]


def _log_options(container: ContainerSpec) -> dict[str, str]:
    stream = {"awslogs-stream": container.log.stream} if container.log.stream else {}
    return {**container.log.options, **stream}


def _health(health: Health | None) -> dict[str, Any] | None:
    if health is None:
        return None
    document: dict[str, Any] = {"status": health.status}
    if health.since is not None:
        document["statusSince"] = rfc3339(health.since)
    if health.last_probe is not None:
        document |= _known({"exitCode": health.last_probe.exit_code, "output": health.last_probe.output})
    return document


def _network(view: TaskView, container: ContainerSpec, version: str) -> dict[str, Any] | None:
    spec, interface = view.spec, view.spec.interface
    if interface is None:
        return {"NetworkMode": spec.network_mode}
    document: dict[str, Any] = {
        "NetworkMode": spec.network_mode,
        "IPv4Addresses": [interface.address],
    }
    if version != "v4":
        return document
    subnet = ipaddress.ip_network(f"{interface.address}/{interface.prefix_length}", strict=False)
    return document | _known(
        {
            "AttachmentIndex": 0,
            "MACAddress": interface.mac,
            "IPv4SubnetCIDRBlock": str(subnet),
            "DomainNameServers": list(container.dns_servers or view.nameservers),
            "DomainNameSearchList": list(container.dns_search or view.search),
            "PrivateDNSName": spec.surroundings.private_dns_name,
            "SubnetGatewayIpv4Address": f"{interface.gateway}/{interface.prefix_length}",
        }
    )
