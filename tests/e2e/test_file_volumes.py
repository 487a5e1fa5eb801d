"""Texts and secrets as files, through the API into a real microVM and into a container on the shared kernel."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from tests.support.busybox_archive import NAME
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft", "runc")

LOOK = """
cat /etc/app/app.conf /etc/app/sub/x; od -An -tx1 /keys/password; stat -c 'mode %a %u' /keys/password
value=$(cat /keys/password)
for place in /* /proc/self/environ; do
  case $place in /proc|/sys|/dev) ;; *) grep -rslF "$value" $place ;; esac
done
exit 0
"""


@pytest.fixture(scope="module")
def platform(vm_platform: Platform) -> Platform:
    return vm_platform


def on_disk(directory: Path, value: str) -> list[str]:
    """The files with a value that are on the file system of the directory, not on what is mounted in it."""
    device, found = directory.stat().st_dev, []
    for parent, names, files in os.walk(directory):
        names[:] = [n for n in names if os.lstat(os.path.join(parent, n)).st_dev == device]
        paths = [Path(parent, n) for n in files]
        found += [str(p) for p in paths if p.is_file() and value.encode() in _written(p)]
    return found


def _written(path: Path) -> bytes:
    """All that was ever written to a file, without the holes of one that is sparse and many gigabytes long."""
    parts, offset = [], 0
    with open(path, "rb") as f:
        while offset < os.fstat(f.fileno()).st_size:
            try:
                begin = os.lseek(f.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break  # nothing but a hole up to the end
            offset = os.lseek(f.fileno(), begin, os.SEEK_HOLE)
            parts.append(os.pread(f.fileno(), offset - begin, begin))
    return b"".join(parts)


def definition(launch_type: str, volumes: list[dict[str, Any]]) -> dict[str, Any]:
    common = {"image": NAME, "memory": 64}
    looks = {
        **common,
        "name": "looks",
        "essential": False,
        "command": ["sh", "-c", LOOK],
        "mountPoints": [
            {"sourceVolume": "config", "containerPath": "/etc/app"},
            {"sourceVolume": "keys", "containerPath": "/keys"},
        ],
    }
    # The task is RUNNING once the first container has looked.
    stays = {
        **common,
        "name": "stays",
        "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"],
        "dependsOn": [{"containerName": "looks", "condition": "SUCCESS"}],
    }
    return {
        "family": f"files-{launch_type}",
        "networkMode": "awsvpc" if launch_type == "FARGATE" else "bridge",
        "requiresCompatibilities": [launch_type],
        "cpu": "1024",  # all of the file system is looked at
        "memory": "512",
        "containerDefinitions": [looks, stays],
        "volumes": volumes,
    }


def files(name: str, driver: str, options: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "dockerVolumeConfiguration": {"scope": "task", "driver": driver, "driverOpts": options},
    }


@pytest.mark.parametrize("launch_type", ["EC2", "FARGATE"])
def test_a_container_reads_its_files_and_nobody_else_has_the_secret(
    platform: Platform, launch_type: str
) -> None:
    ecs, value = platform.client("ecs"), f"hunter2-{uuid.uuid4().hex}"
    secret = platform.client("secretsmanager").create_secret(
        Name=f"db-{launch_type}", SecretString=json.dumps({"password": value})
    )
    volumes = [
        files("config", "hutch-files", {"app.conf": "port=80\n", "sub/x": "deep\n"}),
        files("keys", "hutch-secret-files", {"password": f"{secret['ARN']}:password::"}),
    ]
    answer = ecs.register_task_definition(**definition(launch_type, volumes))["taskDefinition"]
    assert [v["name"] for v in answer["volumes"]] == ["config", "keys"]
    run = ecs.run_task(taskDefinition=f"files-{launch_type}", launchType=launch_type)
    arn = run["tasks"][0]["taskArn"]
    task_id = arn.rpartition("/")[2]
    platform.until("RUNNING", arn)
    output = platform.hutch("logs", task_id, "--container", "looks").stdout
    assert "port=80\n" in output and "deep\n" in output and "mode 400 0" in output
    assert (
        bytes.fromhex("".join(line for line in output.splitlines() if line.startswith(" "))).decode() == value
    )
    assert [line for line in output.splitlines() if line.startswith("/")] == ["/keys/password"]
    assert on_disk(platform.data_dir, value) == []
    told = [json.dumps(ecs.describe_tasks(tasks=[arn]), default=str), platform.hutch("why", task_id).stdout]
    assert value not in "".join(told) + platform.log()
    ecs.stop_task(task=arn)
    platform.until("STOPPED", arn)
    assert on_disk(platform.data_dir, value) == []
