"""Pre-flight checks over HTTP: who may, what is refused, what is found, and that nothing is changed by one."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.support.aws import HOST_ID, AwsServer
from tests.api.support.seeds import seeds
from tests.api.support.server import REGION
from tests.api.test_fuzz import SESSION, fuzz, inputs, send_json
from tests.api.test_iam import allow, document, trust

from hutch.client.client import HutchClient
from hutch.client.errors import AwsError

ACCOUNT = "arn:aws:iam::000000000000"


def definition(*containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "family": "check",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [{"name": "main", "image": "x", **c} for c in containers or ({},)],
        **more,
    }


def check(aws: AwsServer, keys: tuple[str, str] | None = None, **body: Any) -> dict[str, Any]:
    key_id, secret = keys or (aws.http.key.access_key_id, aws.http.key.secret_key)
    client = HutchClient(aws.http.url, key_id, secret, REGION)
    return client.native("POST", "/check", body=body)


def _containers(given_: dict[str, Any]) -> list[dict[str, Any]]:
    return list(given_.get("containerDefinitions", ()))


def kinds(seen: dict[str, Any]) -> list[str]:
    return [f["kind"] for f in seen["problems"]]


@pytest.fixture(scope="module", autouse=True)
def cluster(aws: AwsServer) -> None:
    for name in ("default", "other"):
        aws.client("ecs").create_cluster(clusterName=name)


def test_what_is_fine_and_that_nothing_is_changed(aws: AwsServer) -> None:
    before = aws.store.last_seq()
    seen = check(aws, definition=definition())
    assert seen["fine"] and seen["problems"] == seen["warnings"] == seen["aws"] == []
    assert [(h["host_id"], h["missing"]) for h in seen["hosts"]] == [(HOST_ID, "")]
    assert not check(aws, definition=definition({"image": "x/not-found"}))["fine"]
    changed = {c.table for c in aws.store.changes(before) or ()}
    assert changed <= {"container_instances", "event_log", "event_cursor"}, (
        "the host still joins the clusters"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "either taskDefinition or definition"),
        ({"taskDefinition": "a", "definition": {}}, "either taskDefinition or definition"),
        ({"taskDefinition": "a", "count": 0}, "count must be"),
        ({"taskDefinition": "a", "more": 1}, "more"),
        ({"taskDefinition": "nobody:7"}, "there is no task definition nobody:7"),
    ],
)
def test_requests_that_are_refused(aws: AwsServer, body: dict[str, Any], words: str) -> None:
    with pytest.raises(AwsError, match=words):
        check(aws, **body)


def test_what_is_no_definition_is_a_finding(aws: AwsServer) -> None:
    for given_ in ({}, {"family": 7, "containerDefinitions": []}, {"taskDefinition": {}}):
        (found,) = check(aws, definition=given_)["problems"]
        assert found["kind"] == "Refused" and found["text"]


def test_where_it_is_to_run(aws: AwsServer) -> None:
    (found,) = check(aws, definition=definition(), cluster="nowhere")["problems"]
    assert "Cluster not found." in found["text"] and "create-cluster --cluster-name nowhere" in found["text"]
    arm = definition(runtimePlatform={"cpuArchitecture": "ARM64"})
    assert kinds(check(aws, definition=arm)) == ["WrongArchitecture"]
    (found,) = check(aws, definition=definition(), launchType="EXTERNAL")["problems"]
    assert found["text"] == "Task definition does not support launch_type EXTERNAL."
    assert "NoMemory" in kinds(check(aws, definition=definition(memory="1024GB")))
    seen = check(aws, definition=definition(), count=1000)
    assert (
        kinds(seen) in (["NoCpu"], ["NoMemory"]) and " of 1000 tasks fit now" in seen["problems"][0]["text"]
    )
    bridge = definition(
        {"portMappings": [{"containerPort": 80, "hostPort": 8080}]},
        requiresCompatibilities=["EC2"],
        networkMode="bridge",
    )
    assert check(aws, definition=bridge)["fine"]
    seen = check(aws, definition=bridge, count=2)
    assert kinds(seen) == ["PortInUse"] and "each on a host of its own" in seen["problems"][0]["text"]
    (found,) = check(aws, definition=definition(), publish="81")["problems"]
    assert "no container of the task definition maps port 81" in found["text"]


def test_what_could_not_be_looked_at_is_not_called_fine(aws: AwsServer) -> None:
    aws.host.is_connected = False
    try:
        assert kinds(check(aws, definition=definition())) == ["ImagesNotChecked"]
    finally:
        aws.host.is_connected = True


def test_logins_go_to_the_host_and_nowhere_else(aws: AwsServer) -> None:
    secrets = aws.client("secretsmanager")
    login = json.dumps({"username": "me", "password": "sesame-1"})
    arn = secrets.create_secret(Name="check/login", SecretString=login)["ARN"]
    value = secrets.create_secret(Name="check/value", SecretString="sesame-2")["ARN"]
    aws.client("iam").create_role(
        RoleName="check-none", AssumeRolePolicyDocument=trust({"Service": "ecs-tasks.amazonaws.com"})
    )
    containers = (
        {"repositoryCredentials": {"credentialsParameter": arn}},
        {
            "name": "two",
            "secrets": [{"name": "A", "valueFrom": value}, {"name": "B", "valueFrom": f"{value}:k::"}],
        },
        {"name": "three", "repositoryCredentials": {"credentialsParameter": value}},
        {
            "name": "five",
            "logConfiguration": {
                "logDriver": "fluentd",
                "options": {"fluentd-address": "127.0.0.1:24224"},
                "secretOptions": [{"name": "tag", "valueFrom": "/check/nowhere"}],
            },
        },
        {"name": "four", "environmentFiles": [{"type": "s3", "value": "arn:aws:s3:::nothing/here.env"}]},
    )
    aws.host.asked.clear()
    seen = check(aws, definition=definition(*containers))
    assert sorted(kinds(seen)) == [
        "EnvironmentFileNotFound",
        "SecretInvalid",
        "SecretInvalid",
        "SecretNotFound",
    ]
    assert "sesame" not in json.dumps(seen)
    (asked,) = aws.host.asked
    assert [list(i.get("credentials") or ()) for i in asked["images"]] == [["me", "sesame-1"], []]
    as_role = definition(*containers, executionRoleArn=f"{ACCOUNT}:role/check-none")
    found = check(aws, definition=as_role)["problems"]
    denied = [f["evidence"]["action"] for f in found if f["kind"] == "ExecutionRoleDenied"]
    assert sorted(denied) == ["s3:GetObject", *["secretsmanager:GetSecretValue"] * 4, "ssm:GetParameters"]
    assert len(found) == len(denied) + 4 and all(f["fix"] for f in found)


def test_secrets_that_are_too_much_together(aws: AwsServer) -> None:
    secrets = aws.client("secretsmanager")
    arn = secrets.create_secret(Name="check/large", SecretString="x" * 60_000)["ARN"]
    many = [{"name": f"S{n}", "valueFrom": arn} for n in range(9)]
    assert check(aws, definition=definition({"secrets": many[:8]}))["fine"]
    (found,) = check(aws, definition=definition({"secrets": many}))["problems"]
    assert (found["kind"], found["subject"]) == ("SecretsTooLarge", "task")


def test_volumes(aws: AwsServer) -> None:
    volumes = [
        {"name": "shared", "efsVolumeConfiguration": {"fileSystemId": "fs-00000000000000000"}},
        {"name": "disk", "configuredAtLaunch": True},
    ]
    seen = check(aws, definition=definition(volumes=volumes))
    assert kinds(seen) == ["FileSystemNotFound"] and "volume shared: " in seen["problems"][0]["text"]
    assert [(w["kind"], w["subject"]) for w in seen["warnings"]] == [("VolumeAtLaunch", "volume disk")]


def test_a_check_takes_the_permissions_of_a_launch(aws: AwsServer) -> None:
    iam = aws.client("iam")
    iam.create_user(UserName="checker")
    key = iam.create_access_key(UserName="checker")["AccessKey"]
    keys = (key["AccessKeyId"], key["SecretAccessKey"])
    given_ = definition(taskRoleArn=f"{ACCOUNT}:role/nobody")
    allowed: list[dict[str, Any]] = []
    for action in ("hutch:CheckTask", "ecs:RunTask", "ecs:RegisterTaskDefinition", "iam:PassRole"):
        with pytest.raises(AwsError, match=f"not authorized to perform: {action}") as caught:
            check(aws, keys, definition=given_)
        assert "AccessDenied" in caught.value.code
        allowed.append(allow(action))
        iam.put_user_policy(UserName="checker", PolicyName="p", PolicyDocument=document(*allowed))
    assert kinds(check(aws, keys, definition=given_)) == ["RoleNotFound"]


def test_what_registering_refuses_is_found_and_nothing_fails(aws: AwsServer) -> None:
    """The same input to both: a check finds what RegisterTaskDefinition says, and takes what that takes."""
    operation = SESSION.get_service_model("ecs").operation_model("RegisterTaskDefinition")
    right = seeds(aws.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"])

    @fuzz(500)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        given_ = data.draw(inputs(operation, right, typed=True))
        seen = check(aws, definition=given_)
        texts = [f["text"] for f in seen["problems"]]
        status, answer = send_json(aws.http, operation, given_)
        if status == 200:
            assert "NotServed" not in kinds(seen)
            return
        message = json.loads(answer)["message"]
        named = all(re.fullmatch(r"[\w-]{1,255}", c.get("name", ""), re.ASCII) for c in _containers(given_))
        # Of containers without a name the words are not quite the same.
        assert message in texts if named else texts, (given_, message, texts)

    run()
