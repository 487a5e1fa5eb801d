"""What a task is launched with is fetched as its execution role; without its permission the task is not launched."""

import json
from typing import Any

import pytest
from tests.support.launching import ACCOUNT, CAUSE, REGION, Launching, statement

from hutch.control.launch_refusals import LaunchRefused
from hutch.model.taskdef import TaskDefinition
from hutch.rules.execution_role import MANAGED_POLICY
from hutch.wire.taskspec import ContainerSpec, TaskSpec

TASK_ID = "a" * 32
PULL = "ResourceInitializationError: unable to pull secrets or registry auth: "


@pytest.fixture
def control() -> Launching:
    return Launching()


def fill(control: Launching, role: str, **container: Any) -> TaskSpec:
    document: dict[str, Any] = {"containerDefinitions": [{"name": "main", "image": "x", **container}]}
    if role:
        document["executionRoleArn"] = role
    definition = TaskDefinition(family="f", revision=1, registered_at=0, registered_by="", document=document)
    spec = TaskSpec(
        task_id=TASK_ID,
        cluster="default",
        arn="",
        family="f",
        revision=1,
        launch_type="FARGATE",
        cpu_units=256,
        memory_mib=512,
        ephemeral_gib=20,
        network_mode="awsvpc",
        containers=(ContainerSpec(name="main", container_id="c", image="x"),),
    )
    with control.store.read() as reader:
        return control.launch_secrets.fill(reader, spec, definition, {})


def refused(control: Launching, role: str, **container: Any) -> LaunchRefused:
    with pytest.raises(LaunchRefused) as caught:
        fill(control, role, **container)
    return caught.value


def secrets(*references: str) -> dict[str, Any]:
    return {"secrets": [{"name": f"S{i}", "valueFrom": r} for i, r in enumerate(references)]}


def logs(**options: str) -> dict[str, Any]:
    given = {"awslogs-group": "/app", "awslogs-region": REGION, "awslogs-stream-prefix": "web", **options}
    return {"logConfiguration": {"logDriver": "awslogs", "options": given}}


def test_values_are_given_to_a_role_that_may_have_them(control: Launching) -> None:
    secret, parameter = control.secret("app/db", "v1"), control.parameter("/app/key", "v2")
    role = control.role(
        "may",
        statement("Allow", "secretsmanager:GetSecretValue", secret),
        statement("Allow", "ssm:GetParameters", parameter),
    )
    filled = fill(control, role, **secrets(secret, "/app/key", parameter))
    assert filled.containers[0].secrets == {"S0": "v1", "S1": "v2", "S2": "v2"}
    # A name serves as well as an ARN, and no role at all means the platform's own.
    assert fill(control, "may", **secrets(secret)).containers[0].secrets == {"S0": "v1"}
    assert fill(control, "", **secrets(secret)).containers[0].secrets == {"S0": "v1"}


def test_a_secret_that_the_role_may_not_read(control: Launching) -> None:
    secret = control.secret("app/db", "hidden")
    role = control.role("bare", attached=(MANAGED_POLICY,))
    error = refused(control, role, **secrets(f"{secret}:key::"))
    who = f"arn:aws:sts::{ACCOUNT}:assumed-role/bare/{TASK_ID}"
    assert error.message.startswith(
        PULL + "execution resource retrieval failed: unable to retrieve secret from asm: "
    )
    assert (
        f"AccessDeniedException: User: {who} is not authorized to perform: secretsmanager:GetSecretValue on resource: "
        f"{secret} because no identity-based policy allows the secretsmanager:GetSecretValue action"
    ) in error.message
    assert error.link.kind == "ExecutionRoleDenied"
    assert error.link.evidence == {
        "role": role,
        "action": "secretsmanager:GetSecretValue",
        "resource": secret,
        "explicit": False,
        "container": "main",
        "reference": f"{secret}:key::",
    }
    assert "put-role-policy" in error.link.fix and "hidden" not in str(error.link)


def test_who_may_not_read_it_is_not_told_whether_it_is_there(control: Launching) -> None:
    role = control.role("bare")
    missing = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:nothing-AbCdEf"
    assert "AccessDeniedException" in refused(control, role, **secrets(missing)).message
    assert (
        "ssm:GetParameters on resource: arn:aws:ssm" in refused(control, role, **secrets("/nothing")).message
    )
    allowed = control.role("all", statement("Allow", "*"))
    assert refused(control, allowed, **secrets(missing)).link.kind == "SecretNotFound"


