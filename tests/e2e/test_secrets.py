"""Secrets on their way into tasks, on a platform whose driver only pretends: a container's dials come as secrets."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root")


@pytest.fixture(scope="module")
def clients(fake_platform: Platform) -> dict[str, Any]:
    made = {n: fake_platform.client(n) for n in ("ecs", "secretsmanager", "ssm")}
    made["ecs"].create_cluster(clusterName="flow")
    return made


def launch(platform: Platform, role: str = "", **container: Any) -> dict[str, Any]:
    """A task of one container that ends by itself; as it was when it had stopped."""
    ecs = platform.client("ecs")
    dials = {"HUTCH_FAKE_RUN_MS": "50"}
    given = {
        "name": "main",
        "image": "x",
        "environment": [{"name": k, "value": v} for k, v in dials.items()],
        **container,
    }
    definition = ecs.register_task_definition(
        family="secrets",
        containerDefinitions=[given],
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        **({"executionRoleArn": role} if role else {}),
    )["taskDefinition"]["taskDefinitionArn"]
    answer = ecs.run_task(cluster="flow", taskDefinition=definition, launchType="FARGATE")
    assert answer["failures"] == []
    arns = [t["taskArn"] for t in answer["tasks"]]
    platform.until("STOPPED", *arns)
    task: dict[str, Any] = ecs.describe_tasks(cluster="flow", tasks=arns)["tasks"][0]
    return task


def exit_from(reference: str) -> dict[str, Any]:
    return {"secrets": [{"name": "HUTCH_FAKE_EXIT", "valueFrom": reference}]}


def test_values_reach_the_container_and_no_file(clients: dict[str, Any], fake_platform: Platform) -> None:
    secrets, ssm = clients["secretsmanager"], clients["ssm"]
    name, other = f"app/{uuid.uuid4().hex[:6]}", f"in-the-clear-{uuid.uuid4().hex}"
    arn = secrets.create_secret(Name=name, SecretString=json.dumps({"code": 41, "other": other}))["ARN"]
    old = secrets.put_secret_value(SecretId=name, SecretString='{"code": "42"}')
    ssm.put_parameter(Name=f"/{name}/exit", Value="43", Type="SecureString")
    parameter = ssm.get_parameter(Name=f"/{name}/exit")["Parameter"]["ARN"]
    wanted = {
        f"{arn}:code::": 42,
        f"{arn}:code:AWSPREVIOUS:": 41,
        f"{arn}:code::{old['VersionId']}": 42,
        f"/{name}/exit": 43,
        parameter: 43,
    }
    for reference, code in wanted.items():
        task = launch(fake_platform, **exit_from(reference))
        assert task["containers"][0]["exitCode"] == code, (reference, task)
    keeps = {"secrets": [{"name": "OTHER", "valueFrom": f"{arn}:other:AWSPREVIOUS:"}]}
    assert launch(fake_platform, **keeps)["containers"][0]["exitCode"] == 0
    files = [p for p in fake_platform.data_dir.rglob("*") if p.is_file()]
    assert len(files) > 5 and [p for p in files if other.encode() in p.read_bytes()] == []


def test_a_launch_without_its_secret_says_why(clients: dict[str, Any], fake_platform: Platform) -> None:
    secrets = clients["secretsmanager"]
    prefix = "ResourceInitializationError: unable to pull secrets or registry auth: "
    name = f"app/{uuid.uuid4().hex[:6]}"
    arn = secrets.create_secret(Name=name, SecretString="not json")["ARN"]
    for reference, words in (
        ("/nowhere", "invalid ssm parameters: /nowhere"),
        (
            arn.replace(name, "nowhere"),
            "ResourceNotFoundException: Secrets Manager can't find the specified secret.",
        ),
        (f"{arn}::nothing:", "can't find the specified secret value for staging label: nothing"),
        (f"{arn}:key::", "is not a JSON object"),
    ):
        task = launch(fake_platform, **exit_from(reference))
        assert task["stopCode"] == "TaskFailedToStart", task
        assert task["stoppedReason"].startswith(prefix) and words in task["stoppedReason"]
        assert "not json" not in str(task)
    for credentials in (arn, "nowhere"):
        task = launch(fake_platform, repositoryCredentials={"credentialsParameter": credentials})
        assert task["stopCode"] == "TaskFailedToStart" and task["stoppedReason"].startswith(prefix)
    secrets.delete_secret(SecretId=name)
    task = launch(fake_platform, **exit_from(arn))
    assert "marked for deletion" in task["stoppedReason"]


def test_an_execution_role_must_allow_what_is_fetched_as_it(
    clients: dict[str, Any], fake_platform: Platform
) -> None:
    iam = fake_platform.client("iam")
    name = f"app/{uuid.uuid4().hex[:6]}"
    arn = clients["secretsmanager"].create_secret(Name=name, SecretString="7")["ARN"]
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "ecs-tasks.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": trust})
    role = iam.create_role(RoleName="exec", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    managed = "arn:aws:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
    iam.attach_role_policy(RoleName="exec", PolicyArn=managed)
    task = launch(fake_platform, role, **exit_from(arn))
    assert task["stopCode"] == "TaskFailedToStart"
    assert (
        "AccessDeniedException: User: arn:aws:sts::000000000000:assumed-role/exec/" in task["stoppedReason"]
    )
    said = fake_platform.hutch("why", task["taskArn"].rpartition("/")[2]).stdout
    assert f"does not allow secretsmanager:GetSecretValue on {arn}" in said and "fix: allow " in said
    allow = {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": arn}
    policy = json.dumps({"Version": "2012-10-17", "Statement": allow})
    iam.put_role_policy(RoleName="exec", PolicyName="secret", PolicyDocument=policy)
    task = launch(fake_platform, role, **exit_from(arn))
    assert task["containers"][0]["exitCode"] == 7, task


def test_what_is_refused_when_registered(clients: dict[str, Any], fake_platform: Platform) -> None:
    for container, words in (
        ({"secrets": [{"name": "HUTCH_FAKE_RUN_MS", "valueFrom": "/a"}]}, "must be unique and not shared"),
        (exit_from("arn:aws:s3:::bucket"), "neither the ARN of a secret"),
        ({"repositoryCredentials": {"credentialsParameter": ""}}, "repositoryCredentials needs"),
        ({"environmentFiles": [{"value": "arn:aws:s3:::b/x.txt", "type": "s3"}]}, "must end with .env"),
    ):
        with pytest.raises(ClientError, match=words):
            launch(fake_platform, **container)


def test_leftovers_of_uploads_go_when_the_control_plane_starts(tmp_path: Path) -> None:
    platform = Platform(tmp_path, drivers="fake")
    leftover = platform.data_dir / "uploads" / "upload-abc"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half an archive")
    platform.start()
    try:
        assert not leftover.exists() and leftover.parent.exists()
    finally:
        platform.stop()


def test_a_platform_without_its_key_file_does_not_start(tmp_path: Path) -> None:
    """Better than to make another key, under which nothing opens."""
    platform = Platform(tmp_path, drivers="fake")
    platform.start()
    try:
        platform.client("ssm").put_parameter(Name="/a", Value="b", Type="String")
    finally:
        platform.stop()
    key = platform.data_dir / "secrets.key"
    content = key.read_bytes()
    key.unlink()
    done = platform.hutch("up", "--detach", check=False)
    assert done.returncode != 0
    assert "secrets.key is missing" in platform.log() + done.stderr
    key.write_bytes(content)
    platform.start()
    try:
        assert platform.client("ssm").get_parameter(Name="/a")["Parameter"]["Value"] == "b"
    finally:
        platform.stop()
