"""What a task sees of itself: the members and their forms, statistics that the usual formulas work with."""

from typing import Any

import pytest
from msgspec.structs import replace

from hutch.base.clock import ManualClock
from hutch.control.surroundings import TaskAddresses
from hutch.host.agent.dockerstats import Sample, Samples, docker_stats
from hutch.host.agent.metadata import Health, TaskView, container_document, task_document
from hutch.host.drivers.contract import ContainerStats, SandboxStats
from hutch.host.network.contract import Counters, Traffic
from hutch.model.network import Subnet
from hutch.model.task import NetworkInterface, Task
from hutch.rules.containers import ProbeAnswer
from hutch.wire.facts import ContainerFact, TaskFacts
from hutch.wire.taskspec import (
    ContainerSpec,
    InterfaceSpec,
    LogSpec,
    MountSpec,
    PublishSpec,
    RestartPolicySpec,
    Surroundings,
    TaskSpec,
)

TASK_ID = "0123456789abcdef0123456789abcdef"
MAIN = ContainerSpec(
    name="main", container_id="11111111-2222-3333-4444-555555555555", image="nginx", cpu_units=128, memory_mib=256,
    container_ports=((80, "tcp"), (53, "udp")), mounts=(MountSpec(volume="data", path="/data"),),
    log=LogSpec(driver="awslogs", options={"awslogs-group": "g"}, stream="t/main/1"), labels={"a": "b"},
    restart_policy=RestartPolicySpec(), environment={"AWS_ENDPOINT_URL": "http://mine"},
)  # fmt: skip
SIDE = ContainerSpec(
    name="side", container_id="22222222-2222-3333-4444-555555555555", image="side", essential=False
)
SPEC = TaskSpec(
    task_id=TASK_ID, cluster="c", arn=f"arn:aws:ecs:us-east-1:000000000000:task/c/{TASK_ID}", family="web", revision=7,
    launch_type="FARGATE", cpu_units=512, memory_mib=1024, ephemeral_gib=21, network_mode="awsvpc",
    containers=(MAIN, SIDE), publish=(PublishSpec(name="web", host_port=20001, container_port=80),),
    interface=InterfaceSpec(
        eni_id="eni-1", mac="02:68:0a:00:10:05", address="10.0.16.5", prefix_length=20, gateway="10.0.16.1"
    ),
    surroundings=Surroundings(
        availability_zone="us-east-1b", vpc_id="vpc-1", private_dns_name="ip-10-0-16-5.ec2.internal", tags={"k": "v"}
    ),
)  # fmt: skip


async def no_stats() -> SandboxStats:
    raise AssertionError


def view(spec: TaskSpec = SPEC, *, stops: bool = False) -> TaskView:
    main = ContainerFact(
        name="main", status="RUNNING", runtime_id="d0", image_digest="sha256:1", started_at=1_700_000_001.5
    )
    ended = ContainerFact(name="side", status="STOPPED", exit_code=0, finished_at=1_700_000_002.0)
    return TaskView(
        spec=spec,
        facts=TaskFacts(task_id=TASK_ID, status="RUNNING", containers=(main, ended), pull_started_at=1_700_000_000.0),
        stops=stops,
        take_stats=no_stats,
        take_traffic=lambda: None,
        nameservers=("10.9.9.9",),
        health={"main": Health(status="UNHEALTHY", since=1_700_000_009.0, last_probe=ProbeAnswer(exit_code=7, output="no"))},
    )  # fmt: skip


