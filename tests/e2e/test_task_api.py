"""An unmodified SDK program in a microVM finds the platform's API, is its task role there, and sees itself."""

import json
import socket
from typing import Any

import pytest
from tests.support.busybox_archive import NAME as BUSYBOX
from tests.support.platform import Platform
from tests.support.python_archive import NAME

from hutch.host.network.resolvers import host_resolvers

pytestmark = pytest.mark.needs("root", "qemu", "runc", "haproxy", "guest_image", "skopeo", "nft")

TRUST = {
    "Version": "2012-10-17",
    "Statement": {"Effect": "Allow", "Principal": {"Service": "ecs-tasks.amazonaws.com"}, "Action": "sts:AssumeRole"},
}  # fmt: skip
POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": "ecs:ListTasks", "Resource": "*"},
        {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "*:secret:for-tasks-*"},
    ],
}
SCRIPT = """
import json, os, urllib.request
import boto3
from botocore.exceptions import ClientError

def attempt(work):
    try:
        return work()
    except ClientError as error:
        return error.response["Error"]["Code"]

def metadata(what):
    with urllib.request.urlopen(os.environ["ECS_CONTAINER_METADATA_URI_V4"] + what) as answer:
        return json.load(answer)

secrets = boto3.client("secretsmanager")
print(json.dumps({
    "tasks": boto3.client("ecs").list_tasks()["taskArns"],
    "secret": attempt(lambda: secrets.get_secret_value(SecretId="for-tasks")["SecretString"]),
    "other": attempt(lambda: secrets.get_secret_value(SecretId="for-nobody")["SecretString"]),
    "clusters": attempt(lambda: boto3.client("ecs").list_clusters()),
    "container": metadata(""),
    "task": metadata("/taskWithTags"),
    "stats": metadata("/task/stats"),
    "resolv.conf": open("/etc/resolv.conf").read().split("\\n"),
    "hosts": open("/etc/hosts").read(),
    "variables": sorted(os.environ),
}))
"""
LOGS = {"awslogs-group": "/api", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "t",
        "awslogs-create-group": "true"}  # fmt: skip


def run(platform: Platform, role: str) -> tuple[str, dict[str, Any]]:
    """Run the script to its end; the task's ARN and what it wrote."""
    ecs, logs = platform.client("ecs"), platform.client("logs")
    ecs.register_task_definition(
        family="sdk",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="1024",  # an SDK is slow to load
        memory="512",
        taskRoleArn=role,
        containerDefinitions=[
            {
                "name": "main",
                "image": NAME,
                "command": ["-c", SCRIPT],
                "portMappings": [{"containerPort": 80}],
                "logConfiguration": {"logDriver": "awslogs", "options": LOGS},
            }
        ],
    )
    tags = [{"key": "who", "value": "me"}]
    arn = ecs.run_task(taskDefinition="sdk", launchType="FARGATE", tags=tags)["tasks"][0]["taskArn"]
    platform.until("STOPPED", arn)
    stream = f"t/main/{arn.rpartition('/')[2]}"
    events = logs.filter_log_events(logGroupName="/api", logStreamNames=[stream])["events"]
    written = "\n".join(e["message"] for e in events)
    assert written.startswith("{"), written
    return arn, json.loads(written)


