"""ECS as its clients see it, on a platform whose driver only pretends: every answer comes from the real control plane,
store and agent."""

import json
import subprocess
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.looking import look_until
from tests.support.platform import BIN, Platform

pytestmark = pytest.mark.needs("root")


@pytest.fixture(scope="module")
def ecs(fake_platform: Platform) -> Any:
    client = fake_platform.client("ecs")
    client.create_cluster(clusterName="flow")
    return client


def register(ecs: Any, family: str, *, environment: dict[str, str] | None = None, **more: Any) -> str:
    container = {
        "name": "main",
        "image": "x",
        "environment": [{"name": k, "value": v} for k, v in (environment or {}).items()],
        **more.pop("container", {}),
    }
    given = {
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        **more,
    }
    answer = ecs.register_task_definition(family=family, containerDefinitions=[container], **given)
    return str(answer["taskDefinition"]["taskDefinitionArn"])


def run(ecs: Any, definition: str, **more: Any) -> list[str]:
    answer = ecs.run_task(
        **{"cluster": "flow", "taskDefinition": definition, "launchType": "FARGATE", **more}
    )
    assert answer["failures"] == []
    return [t["taskArn"] for t in answer["tasks"]]


def wait(platform: Platform, arns: list[str], status: str) -> list[dict[str, Any]]:
    """The tasks, once all of them have a status."""
    platform.until(status, *arns)
    answer = platform.client("ecs").describe_tasks(cluster="flow", tasks=arns, include=["TAGS"])
    tasks: list[dict[str, Any]] = answer["tasks"]
    return tasks


def test_a_task_runs_and_is_stopped(fake_platform: Platform, ecs: Any) -> None:
    arns = run(ecs, register(ecs, "plain"), tags=[{"key": "a", "value": "b"}], startedBy="me", count=2)
    task = wait(fake_platform, arns, "RUNNING")[0]
    ecs.get_waiter("tasks_running").wait(cluster="flow", tasks=arns)
    assert task["tags"] == [{"key": "a", "value": "b"}] and task["startedBy"] == "me"
    assert task["connectivity"] == "CONNECTED" and task["platformVersion"] == "1.4.0"
    details = {d["name"]: d["value"] for d in task["attachments"][0]["details"]}
    assert (
        details["privateIPv4Address"] == task["containers"][0]["networkInterfaces"][0]["privateIpv4Address"]
    )
    assert ecs.list_tasks(cluster="flow", startedBy="me")["taskArns"]
    ecs.stop_task(cluster="flow", task=arns[0], reason="enough")
    stopped = wait(fake_platform, arns[:1], "STOPPED")[0]
    ecs.get_waiter("tasks_stopped").wait(cluster="flow", tasks=arns[:1])
    assert (stopped["stopCode"], stopped["stoppedReason"]) == ("UserInitiated", "enough")
    assert stopped["createdAt"] <= stopped["startedAt"] <= stopped["stoppingAt"] <= stopped["stoppedAt"]
    assert arns[0] in ecs.list_tasks(cluster="flow", desiredStatus="STOPPED")["taskArns"]


@pytest.mark.parametrize(
    ("dials", "code", "reason", "exit_code"),
    [
        ({"HUTCH_FAKE_RUN_MS": "50", "HUTCH_FAKE_EXIT": "3"}, "EssentialContainerExited", "", 3),
        ({"HUTCH_FAKE_RUN_MS": "50", "HUTCH_FAKE_EXIT": "0"}, "EssentialContainerExited", "", 0),
    ],
)
def test_an_exit_ends_the_task(
    fake_platform: Platform, ecs: Any, dials: dict[str, str], code: str, reason: str, exit_code: int
) -> None:
    task = wait(fake_platform, run(ecs, register(ecs, "exits", environment=dials)), "STOPPED")[0]
    assert task["stopCode"] == code
    assert task["stoppedReason"] == "Essential container in task exited"
    assert task["containers"][0]["exitCode"] == exit_code


