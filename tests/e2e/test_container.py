"""Launch types EC2 and EXTERNAL for real: runc under conmon, network modes, kills, and nothing left behind."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.e2e.conftest import WEB_IMAGE
from tests.support.looking import fetch
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root", "runc", "haproxy", "skopeo", "nft")


@pytest.fixture(scope="module", params=["auto", pytest.param("runsc", marks=pytest.mark.needs("runsc"))])
def platform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    made = Platform(
        tmp_path_factory.mktemp("container"), drivers="container", container_runtime=request.param
    )
    made.start()
    try:
        made.hutch("image", "import", str(WEB_IMAGE), "localhost/web:latest")
        yield made
    finally:
        made.stop()
    assert made.leftovers() == []


def register(ecs: Any, family: str, mode: str, **container: Any) -> str:
    log = {
        "logDriver": "awslogs",
        "options": {
            "awslogs-group": f"/ecs/{family}",
            "awslogs-region": "us-east-1",
            "awslogs-stream-prefix": "web",
            "awslogs-create-group": "true",
        },
    }
    definition = {
        "name": "web",
        "image": "localhost/web:latest",
        "memory": 64,
        "logConfiguration": log,
        **container,
    }
    answer = ecs.register_task_definition(
        family=family,
        networkMode=mode,
        requiresCompatibilities=["EC2"] + (["EXTERNAL"] if mode != "awsvpc" else []),
        containerDefinitions=[definition],
    )
    return str(answer["taskDefinition"]["taskDefinitionArn"])


def launch(platform: Platform, definition: str, launch_type: str = "EC2") -> dict[str, Any]:
    answer = platform.client("ecs").run_task(taskDefinition=definition, launchType=launch_type)
    assert answer["failures"] == []
    return wait_for(platform, answer["tasks"][0]["taskArn"], "RUNNING")


def wait_for(platform: Platform, arn: str, status: str) -> dict[str, Any]:
    platform.until(status, arn)
    task: dict[str, Any] = platform.client("ecs").describe_tasks(tasks=[arn])["tasks"][0]
    return task


def stop(platform: Platform, task: dict[str, Any]) -> dict[str, Any]:
    platform.client("ecs").stop_task(task=task["taskArn"])
    return wait_for(platform, task["taskArn"], "STOPPED")


def test_bridge_with_a_dynamic_host_port(platform: Platform) -> None:
    ecs = platform.client("ecs")
    task = launch(platform, register(ecs, "bridged", "bridge", portMappings=[{"containerPort": 80}]))
    (binding,) = task["containers"][0]["networkBindings"]
    assert binding["containerPort"] == 80 and 30000 <= binding["hostPort"] <= 32000
    assert "It runs." in fetch(f"http://127.0.0.1:{binding['hostPort']}/")[1]
    assert task["containerInstanceArn"]
    why = platform.hutch("why", task["taskArn"].rpartition("/")[2]).stdout
    assert "sandbox container" in why and "start web" in why
    stopped = stop(platform, task)
    assert stopped["containers"][0]["exitCode"] == 0
    events = platform.client("logs").filter_log_events(logGroupName="/ecs/bridged", filterPattern="GET")
    assert events["events"]


def test_awsvpc_has_an_address_of_its_own(platform: Platform) -> None:
    ecs = platform.client("ecs")
    task = launch(platform, register(ecs, "vpc", "awsvpc"))
    details = {d["name"]: d["value"] for a in task["attachments"] for d in a["details"]}
    assert "It runs." in fetch(f"http://{details['privateIPv4Address']}/")[1]
    stop(platform, task)


def test_without_a_network_and_as_external(platform: Platform) -> None:
    ecs = platform.client("ecs")
    command = ["sh", "-c", "cat /proc/net/dev; exec sleep 1000"]
    # The first process of a container ignores what it does not handle, so only the kill ends `sleep`.
    definition = register(ecs, "lonely", "none", command=command, stopTimeout=2)
    task = launch(platform, definition, "EXTERNAL")
    stop(platform, task)
    logged = platform.client("logs").filter_log_events(logGroupName="/ecs/lonely")["events"]
    links = [e["message"].split(":")[0].strip() for e in logged if ":" in e["message"]]
    assert links == ["lo"]


def test_udp_in_bridge_mode_is_refused(platform: Platform) -> None:
    ecs = platform.client("ecs")
    definition = register(ecs, "udp", "bridge", portMappings=[{"containerPort": 53, "protocol": "udp"}])
    with pytest.raises(ClientError, match="TCP only"):
        ecs.run_task(taskDefinition=definition, launchType="EC2")


def test_killed_processes_lose_nothing(platform: Platform) -> None:
    """kill -9 of the host agent: the containers go on; of conmon: its cause is told, and the task ends."""
    ecs = platform.client("ecs")
    task = launch(platform, register(ecs, "killed", "bridge", portMappings=[{"containerPort": 80}]))
    port = task["containers"][0]["networkBindings"][0]["hostPort"]
    (agent,) = platform.pids("hutch.apps.host")
    os.kill(agent, signal.SIGKILL)
    assert "It runs." in fetch(f"http://127.0.0.1:{port}/")[1]
    task_id = task["taskArn"].rpartition("/")[2]
    (shim,) = [
        p for p in platform.pids("conmon") if task_id.encode() in Path(f"/proc/{p}/cmdline").read_bytes()
    ]
    os.kill(shim, signal.SIGKILL)
    stopped = wait_for(platform, task["taskArn"], "STOPPED")
    assert "conmon" in stopped["stoppedReason"]
    causes = json.loads(platform.hutch("why", task_id, "--json").stdout)["causes"]
    assert causes[0]["kind"].startswith("Shim")
