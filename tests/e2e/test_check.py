"""`hutch check` finds everything that is wrong at once, and what it finds fine runs; the driver only pretends."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import Platform, running
from tests.support.registry import Image, LocalRegistry, layer, member

pytestmark = pytest.mark.needs("root")
TRUST = json.dumps({
    "Version": "2012-10-17",
    "Statement": {"Effect": "Allow", "Principal": {"Service": "ecs-tasks.amazonaws.com"}, "Action": "sts:AssumeRole"},
})  # fmt: skip
MANAGED = "arn:aws:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"


def logging(group: str) -> dict[str, Any]:
    return {
        "logDriver": "awslogs",
        "options": {"awslogs-group": group, "awslogs-region": "us-east-1", "awslogs-stream-prefix": "s"},
    }


def definition(*containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "family": "checked",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": list(containers),
        **more,
    }


@pytest.fixture(scope="module")
def fake_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Its own: what is free on it is what is checked."""
    with running(tmp_path_factory.mktemp("check"), drivers="fake") as platform:
        yield platform


@pytest.fixture(scope="module")
def role(fake_platform: Platform) -> str:
    iam = fake_platform.client("iam")
    arn = str(iam.create_role(RoleName="exec", AssumeRolePolicyDocument=TRUST)["Role"]["Arn"])
    iam.attach_role_policy(RoleName="exec", PolicyArn=MANAGED)
    return arn