def test_the_same_token_gives_the_same_tasks(ecs: Any) -> None:
    definition = register(ecs, "token")
    first = run(ecs, definition, clientToken="t-1")
    assert run(ecs, definition, clientToken="t-1") == first
    with pytest.raises(ClientError) as refused:
        run(ecs, definition, clientToken="t-1", count=2)
    assert refused.value.response["Error"]["Code"] == "ConflictException"
    assert refused.value.response["resourceIds"]


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({"cluster": "nope"}, "ClusterNotFoundException", "Cluster not found."),
        ({"taskDefinition": "nope"}, "ClientException", "TaskDefinition not found."),
        ({"count": 11}, "InvalidParameterException", "count"),
        (
            {"launchType": "FARGATE", "capacityProviderStrategy": [{"capacityProvider": "FARGATE"}]},
            "InvalidParameterException",
            "Specifying both a launch type and capacity provider strategy",
        ),
        (
            {"networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-0"]}}},
            "InvalidParameterException",
            "The subnet ID 'subnet-0' does not exist (ErrorCode: InvalidSubnetID.NotFound)",
        ),
        (
            {"overrides": {"containerOverrides": [{"name": "who"}]}},
            "InvalidParameterException",
            "is not a container in the TaskDefinition",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_awss_words(
    ecs: Any, given: dict[str, Any], code: str, words: str
) -> None:
    arguments = {
        "cluster": "flow",
        "taskDefinition": register(ecs, "refused"),
        "launchType": "FARGATE",
        **given,
    }
    with pytest.raises(ClientError) as refused:
        ecs.run_task(**arguments)
    assert refused.value.response["Error"]["Code"] == code
    assert words in refused.value.response["Error"]["Message"]


def test_a_task_that_does_not_fit_waits_and_says_why(ecs: Any, fake_platform: Platform) -> None:
    arn = run(ecs, register(ecs, "huge", cpu="1024", memory="16000000"))[0]
    task_id = arn.rpartition("/")[2]
    fake_platform.hutch("ps")

    def waiting() -> dict[str, Any] | None:
        (seen,) = ecs.describe_tasks(cluster="flow", tasks=[arn])["tasks"]
        return dict(seen) if seen.get("stoppedReason") else None

    task = look_until(waiting)
    assert task is not None
    assert task["lastStatus"] == "PROVISIONING"
    assert "position 1 in the queue" in task["stoppedReason"] and "16000000 MiB" in task["stoppedReason"]
    assert "position 1" in fake_platform.hutch("why", task_id).stdout.replace("\n", " ")
    ecs.stop_task(cluster="flow", task=arn)
    assert wait(fake_platform, [arn], "STOPPED")[0]["stopCode"] == "UserInitiated"


def test_task_definitions_have_revisions(ecs: Any) -> None:
    first = register(ecs, "revised")
    second = register(ecs, "revised")
    assert (first[-2:], second[-2:]) == (":1", ":2")
    assert ecs.describe_task_definition(taskDefinition="revised")["taskDefinition"]["revision"] == 2
    ecs.deregister_task_definition(taskDefinition="revised:2")
    assert ecs.describe_task_definition(taskDefinition="revised")["taskDefinition"]["revision"] == 1
    assert ecs.list_task_definitions(familyPrefix="revised", status="INACTIVE")["taskDefinitionArns"] == [
        second
    ]
    deleted = ecs.delete_task_definitions(taskDefinitions=["revised:2"])["taskDefinitions"]
    assert deleted[0]["status"] == "DELETE_IN_PROGRESS"
    assert register(ecs, "revised").endswith(":3")
    pages = ecs.get_paginator("list_task_definitions").paginate(
        familyPrefix="revised", PaginationConfig={"PageSize": 1}
    )
    assert [a for p in pages for a in p["taskDefinitionArns"]] == [first, first[:-1] + "3"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"networkMode": "bridge"}, "Fargate only supports network mode ‘awsvpc’."),
        ({"containerDefinitions": []}, "Container list cannot be empty."),
        ({"cpu": "banana"}, "Invalid 'cpu' setting for task"),
        (
            {"containerDefinitions": [{"name": "a", "image": ""}]},
            "Container.image should not be null or empty.",
        ),
        (
            {"containerDefinitions": [{"name": "a", "image": "x", "essential": False}]},
            "Task definition doesn't have any essential container",
        ),
        (
            {
                "containerDefinitions": [
                    {"name": "a", "image": "x", "dependsOn": [{"containerName": "b", "condition": "START"}]}
                ]
            },
            "Cannot depend on container + 'b' because it does not exist",
        ),
        ({"family": "a/b"}, ""),
    ],
)
def test_a_wrong_definition_is_refused(ecs: Any, change: dict[str, Any], words: str) -> None:
    given = {
        "family": "wrong",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [{"name": "a", "image": "x"}],
        **change,
    }
    with pytest.raises(ClientError) as refused:
        ecs.register_task_definition(**given)
    assert refused.value.response["Error"]["Code"] == "ClientException"
    assert words in refused.value.response["Error"]["Message"]


