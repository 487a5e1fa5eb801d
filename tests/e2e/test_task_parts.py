"""Through the API into real VMs: an image is built inside a FARGATE task; volumes are made, shown, kept and shared."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.builder_archive import NAME, make_builder_archive
from tests.support.platform import Platform

pytestmark = pytest.mark.needs(
    "root", "qemu", "haproxy", "guest_image", "skopeo", "nft", "buildah", "catatonit", "xfs"
)

BUILD = """
mkdir -p /b && cp /bin/busybox /b/ && cd /b
echo FROM scratch > Containerfile
echo COPY busybox /bin/busybox >> Containerfile
echo 'RUN ["/bin/busybox", "sh", "-c", "echo built by $(/bin/busybox id -u) > /proof"]' >> Containerfile
buildah bud --isolation oci --runtime crun --network host -t built . || exit 1
container=$(buildah from built) && cat $(buildah mount $container)/proof
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    directory = tmp_path_factory.mktemp("parts")
    made = Platform(directory, drivers="microvm,container")
    made.start()
    try:
        made.hutch("image", "import", str(make_builder_archive(directory)))
        yield made
    finally:
        made.stop()
    assert made.leftovers() == []


def run(
    platform: Platform, script: str, definition: dict[str, Any], **task: Any
) -> tuple[dict[str, Any], str]:
    """Run a script as a task of one container to its end; the task, and what it wrote."""
    ecs = platform.client("ecs")
    container = {
        "name": "main",
        "image": NAME,
        "command": ["sh", "-c", script],
        **definition.pop("container", {}),
    }
    ecs.register_task_definition(
        **{
            "family": "parts",
            "networkMode": "awsvpc",
            "requiresCompatibilities": ["FARGATE"],
            "cpu": "1024",
            "memory": "1024",
            "containerDefinitions": [container],
            **definition,
        }
    )
    answer = ecs.run_task(**{"taskDefinition": "parts", "launchType": "FARGATE", **task})
    arn = answer["tasks"][0]["taskArn"]
    platform.until("STOPPED", arn)
    described: dict[str, Any] = ecs.describe_tasks(tasks=[arn])["tasks"][0]
    return described, platform.hutch("logs", arn.rpartition("/")[2], check=False).stdout


def test_an_image_is_built_inside_a_fargate_task(platform: Platform) -> None:
    task, output = run(
        platform,
        BUILD,
        {
            "volumes": [{"name": "store"}],
            "container": {
                "privileged": True,
                "linuxParameters": {"initProcessEnabled": True},
                "mountPoints": [{"sourceVolume": "store", "containerPath": "/var/lib/containers"}],
            },
        },
    )
    assert "built by 0" in output, output
    assert task["containers"][0]["exitCode"] == 0


MOUNT = {"mountPoints": [{"sourceVolume": "v", "containerPath": "/v"}]}


def test_a_volume_is_made_at_launch(platform: Platform) -> None:
    volumes = [{"name": "v", "configuredAtLaunch": True}]
    given = {"roleArn": "arn:aws:iam::000000000000:role/r", "sizeInGiB": 2}
    configurations = [{"name": "v", "managedEBSVolume": given}]
    script = "grep ' /v ' /proc/mounts; echo x > /v/x"
    task, output = run(
        platform, script, {"volumes": volumes, "container": MOUNT}, volumeConfigurations=configurations
    )
    assert task["containers"][0]["exitCode"] == 0 and " /v xfs rw" in output
    (disk,) = (a for a in task["attachments"] if a["type"] == "AmazonElasticBlockStorage")
    details = {d["name"]: d["value"] for d in disk["details"]}
    assert disk["status"] == "DELETED"
    assert details["volumeName"] == "v" and details["volumeId"].startswith("vol-")
    assert (details["sizeInGiB"], details["deleteOnTermination"]) == ("2", "true")


def test_a_shared_volume_is_there_for_the_next_task(platform: Platform) -> None:
    docker = {"scope": "shared", "autoprovision": True}
    volumes = [{"name": "v", "dockerVolumeConfiguration": docker}]
    definition = {"volumes": volumes, "container": MOUNT}
    run(platform, "echo kept > /v/note", dict(definition))
    _, output = run(platform, "cat /v/note", dict(definition))
    assert "kept" in output
    (volume,) = (v for v in json.loads(platform.hutch("volume", "ls", "--json").stdout) if v["name"] == "v")
    assert (volume["id"], volume["kind"], volume["used_by"]) == ("microvm:v", "shared", [])
    platform.hutch("volume", "rm", "microvm:v")
    assert "no host has a volume" in platform.hutch("volume", "rm", "microvm:v", check=False).stderr


def step(name: str, script: str, **members: Any) -> dict[str, Any]:
    """A container that writes its name when it starts, and when it is told to end."""
    noted = f"trap 'echo {name} ends >> /v/order; exit 0' TERM; echo {name} >> /v/order; {script}"
    container = {
        "name": name,
        "image": NAME,
        "memory": 64,
        "command": ["sh", "-c", noted],
        **MOUNT,
        **members,
    }
    after = container.pop("after", [])
    return {**container, "dependsOn": [{"containerName": n, "condition": c} for n, c in after]}


@pytest.mark.needs("runc")
@pytest.mark.parametrize("launch_type", ["EC2", "FARGATE"])
def test_containers_start_in_order_and_stop_in_reverse(platform: Platform, launch_type: str) -> None:
    waits = "while :; do sleep 0.1; done"
    check = {"command": ["CMD-SHELL", "test -f /tmp/ready"], "interval": 5}
    containers = [
        step("web", waits, after=[("db", "HEALTHY"), ("cache", "START")]),
        step("cache", waits, after=[("setup", "SUCCESS"), ("tried", "COMPLETE")]),
        step("db", f"sleep 0.3; touch /tmp/ready; {waits}", after=[("setup", "SUCCESS")], healthCheck=check),
        step("setup", "sleep 0.3; exit 0", essential=False),
        step("tried", "exit 1", essential=False, after=[("setup", "SUCCESS")]),
    ]
    name = f"order-{launch_type}"
    volumes = [{"name": "v", "dockerVolumeConfiguration": {"scope": "shared", "autoprovision": True}}]
    mode = "awsvpc" if launch_type == "FARGATE" else "bridge"
    ecs = platform.client("ecs")
    common = {"networkMode": mode, "cpu": "1024", "memory": "512", "requiresCompatibilities": [launch_type]}
    volumes[0]["name"] = name
    for container in containers:
        container["mountPoints"] = [{"sourceVolume": name, "containerPath": "/v"}]
    ecs.register_task_definition(family=name, volumes=volumes, containerDefinitions=containers, **common)
    (task,) = ecs.run_task(taskDefinition=name, launchType=launch_type)["tasks"]
    platform.until("RUNNING", task["taskArn"])
    ecs.stop_task(task=task["taskArn"])
    platform.until("STOPPED", task["taskArn"])
    reader = {"name": "main", "image": NAME, "memory": 64, "command": ["cat", "/v/order"],
              "mountPoints": containers[0]["mountPoints"]}  # fmt: skip
    definition = {**common, "volumes": volumes, "containerDefinitions": [reader]}
    _, output = run(platform, "", definition, launchType=launch_type)
    lines = output.splitlines()
    order = {line: place for place, line in enumerate(lines)}
    assert order["setup"] == 0 and {"tried", "db"} < set(order)
    assert order["tried"] < order["cache"] < order["web"] and order["db"] < order["web"]
    assert order["web ends"] < min(order["cache ends"], order["db ends"])
    assert len(lines) == 8