def test_an_sdk_program_in_a_task(vm_platform: Platform, python_image: str) -> None:
    platform = vm_platform
    assert python_image == NAME
    iam, secrets = platform.client("iam"), platform.client("secretsmanager")
    role = iam.create_role(RoleName="sdk", AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
    iam.put_role_policy(RoleName="sdk", PolicyName="p", PolicyDocument=json.dumps(POLICY))
    for name in ("for-tasks", "for-nobody"):
        secrets.create_secret(Name=name, SecretString=f"the secret {name}")
    arn, seen = run(platform, role)
    described = platform.client("ecs").describe_tasks(tasks=[arn])["tasks"][0]
    assert seen["tasks"] == [arn] and seen["secret"] == "the secret for-tasks"
    assert seen["other"] == seen["clusters"] == "AccessDeniedException"
    check_metadata(described, seen)
    servers, _ = host_resolvers()
    assert [line for line in seen["resolv.conf"] if line.startswith("nameserver")] == [
        f"nameserver {s}" for s in servers
    ]
    assert socket.gethostname() not in seen["hosts"]
    assert {v for v in seen["variables"] if "HUTCH" in v.upper()} == set()
    assert {"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_EXECUTION_ENV"} <= set(
        seen["variables"]
    )


def check_metadata(described: dict[str, Any], seen: dict[str, Any]) -> None:
    """What the task saw of itself is what the API says of it."""
    task, container, stats = seen["task"], seen["container"], seen["stats"]
    attached = {d["name"]: d["value"] for d in described["attachments"][0]["details"]}
    (network,) = container["Networks"]
    assert task["TaskARN"] == described["taskArn"] and task["Cluster"] == described["clusterArn"]
    assert task["AvailabilityZone"] == described["availabilityZone"] and task["TaskTags"] == {"who": "me"}
    assert task["Limits"] == {"CPU": 1, "Memory": 512} and task["LaunchType"] == "FARGATE"
    assert task["EphemeralStorageMetrics"]["Reserved"] == 20480
    assert 0 < task["EphemeralStorageMetrics"]["Utilized"] < 2048
    assert task["Containers"][0]["KnownStatus"] == task["DesiredStatus"] == "RUNNING"
    assert container["ContainerARN"] == described["containers"][0]["containerArn"]
    assert container["DockerId"] == described["containers"][0]["runtimeId"]
    assert container["ImageID"] == described["containers"][0]["imageDigest"]
    assert network["IPv4Addresses"] == [attached["privateIPv4Address"]]
    assert network["MACAddress"] == attached["macAddress"]
    assert network["PrivateDNSName"] == attached["privateDnsName"]
    use = stats[container["DockerId"]]
    assert use["cpu_stats"]["cpu_usage"]["total_usage"] > 0 and use["memory_stats"]["usage"] > 2**20
    assert use["networks"]["eth0"]["rx_bytes"] > 1000


SHELL = """
wget -qO- $ECS_CONTAINER_METADATA_URI_V4/task; echo
[ -z "$ECS_CONTAINER_METADATA_URI_V4" ] || until wget -qO- $ECS_CONTAINER_METADATA_URI_V4/stats | grep memory_stats; do :; done
wget -S -O- $AWS_ENDPOINT_URL/ 2>&1 | grep -q "HTTP/1.1 40" && echo reached
echo $AWS_ENDPOINT_URL
"""


def test_containers_on_the_host_s_kernel(vm_platform: Platform) -> None:
    bridged, stats, reached, _ = run_shell(vm_platform, "bridge").splitlines()
    *nothing, host_reached, url = run_shell(vm_platform, "host").splitlines()
    listen = vm_platform.environment["HUTCH_LISTEN"]
    task = json.loads(bridged)
    assert (task["Cluster"], task["LaunchType"]) == ("default", "EC2")
    assert task["Containers"][0]["Networks"][0]["NetworkMode"] == "bridge"
    assert json.loads(stats)["memory_stats"]["usage"] > 0
    assert reached == "reached"
    # Who shares the host's network can't be told from others there: no metadata, but the API's own address.
    assert url == f"http://{listen}" and host_reached == "reached"
    assert "TaskARN" not in "".join(nothing)


def run_shell(platform: Platform, network_mode: str) -> str:
    """What the script writes in a task of launch type EC2."""
    ecs, logs = platform.client("ecs"), platform.client("logs")
    ecs.register_task_definition(
        family=f"sh-{network_mode}",
        networkMode=network_mode,
        requiresCompatibilities=["EC2"],
        containerDefinitions=[
            {
                "name": "main",
                "image": BUSYBOX,
                "memory": 64,
                "command": ["/bin/sh", "-c", SHELL],
                "logConfiguration": {"logDriver": "awslogs", "options": LOGS},
            }
        ],
    )
    arn = ecs.run_task(taskDefinition=f"sh-{network_mode}", launchType="EC2")["tasks"][0]["taskArn"]
    platform.until("STOPPED", arn)
    stream = f"t/main/{arn.rpartition('/')[2]}"
    events = logs.filter_log_events(logGroupName="/api", logStreamNames=[stream])["events"]
    return "\n".join(e["message"] for e in events)
