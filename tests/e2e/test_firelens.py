"""FireLens through the API: a task's log router gets its configuration, what the others write, and their last words.

The router is a stand-in (`tests.support.log_router`): fluent-bit is in none of Debian's and Python's registries.
"""

import json
import uuid
from typing import Any

import pytest
from tests.support.log_router import APP, PROGRAM
from tests.support.looking import look_until
from tests.support.platform import Platform
from tests.support.python_archive import NAME

pytestmark = pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft", "runc")
KEY = "a key of eighteen."


@pytest.fixture(scope="module")
def platform(vm_platform: Platform, python_image: str) -> Platform:
    assert python_image == NAME
    return vm_platform


def register(platform: Platform) -> None:
    secret = platform.client("secretsmanager").create_secret(Name=f"key-{uuid.uuid4().hex}", SecretString=KEY)
    objects = platform.client("s3")
    objects.create_bucket(Bucket="routers")
    objects.put_object(Bucket="routers", Key="extra.conf", Body=b"[OUTPUT]\n    Name null\n    Match own*\n")
    log = {
        "logDriver": "awsfirelens",
        "options": {"Name": "http", "Host": "logs.example"},
        "secretOptions": [{"name": "Header", "valueFrom": secret["ARN"]}],
    }
    platform.client("ecs").register_task_definition(
        family="routed",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE", "EC2"],
        cpu="1024",
        memory="512",
        containerDefinitions=[
            {"name": "app", "image": NAME, "command": ["-u", "-c", APP], "logConfiguration": log},
            {
                "name": "router",
                "image": NAME,
                "command": ["-c", PROGRAM],
                "firelensConfiguration": {
                    "type": "fluentbit",
                    "options": {
                        "config-file-type": "s3",
                        "config-file-value": "arn:aws:s3:::routers/extra.conf",
                    },
                },
            },
        ],
    )


def said(platform: Platform, task_id: str) -> list[dict[str, Any]]:
    output = platform.hutch("logs", task_id, "--container", "router", "--tail", "1000").stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def has_begun(lines: list[dict[str, Any]]) -> bool:
    """Whether the router has got all that is written before the stop."""
    return len(records(lines, "unix")) >= 3 and bool(records(lines, "tcp"))


def records(lines: list[dict[str, Any]], via: str) -> list[dict[str, str]]:
    return [line["record"] for line in lines if line.get("via") == via]


@pytest.mark.parametrize("launch_type", ["FARGATE", "EC2"])
def test_a_log_router_gets_what_the_others_write(platform: Platform, launch_type: str) -> None:
    ecs = platform.client("ecs")
    register(platform)
    (task,) = ecs.run_task(taskDefinition="routed", launchType=launch_type)["tasks"]
    task_id = task["taskArn"].rpartition("/")[2]
    platform.until("RUNNING", task_id)
    # What the router has got is in what its host keeps of its output, and that can only be asked for.
    look_until(lambda: has_begun(said(platform, task_id)))
    why = json.loads(platform.hutch("why", task_id, "--json").stdout)
    assert why["log_drivers"]["app"]["driver"] == "awsfirelens"
    assert (why["log_drivers"]["app"]["problem"], why["log_drivers"]["app"]["dropped_bytes"]) == ("", 0)
    platform.hutch("stop", task_id)
    lines = said(platform, task_id)
    got = records(lines, "unix")
    assert {(r["source"], r["log"]) for r in got} == {
        ("stdout", "first words"),
        ("stderr", "a complaint"),
        ("stdout", "x" * 100_000),
        ("stdout", "last words"),
    }
    assert all(r["container_id"] and r["container_name"].startswith("/ecs-routed-") for r in got)
    assert {line["tag"] for line in lines if line.get("via") == "unix"} == {f"app-firelens-{task_id}"}
    assert [r["log"] for r in records(lines, "tcp")] == ["from a library"]
    # The router went last, and with all that was said.
    assert lines[-1] == {"ended": len(got) + 1}
    extra, output = (line["output"] for line in lines if "output" in line)
    assert extra == {"Name": "null", "Match": "own*"}
    assert output == {"Name": "http", "Match": "app-firelens*", "Host": "logs.example", "Header": len(KEY)}
    (added,) = (line["filter"] for line in lines if "filter" in line)
    assert f"Record ecs_task_arn {task['taskArn']}" in added and "Record ecs_cluster default" in added
    described = ecs.describe_task_definition(taskDefinition="routed")["taskDefinition"]
    assert KEY not in json.dumps(described, default=str)
    assert KEY not in json.dumps(json.loads(platform.hutch("why", task_id, "--json").stdout))