def test_container_instances_show_the_host(ecs: Any) -> None:
    arns = ecs.list_container_instances(cluster="flow")["containerInstanceArns"]
    instance = ecs.describe_container_instances(cluster="flow", containerInstances=arns)[
        "containerInstances"
    ][0]
    assert instance["agentConnected"] and instance["status"] == "ACTIVE"
    ecs.update_container_instances_state(cluster="flow", containerInstances=arns, status="DRAINING")
    assert ecs.list_container_instances(cluster="flow", status="DRAINING")["containerInstanceArns"] == arns
    ecs.update_container_instances_state(cluster="flow", containerInstances=arns, status="ACTIVE")


def test_logs_reach_cloudwatch(ecs: Any, fake_platform: Platform) -> None:
    options = {
        "awslogs-group": "/flow/logs",
        "awslogs-region": "us-east-1",
        "awslogs-stream-prefix": "p",
        "awslogs-create-group": "true",
    }
    definition = register(
        ecs,
        "logs",
        environment={"HUTCH_FAKE_LOG": "hello from the task", "HUTCH_FAKE_RUN_MS": "300"},
        container={"logConfiguration": {"logDriver": "awslogs", "options": options}},
    )
    arn = run(ecs, definition)[0]
    wait(fake_platform, [arn], "STOPPED")
    logs = fake_platform.client("logs")
    events = logs.filter_log_events(logGroupName="/flow/logs", filterPattern="hello")["events"]
    assert [e["message"] for e in events] == ["hello from the task"]
    assert events[0]["logStreamName"] == f"p/main/{arn.rpartition('/')[2]}"


def test_the_aws_cli_v1_works_unmodified(fake_platform: Platform, ecs: Any) -> None:
    done = subprocess.run(
        [str(BIN / "aws"), "ecs", "describe-clusters", "--clusters", "flow"],
        env=fake_platform.aws_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clusters"][0]["clusterName"] == "flow"


@pytest.mark.needs("aws_cli_v2")
def test_the_aws_cli_v2_works_unmodified(fake_platform: Platform, ecs: Any) -> None:
    environment = fake_platform.aws_environment()
    done = subprocess.run(
        [
            "/usr/bin/aws",
            "--endpoint-url",
            environment["AWS_ENDPOINT_URL"],
            "ecs",
            "list-task-definition-families",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout)["families"], list)


def test_a_second_platform_on_one_data_dir_is_refused(fake_platform: Platform) -> None:
    again = fake_platform.hutch("up", "--detach", check=False)
    assert again.returncode == 3
    assert "is in use by process" in again.stderr
