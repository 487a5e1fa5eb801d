"""A program in a microVM gets its task role's credentials, as SDKs ask for them, and is that role to the API."""

import json
from typing import Any

import boto3
import pytest
from tests.support.busybox_archive import NAME
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root", "qemu", "runc", "haproxy", "guest_image", "skopeo", "nft")

TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": {
            "Effect": "Allow",
            "Principal": {"Service": "ecs-tasks.amazonaws.com"},
            "Action": "sts:AssumeRole",
        },
    }
)
SCRIPT = "wget -qO- http://169.254.170.2$AWS_CONTAINER_CREDENTIALS_RELATIVE_URI; echo"
LOGS = {
    "awslogs-group": "/role",
    "awslogs-region": "us-east-1",
    "awslogs-stream-prefix": "t",
    "awslogs-create-group": "true",
}


def run(platform: Platform, family: str, **more: Any) -> tuple[str, str]:
    """Run the script to its end; the task's id and what it wrote."""
    ecs, logs = platform.client("ecs"), platform.client("logs")
    ecs.register_task_definition(
        family=family,
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[
            {
                "name": "main",
                "image": NAME,
                "command": ["/bin/sh", "-c", SCRIPT],
                "logConfiguration": {"logDriver": "awslogs", "options": LOGS},
            }
        ],
        **more,
    )
    arn = ecs.run_task(taskDefinition=family, launchType="FARGATE")["tasks"][0]["taskArn"]
    platform.until("STOPPED", arn)
    task_id = arn.rpartition("/")[2]
    events = logs.filter_log_events(logGroupName="/role", logStreamNames=[f"t/main/{task_id}"])["events"]
    return task_id, "\n".join(e["message"] for e in events)


def test_a_task_is_its_role(vm_platform: Platform) -> None:
    platform = vm_platform
    role = platform.client("iam").create_role(RoleName="wget", AssumeRolePolicyDocument=TRUST)["Role"]["Arn"]
    task_id, written = run(platform, "with-role", taskRoleArn=role)
    given = json.loads(written)
    assert given["RoleArn"] == role
    environment = platform.aws_environment()
    sts = boto3.client(
        "sts",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=given["AccessKeyId"],
        aws_secret_access_key=given["SecretAccessKey"],
        aws_session_token=given["Token"],
    )
    assert sts.get_caller_identity()["Arn"].endswith(f":assumed-role/wget/{task_id}")
    for secret in (given["SecretAccessKey"], given["Token"]):
        assert secret not in (platform.data_dir / "hutch.log").read_text()
    _, written = run(platform, "without-role")
    assert "404" in written