def checked(platform: Platform, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = platform.hutch("check", *arguments, "--json", check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def kinds(seen: dict[str, Any], member: str = "problems") -> list[str]:
    return sorted(f["kind"] for f in seen[member])


def test_everything_that_is_wrong_is_said_at_once(fake_platform: Platform, role: str, tmp_path: Path) -> None:
    secrets = fake_platform.client("secretsmanager")
    arn = secrets.create_secret(Name="there", SecretString='{"a": "1"}')["ARN"]
    web = {
        "name": "web",
        "image": "registry.example/not-found:1",
        "portMappings": [{"containerPort": 80}],
        "secrets": [
            {"name": "MISSING", "valueFrom": arn.replace("there", "nowhere")},
            {"name": "A", "valueFrom": f"{arn}:b::"},
        ],
        "logConfiguration": logging("/no/group"),
        "privileged": True,
        "stopTimeout": 600,
    }
    side = {
        "name": "side",
        "image": "big/40g:1",
        "portMappings": [{"containerPort": 80}],
        "repositoryCredentials": {"credentialsParameter": "nothing"},
        "resourceRequirements": [{"type": "GPU", "value": "1"}],
    }
    big = {"name": "big", "image": "big/40g:1"}
    given = definition(
        web,
        side,
        big,
        executionRoleArn=role,
        taskRoleArn=role.replace("exec", "absent"),
        cpu="300",
        memory=str(2**24),
    )
    path = tmp_path / "task.json"
    path.write_text(json.dumps(given))
    code, seen = checked(fake_platform, str(path))
    assert code == 4 and not seen["fine"]
    assert kinds(seen) == sorted([
        "NotServed",
        "ImageNotFound",
        "ImageTooLarge",
        "SecretNotFound", "SecretInvalid", "SecretNotFound",
        "ExecutionRoleDenied", "ExecutionRoleDenied", "ExecutionRoleDenied",
        "RoleNotFound",
        "LogGroupNotFound",
        "PortTwice",
        "NoMemory",
    ])  # fmt: skip
    assert all(f["fix"] for f in seen["problems"])
    said = " ".join(f["text"] for f in seen["aws"])
    for words in ("privileged", "stop timeout", "300 CPU"):
        assert words in said
    shown = fake_platform.hutch("check", str(path), check=False)
    assert shown.returncode == 4
    for words in (
        "problems (13)",
        "AWS would refuse (",
        "fix: ",
        "ImageNotFound",
        "containers web, side: both map port 80",
    ):
        assert words in shown.stdout, shown.stdout
    # Nothing was started, registered or made.
    ecs = fake_platform.client("ecs")
    assert ecs.list_task_definitions(familyPrefix="checked")["taskDefinitionArns"] == []
    assert fake_platform.client("logs").describe_log_groups()["logGroups"] == []


def test_what_is_fine_is_said_to_be_and_runs(fake_platform: Platform, role: str, tmp_path: Path) -> None:
    fake_platform.client("logs").create_log_group(logGroupName="/app")
    web = {
        "name": "web",
        "image": "good:1",
        "portMappings": [{"containerPort": 80}],
        "logConfiguration": logging("/app"),
    }
    given = definition(web, executionRoleArn=role)
    path = tmp_path / "task.json"
    path.write_text(json.dumps(given))
    assert checked(fake_platform, str(path), "-p", "31999:80") == (
        0, {**checked(fake_platform, str(path))[1], "problems": [], "warnings": [], "aws": []},
    )  # fmt: skip
    ecs = fake_platform.client("ecs")
    ecs.register_task_definition(**given)
    described = tmp_path / "described.json"
    described.write_text(json.dumps(ecs.describe_task_definition(taskDefinition="checked"), default=str))
    assert checked(fake_platform, str(described))[0] == 0
    run = ecs.run_task(
        taskDefinition="checked", launchType="FARGATE", tags=[{"key": "hutch:publish", "value": "31999:80"}]
    )
    arn = run["tasks"][0]["taskArn"]
    fake_platform.until("RUNNING", arn)
    code, seen = checked(fake_platform, "checked", "-p", "31999:80")
    assert (code, kinds(seen)) == (4, ["PortInUse"])
    assert arn.rpartition("/")[2] in seen["problems"][0]["text"]
    code, seen = checked(fake_platform, "checked", "--count", "1000")
    assert code == 4 and kinds(seen)[0] in ("NoMemory", "NoCpu")
    assert " of 1000 tasks fit now: " in seen["problems"][0]["text"]
    ecs.stop_task(task=arn)


def test_what_aws_alone_would_refuse_counts_if_asked(fake_platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(definition({"name": "a", "image": "good:1", "privileged": True})))
    assert checked(fake_platform, str(path))[0] == 0
    assert checked(fake_platform, str(path), "--strict-aws")[0] == 4
    assert fake_platform.hutch("check", "no-such-family", check=False).returncode == 1
    assert fake_platform.hutch("check", str(tmp_path / "absent.json"), check=False).returncode == 1


@pytest.mark.needs("root", "runc", "haproxy", "skopeo", "nft", "registry")
def test_real_images_and_ports(tmp_path: Path) -> None:
    registry = LocalRegistry(tmp_path / "registry")
    platform = Platform(tmp_path / "platform", drivers="container")
    path = tmp_path / "task.json"

    def look(image: str, port: int, **more: Any) -> list[str]:
        container = {"name": "a", "image": image, "memory": 64}
        container["portMappings"] = [{"containerPort": 80, "hostPort": port}]
        path.write_text(json.dumps({"family": "real", "containerDefinitions": [container], **more}))
        return kinds(checked(platform, str(path), "--launch-type", "EC2")[1])

    try:
        image = registry.push("app", Image(layer([member("hello", b"hello")])))
        platform.start()
        platform.client("ecs").create_cluster(clusterName="default")
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            arm = {"runtimePlatform": {"cpuArchitecture": "ARM64"}}
            assert look(image.replace("app", "none"), port) == ["ImageNotFound", "PortInUse"]
            assert look(image, 0, **arm) == ["ImageWrongArchitecture", "WrongArchitecture"]
        assert look(image, port) == []
        assert platform.client("ecs").list_task_definitions()["taskDefinitionArns"] == []
    finally:
        platform.stop()
        registry.stop()
    assert platform.leftovers() == []