def test_a_container_in_version_4() -> None:
    seen = container_document(view(), MAIN, "v4")
    assert seen["DockerName"] == "ecs-web-7-main-11111111222233334444"
    assert (seen["DockerId"], seen["ImageID"], seen["RestartCount"]) == ("d0", "sha256:1", 0)
    assert seen["Limits"] == {"CPU": 128, "Memory": 256}
    assert seen["Ports"] == [
        {"ContainerPort": 80, "Protocol": "tcp", "HostPort": 20001},
        {"ContainerPort": 53, "Protocol": "udp"},
    ]
    assert seen["StartedAt"] == "2023-11-14T22:13:21.500000Z"
    assert seen["Health"] == {
        "status": "UNHEALTHY", "statusSince": "2023-11-14T22:13:29.000000Z", "exitCode": 7, "output": "no"
    }  # fmt: skip
    assert seen["LogOptions"] == {"awslogs-group": "g", "awslogs-stream": "t/main/1"}
    assert seen["Volumes"] == [{"DockerName": "data", "Destination": "/data"}]
    assert seen["Networks"] == [
        {
            "NetworkMode": "awsvpc",
            "IPv4Addresses": ["10.0.16.5"],
            "AttachmentIndex": 0,
            "MACAddress": "02:68:0a:00:10:05",
            "IPv4SubnetCIDRBlock": "10.0.16.0/20",
            "DomainNameServers": ["10.9.9.9"],
            "PrivateDNSName": "ip-10-0-16-5.ec2.internal",
            "SubnetGatewayIpv4Address": "10.0.16.1/20",
        }
    ]
    assert "ExitCode" not in seen and "FinishedAt" not in seen
    assert "environment" not in str(seen).lower() and "http://mine" not in str(seen)


def test_version_3_has_less() -> None:
    seen = container_document(view(), MAIN, "v3")
    assert seen["Networks"] == [{"NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.16.5"]}]
    assert not {"ContainerARN", "LogDriver", "RestartCount"} & seen.keys()
    task = task_document(view(), "v3", tags=False)
    assert task["Cluster"] == "c" and not {"LaunchType", "VPCID", "EphemeralStorageMetrics"} & task.keys()


def test_the_task() -> None:
    task = task_document(view(stops=True), "v4", tags=True, disk_bytes=300 * 2**20)
    assert task["Cluster"] == "arn:aws:ecs:us-east-1:000000000000:cluster/c"
    assert (task["Family"], task["Revision"], task["VPCID"]) == ("web", "7", "vpc-1")
    assert task["FaultInjectionEnabled"] is False
    assert (task["DesiredStatus"], task["KnownStatus"]) == ("STOPPED", "RUNNING")
    assert task["Limits"] == {"CPU": 0.5, "Memory": 1024}
    assert task["EphemeralStorageMetrics"] == {"Utilized": 300, "Reserved": 21504}
    assert task["TaskTags"] == {"k": "v"}
    side = task["Containers"][1]
    assert (side["ExitCode"], side["KnownStatus"]) == (0, "STOPPED")
    assert side["DockerId"] == "22222222222233334444555555555555"
    assert "TaskTags" not in task_document(view(), "v4", tags=False)


def sample(at: float, cpu_ns: int, received: int) -> Sample:
    def passed(count: int) -> Counters:
        return Counters(bytes=count, packets=1, errors=0, dropped=0)

    use = ContainerStats(cpu_ns=cpu_ns, memory_bytes=2**20, pids=3)
    return Sample(
        at=at,
        stats=SandboxStats(host_cpu_ns=0, host_memory_bytes=0, containers={"main": use}),
        traffic=Traffic(received=passed(received), sent=passed(5)),
    )


def test_docker_s_formula_gives_the_share_of_one_cpu() -> None:
    now, before = sample(1002.0, 1_500_000_000, 3000), sample(1000.0, 500_000_000, 1000)
    stats = docker_stats(SPEC, MAIN, "d0", now, before)
    assert stats is not None
    cpu, earlier = stats["cpu_stats"], stats["precpu_stats"]
    used = cpu["cpu_usage"]["total_usage"] - earlier["cpu_usage"]["total_usage"]
    system = cpu["system_cpu_usage"] - earlier["system_cpu_usage"]
    assert used / system * cpu["online_cpus"] * 100 == pytest.approx(50.0)
    assert stats["memory_stats"]["limit"] == 256 * 2**20
    assert stats["networks"]["eth0"]["rx_bytes"] == 3000
    assert stats["network_rate_stats"] == {"rx_bytes_per_sec": 1000.0, "tx_bytes_per_sec": 0.0}
    assert docker_stats(SPEC, SIDE, "d1", now, before) is None, "it does not run"