def test_registry_credentials_are_a_secret_like_others(control: Launching) -> None:
    secret = control.secret("registry", json.dumps({"username": "u", "password": "p"}), team="a")
    given = {"repositoryCredentials": {"credentialsParameter": "registry"}}
    denied = control.role("denied", statement("Allow", "*"), statement("Deny", "secretsmanager:*", secret))
    error = refused(control, denied, **given)
    assert "with an explicit deny in an identity-based policy" in error.message
    assert "take that statement away" in error.link.fix
    condition = {"StringEquals": {"aws:ResourceTag/team": "a"}}
    by_tag = {
        "Effect": "Allow",
        "Action": "secretsmanager:GetSecretValue",
        "Resource": "*",
        "Condition": condition,
    }
    tagged = control.role("tagged", json.dumps({"Version": "2012-10-17", "Statement": by_tag}))
    assert fill(control, tagged, **given).containers[0].registry_credentials == ("u", "p")


@pytest.mark.parametrize("container", [secrets("/app/key"), logs()], ids=["secrets", "logs"])
def test_a_role_that_can_not_be_assumed(control: Launching, container: dict[str, Any]) -> None:
    control.parameter("/app/key", "v")
    absent = f"arn:aws:iam::{ACCOUNT}:role/absent"
    error = refused(control, absent, **container)
    assert error.message.startswith(PULL + f"ECS was unable to assume the role '{absent}'")
    assert (error.link.kind, error.link.evidence["exists"]) == ("ExecutionRoleUnusable", False)
    assert "create-role --role-name absent" in error.link.fix
    lambdas = control.role("lambda", statement("Allow", "*"), service="lambda.amazonaws.com")
    error = refused(control, lambdas, **container)
    assert error.link.evidence["exists"] is True and "update-assume-role-policy" in error.link.fix
    assert refused(control, "arn:aws:iam::nonsense", **container).link.kind == "ExecutionRoleUnusable"
    # Nothing is fetched as it: then it does not matter, either.
    assert fill(control, absent).task_id == TASK_ID


def test_environment_files_are_read_as_the_role(control: Launching) -> None:
    arn = control.file("config", "app.env", "A=1\n")
    given = {"environmentFiles": [{"value": arn, "type": "s3"}]}
    may = control.role("may", statement("Allow", "s3:GetObject", "arn:aws:s3:::config/*"))
    assert fill(control, may, **given).containers[0].secrets == {"A": "1"}
    error = refused(control, control.role("bare"), **given)
    assert error.message.startswith("ResourceInitializationError: failed to download env files: ")
    assert f"is not authorized to perform: s3:GetObject on resource: {arn} because" in error.message


def test_log_streams_are_made_as_the_role(control: Launching) -> None:
    managed = control.role("managed", attached=(MANAGED_POLICY,))
    assert fill(control, managed, **logs())
    making = logs(**{"awslogs-create-group": "true"})
    error = refused(control, managed, **making)
    assert "failed to create Cloudwatch log group: AccessDeniedException" in error.message
    assert error.link.evidence["action"] == "logs:CreateLogGroup"
    control.groups.add("/app")
    assert fill(control, managed, **making)
    error = refused(control, control.role("bare"), **logs())
    stream = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/app:log-stream:web/main/{TASK_ID}"
    assert error.message.startswith("ResourceInitializationError: failed to validate logger args: ")
    assert f"logs:CreateLogStream on resource: {stream} because" in error.message
    assert MANAGED_POLICY in error.link.fix
    narrow = control.role("narrow", statement("Allow", "logs:*", "arn:aws:logs:*:*:log-group:/app:*"))
    assert fill(control, narrow, **logs())


def test_a_change_of_the_role_counts_at_once(control: Launching) -> None:
    secret = control.secret("app/db", "v")
    role = control.role("later")
    refused(control, role, **secrets(secret))
    control.run(
        control.roles.put_policy(CAUSE, "later", "p", statement("Allow", "secretsmanager:GetSecretValue"))
    )
    assert fill(control, role, **secrets(secret)).containers[0].secrets == {"S0": "v"}
    control.run(control.roles.delete_policy(CAUSE, "later", "p"))
    refused(control, role, **secrets(secret))
