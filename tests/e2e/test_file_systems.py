"""File systems through the API into real VMs: two tasks share one, each behind a door of its own; what is missing is told."""

from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.busybox_archive import NAME
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root", "qemu", "runc", "haproxy", "guest_image", "skopeo", "nft", "virtiofsd")


@pytest.fixture(scope="module")
def platform(vm_platform: Platform) -> Platform:
    return vm_platform


def start(platform: Platform, script: str, volume: dict[str, Any]) -> str:
    """A task of one container that has the volume at /v; its ARN."""
    ecs = platform.client("ecs")
    definition = ecs.register_task_definition(
        family="files",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[
            {
                "name": "main",
                "image": NAME,
                "command": ["sh", "-c", script],
                "mountPoints": [{"sourceVolume": "v", "containerPath": "/v"}],
            }
        ],
        volumes=[{"name": "v", "efsVolumeConfiguration": volume}],
    )["taskDefinition"]["taskDefinitionArn"]
    answer = ecs.run_task(taskDefinition=definition, launchType="FARGATE")
    arn: str = answer["tasks"][0]["taskArn"]
    return arn


def ended(platform: Platform, arn: str) -> tuple[dict[str, Any], str]:
    ecs = platform.client("ecs")
    platform.until("STOPPED", arn)
    task: dict[str, Any] = ecs.describe_tasks(tasks=[arn])["tasks"][0]
    return task, platform.hutch("logs", arn.rpartition("/")[2], check=False).stdout


def test_tasks_share_a_file_system(platform: Platform) -> None:
    efs = platform.client("efs")
    fs = efs.create_file_system(CreationToken="shared")["FileSystemId"]
    root = {"Path": "/inbox", "CreationInfo": {"OwnerUid": 1000, "OwnerGid": 1000, "Permissions": "0770"}}
    point = efs.create_access_point(ClientToken="p", FileSystemId=fs, RootDirectory=root)["AccessPointId"]
    behind = {
        "fileSystemId": fs,
        "transitEncryption": "ENABLED",
        "authorizationConfig": {"accessPointId": point},
    }
    asks = "stat -c '%u %a' /v; echo ping > /v/ping; until test -s /v/pong; do sleep 0.1; done; cat /v/pong; ls -a /v/.."
    answers = "until test -s /v/inbox/ping; do sleep 0.1; done; echo pong > /v/inbox/pong; cat /v/inbox/ping"
    first = start(platform, asks, behind)
    second = start(platform, answers, {"fileSystemId": fs, "rootDirectory": "/"})
    (task, told), (_, other) = ended(platform, first), ended(platform, second)
    assert task["containers"][0]["exitCode"] == 0, platform.hutch("why", first.rpartition("/")[2]).stdout
    assert told.startswith("1000 770\npong\n") and "ping" in other
    assert "inbox" not in told, "the access point shows what is above it"
    assert efs.describe_file_systems(FileSystemId=fs)["FileSystems"][0]["SizeInBytes"]["Value"] > 0
    (tree,) = platform.data_dir.rglob(fs)
    assert (tree / "inbox/pong").read_text() == "pong\n"
    efs.delete_file_system(FileSystemId=fs)
    assert not tree.exists() and list(tree.parent.iterdir()) == []
    with pytest.raises(ClientError, match="does not exist"):
        efs.describe_access_points(AccessPointId=point)


def test_what_is_not_there_is_told(platform: Platform) -> None:
    efs = platform.client("efs")
    fs = efs.create_file_system(CreationToken="empty")["FileSystemId"]
    prefix = (
        "ResourceInitializationError: failed to invoke EFS utils commands to set up EFS volumes: stderr: "
    )
    for volume, words in (
        ({"fileSystemId": "fs-00000000000000000"}, "check that your file system ID is correct"),
        (
            {
                "fileSystemId": fs,
                "transitEncryption": "ENABLED",
                "authorizationConfig": {"accessPointId": "fsap-00000000000000000"},
            },
            "has no access point",
        ),
        ({"fileSystemId": fs, "rootDirectory": "/none"}, "No such file or directory"),
    ):
        task, _ = ended(platform, start(platform, "true", volume))
        assert task["stopCode"] == "TaskFailedToStart", task
        assert task["stoppedReason"].startswith(prefix) and words in task["stoppedReason"]
