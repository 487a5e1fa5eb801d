"""The main job for real: images, microVMs, HAProxy, kills, and nothing left behind."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.support.looking import fetch
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft")

TASK = {
    "family": "web",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "cpu": "256",
    "memory": "256",
    "containerDefinitions": [
        {
            "name": "web",
            "image": "localhost/web:latest",
            "portMappings": [{"containerPort": 80}],
            "healthCheck": {"command": ["CMD-SHELL", "test -f /var/www/html/index.html"], "interval": 5},
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {
                    "awslogs-group": "/ecs/web",
                    "awslogs-region": "us-east-1",
                    "awslogs-stream-prefix": "web",
                    "awslogs-create-group": "true",
                },
            },
        }
    ],
}


def launch(platform: Platform, **more: Any) -> dict[str, Any]:
    ecs = platform.client("ecs")
    ecs.register_task_definition(**TASK)
    tags = [{"key": "hutch:publish", "value": "80"}]
    answer = ecs.run_task(**{"taskDefinition": "web", "launchType": "FARGATE", "tags": tags, **more})
    arn = answer["tasks"][0]["taskArn"]
    platform.until("RUNNING", arn)
    task: dict[str, Any] = ecs.describe_tasks(tasks=[arn])["tasks"][0]
    return task


def details(task: dict[str, Any]) -> dict[str, str]:
    return {d["name"]: d["value"] for a in task["attachments"] for d in a["details"]}


def stop(platform: Platform, task: dict[str, Any]) -> dict[str, Any]:
    ecs = platform.client("ecs")
    ecs.stop_task(task=task["taskArn"])
    platform.until("STOPPED", task["taskArn"])
    stopped: dict[str, Any] = ecs.describe_tasks(tasks=[task["taskArn"]])["tasks"][0]
    return stopped


def test_an_image_becomes_an_endpoint(real_platform: Platform) -> None:
    task = launch(real_platform)
    found = details(task)
    assert "It runs." in fetch(f"http://{found['privateIPv4Address']}/")[1]
    assert "It runs." in fetch(f"http://127.0.0.1:{found['hostPort']}/")[1]
    task_id = task["taskArn"].rpartition("/")[2]
    why = real_platform.hutch("why", task_id).stdout
    assert "boot microvm" in why and "start web" in why
    assert task["containers"][0]["imageDigest"].startswith("sha256:")
    stopped = stop(real_platform, task)
    assert stopped["containers"][0]["exitCode"] == 0
    assert "GET / HTTP/1.1" in real_platform.hutch("logs", task_id).stdout
    events = real_platform.client("logs").filter_log_events(logGroupName="/ecs/web", filterPattern="GET")[
        "events"
    ]
    assert events


def test_killed_processes_lose_nothing(real_platform: Platform) -> None:
    """kill -9 of the control plane and of the host agent: the task goes on; of QEMU: its true cause is told."""
    ecs = real_platform.client("ecs")
    task = launch(real_platform)
    url = f"http://{details(task)['privateIPv4Address']}/"
    assert "It runs." in fetch(url)[1]
    for module in ("hutch.apps.control", "hutch.apps.host"):
        (pid,) = real_platform.pids(module)
        os.kill(pid, signal.SIGKILL)
        assert "It runs." in fetch(url)[1]
    seen = ecs.describe_tasks(tasks=[task["taskArn"]])["tasks"][0]
    assert seen["lastStatus"] == "RUNNING"
    # The new agent serves requests, so it has taken the task over before QEMU dies.
    real_platform.hutch("image", "import", str(Path(__file__).resolve().parents[2] / "build/images/web.tar"))
    (qemu,) = real_platform.pids("qemu-system")
    os.kill(qemu, signal.SIGKILL)
    real_platform.until("STOPPED", task["taskArn"])
    why = real_platform.hutch("why", task["taskArn"].rpartition("/")[2], "--json").stdout
    causes = json.loads(why)["causes"]
    # Nobody but a process's parent learns which signal ended it, and QEMU's parent was killed: so only that it ended.
    assert causes and "VM" in causes[0]["text"]