async def test_a_sandbox_is_asked_once_a_second() -> None:
    clock, asked = ManualClock(), 0

    async def take() -> SandboxStats:
        nonlocal asked
        asked += 1
        use = {"main": ContainerStats(cpu_ns=1, memory_bytes=1)}
        return SandboxStats(host_cpu_ns=asked, host_memory_bytes=0, containers=use)

    samples = Samples(clock)
    first, before = await samples.get("t", "main", take, lambda: None)
    assert before is None and asked == 1
    again = await samples.get("t", "main", take, lambda: None)
    assert again == (first, None) and asked == 1
    clock.advance(1.0)
    second, before = await samples.get("t", "main", take, lambda: None)
    assert (before, asked) == (first, 2)
    clock.advance(0.5)
    assert await samples.get("t", "main", take, lambda: None) == (second, first)
    await samples.get("t", "just started", take, lambda: None)
    assert asked == 3, "an older sample knows nothing of it"


def placed(mode: str = "awsvpc") -> tuple[TaskSpec, Task]:
    network = NetworkInterface(
        attachment_id="a", eni_id="eni-1", subnet_id="s", security_group_ids=(), mac="m", private_ipv4="10.0.16.5"
    )  # fmt: skip
    more: dict[str, Any] = {"network": network} if mode == "awsvpc" else {}
    task = Task(
        task_id=TASK_ID, cluster="c", family="web", revision=7, launch_type="FARGATE", cpu=512, memory_mib=1024,
        group="service:shop", created_at=0.0, availability_zone="z", **more,
    )  # fmt: skip
    spec = SPEC if mode == "awsvpc" else replace(SPEC, interface=None, network_mode=mode)
    return spec, task


def test_what_containers_are_told() -> None:
    addresses = TaskAddresses(path_key="ab" * 32, api_of_host="http://127.0.0.1:4566")
    spec, task = placed()
    subnet = Subnet(
        subnet_id="s", vpc_id="vpc-1", cidr="10.0.16.0/20", availability_zone="z", availability_zone_id="z1"
    )
    told = addresses.add(spec, task, subnet)
    main, side = told.containers
    assert main.environment["AWS_ENDPOINT_URL"] == "http://mine", "what the definition sets stays"
    assert side.environment["AWS_ENDPOINT_URL"] == "http://169.254.170.2:14566"
    assert main.environment["ECS_CONTAINER_METADATA_URI_V4"] == f"http://169.254.170.2/v4/{main.metadata_id}"
    assert main.environment["ECS_CONTAINER_METADATA_URI"] == f"http://169.254.170.2/v3/{main.metadata_id}"
    assert main.environment["ECS_AGENT_URI"] == f"http://169.254.170.2/api/{main.metadata_id}"
    assert main.metadata_id != side.metadata_id and main.metadata_id.startswith(TASK_ID)
    assert told.surroundings.service == "shop" and told.surroundings.vpc_id == "vpc-1"
    other = TaskAddresses(path_key="cd" * 32).add(spec, task, subnet)
    assert other.containers[0].metadata_id != main.metadata_id
    assert "AWS_ENDPOINT_URL" not in other.containers[1].environment


def test_a_task_without_an_interface_has_no_metadata() -> None:
    for mode, api in (("host", "http://127.0.0.1:4566"), ("none", None)):
        spec, task = placed(mode)
        told = TaskAddresses(path_key="ab" * 32, api_of_host="http://127.0.0.1:4566").add(spec, task, None)
        side = told.containers[1]
        assert side.metadata_id == "" and side.environment.get("AWS_ENDPOINT_URL") == api
        assert "ECS_CONTAINER_METADATA_URI_V4" not in side.environment
        assert "ECS_AGENT_URI" not in side.environment
