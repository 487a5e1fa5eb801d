"""The AWS CLI, versions 1 and 2, unmodified: a cluster, a definition from a file, a task in a real microVM, its logs."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.looking import fetch
from tests.support.platform import BIN, Platform

pytestmark = pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft")

VERSIONS = [
    pytest.param(str(BIN / "aws"), id="v1"),
    pytest.param("/usr/bin/aws", id="v2", marks=pytest.mark.needs("aws_cli_v2")),
]
LINE_S = 60.0


def definition(family: str) -> dict[str, Any]:
    return {
        "family": family,
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [
            {
                "name": "web",
                "image": "localhost/web:latest",
                "portMappings": [{"containerPort": 80}],
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


class Cli:
    """One version of the AWS CLI, led to a platform by what `hutch env` prints."""

    def __init__(self, program: str, platform: Platform) -> None:
        self.environment = platform.aws_environment()
        # Versions before 2.13 do not know AWS_ENDPOINT_URL; the option is right for all.
        self._argv = [program, "--endpoint-url", self.environment["AWS_ENDPOINT_URL"]]

    def __call__(self, *arguments: str) -> Any:
        done = subprocess.run(
            [*self._argv, "--output", "json", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"aws {arguments}: {done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    @contextmanager
    def lines(self, *arguments: str) -> Iterator[Iterator[str]]:
        """What a command prints, line by line, while it runs; it is ended after."""
        # The CLI is a Python program: its output would otherwise be kept back as long as nobody looks.
        environment = {**self.environment, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            [*self._argv, *arguments], env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            guard = threading.Timer(LINE_S, process.kill)
            guard.start()
            try:
                yield iter(process.stdout)
            finally:
                guard.cancel()
                process.terminate()


@pytest.mark.parametrize("program", VERSIONS)
def test_the_whole_flow(real_platform: Platform, program: str, tmp_path: Path, request: Any) -> None:
    aws = Cli(program, real_platform)
    name = f"cli-{request.node.callspec.id}"
    assert aws("sts", "get-caller-identity")["Account"] == "000000000000"
    assert aws("ecs", "create-cluster", "--cluster-name", name)["cluster"]["status"] == "ACTIVE"
    file = tmp_path / "task.json"
    file.write_text(json.dumps(definition(name)))
    registered = aws("ecs", "register-task-definition", "--cli-input-json", f"file://{file}")
    assert registered["taskDefinition"]["revision"] == 1

    subnet = aws("ec2", "describe-subnets", "--filters", "Name=default-for-az,Values=true")["Subnets"][0]
    group = aws("ec2", "describe-security-groups")["SecurityGroups"][0]
    network = f"awsvpcConfiguration={{subnets=[{subnet['SubnetId']}],securityGroups=[{group['GroupId']}]}}"
    ran = aws(
        "ecs", "run-task", "--cluster", name, "--task-definition", name, "--launch-type", "FARGATE",
        "--network-configuration", network,
    )  # fmt: skip
    assert ran["failures"] == []
    arn = ran["tasks"][0]["taskArn"]
    # The CLI looks, and looks again 6 s later: here once is enough.
    real_platform.until("RUNNING", arn)
    aws("ecs", "wait", "tasks-running", "--cluster", name, "--tasks", arn)
    task = aws("ecs", "describe-tasks", "--cluster", name, "--tasks", arn)["tasks"][0]
    details = {d["name"]: d["value"] for d in task["attachments"][0]["details"]}
    assert details["subnetId"] == subnet["SubnetId"]
    url = f"http://{details['privateIPv4Address']}"
    assert fetch(f"{url}/")[0] == 200
    if program == "/usr/bin/aws":
        # Version 1 has no `logs tail`.
        with aws.lines("logs", "tail", "/ecs/web", "--follow", "--since", "5m") as lines:
            next(lines)  # what was there before: so the tail has begun
            assert fetch(f"{url}/written-after-start")[0] == 404
            assert any("/written-after-start" in line for line in lines), "the tail ended without the line"
    else:
        assert fetch(f"{url}/written-after-start")[0] == 404
    aws("ecs", "stop-task", "--cluster", name, "--task", arn, "--reason", "seen enough")
    real_platform.until("STOPPED", arn)
    aws("ecs", "wait", "tasks-stopped", "--cluster", name, "--tasks", arn)
    stopped = aws("ecs", "describe-tasks", "--cluster", name, "--tasks", arn)["tasks"][0]
    assert (stopped["stopCode"], stopped["stoppedReason"]) == ("UserInitiated", "seen enough")
    assert stopped["containers"][0]["exitCode"] == 0
    stream = f"web/web/{arn.rpartition('/')[2]}"
    found = aws(
        "logs", "filter-log-events", "--log-group-name", "/ecs/web", "--log-stream-names", stream,
        "--filter-pattern", '"/written-after-start"',
    )  # fmt: skip
    assert found["events"]
    assert arn in aws("ecs", "list-tasks", "--cluster", name, "--desired-status", "STOPPED")["taskArns"]
