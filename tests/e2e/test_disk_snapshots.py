"""A volume that stays, copied by CreateSnapshot, and a volume of another task that begins as that copy: in real VMs."""

from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.busybox_archive import NAME
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root", "qemu", "runc", "haproxy", "guest_image", "skopeo", "nft")
ROLE = "arn:aws:iam::000000000000:role/r"


@pytest.fixture(scope="module")
def platform(vm_platform: Platform) -> Platform:
    return vm_platform


def start(platform: Platform, script: str, volume: dict[str, Any]) -> str:
    """A task of one container that has the disk at /v; its ARN."""
    ecs = platform.client("ecs")
    definition = ecs.register_task_definition(
        family="disks",
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
        volumes=[{"name": "v", "configuredAtLaunch": True}],
    )["taskDefinition"]["taskDefinitionArn"]
    given = {"roleArn": ROLE, **volume}
    answer = ecs.run_task(
        taskDefinition=definition,
        launchType="FARGATE",
        volumeConfigurations=[{"name": "v", "managedEBSVolume": given}],
    )
    arn: str = answer["tasks"][0]["taskArn"]
    return arn


def ended(platform: Platform, arn: str) -> tuple[dict[str, str], str]:
    """The disk of a task that has ended, and what the task wrote."""
    ecs = platform.client("ecs")
    platform.until("STOPPED", arn)
    task = ecs.describe_tasks(tasks=[arn])["tasks"][0]
    (disk,) = (a for a in task["attachments"] if a["type"] == "AmazonElasticBlockStorage")
    output = platform.hutch("logs", arn.rpartition("/")[2], check=False).stdout
    return {d["name"]: d["value"] for d in disk["details"]}, output


def test_a_volume_from_a_snapshot(platform: Platform) -> None:
    ec2 = platform.client("ec2")
    stays = {"sizeInGiB": 1, "filesystemType": "ext4", "terminationPolicy": {"deleteOnTermination": False}}
    first = start(platform, "trap 'exit 0' TERM; echo kept > /v/note; sleep 1000 & wait", stays)
    ecs = platform.client("ecs")
    platform.until("RUNNING", first)
    (attached,) = (
        a
        for a in ecs.describe_tasks(tasks=[first])["tasks"][0]["attachments"]
        if a["type"] == "AmazonElasticBlockStorage"
    )
    volume = next(d["value"] for d in attached["details"] if d["name"] == "volumeId")
    with pytest.raises(ClientError, match="IncorrectState"):
        ec2.create_snapshot(VolumeId=volume)
    ecs.stop_task(task=first)
    assert ended(platform, first)[0]["volumeId"] == volume
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "team", "Value": "a"}]}]
    made = ec2.create_snapshot(VolumeId=volume, Description="before", TagSpecifications=tags)
    snapshot = made["SnapshotId"]
    assert (made["State"], made["VolumeSize"], made["Description"]) == ("completed", 1, "before")
    by_tag = [{"Name": "tag:team", "Values": ["a"]}]
    (shown,) = ec2.describe_snapshots(OwnerIds=["self"], Filters=by_tag)["Snapshots"]
    assert (shown["SnapshotId"], shown["VolumeId"]) == (snapshot, volume)
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot])
    for changed in ({"sizeInGiB": 2}, {"filesystemType": "xfs"}):
        with pytest.raises(ClientError, match="ECS managed EBS volume configuration was invalid"):
            start(platform, "true", {"snapshotId": snapshot, **changed})
    second = start(platform, "cat /v/note; echo other > /v/note", {"snapshotId": snapshot})
    disk, output = ended(platform, second)
    assert output == "kept\n" and disk["snapshotId"] == snapshot
    third = start(platform, "cat /v/note", {"snapshotId": snapshot, "sizeInGiB": 1, "filesystemType": "ext4"})
    assert ended(platform, third)[1] == "kept\n", "a task wrote into the snapshot"
    ec2.delete_snapshot(SnapshotId=snapshot)
    assert not list(platform.data_dir.rglob(f"{snapshot}*"))
    for call in (
        lambda: ec2.describe_snapshots(SnapshotIds=[snapshot]),
        lambda: ec2.delete_snapshot(SnapshotId=snapshot),
    ):
        with pytest.raises(ClientError, match=r"InvalidSnapshot\.NotFound"):
            call()
    with pytest.raises(ClientError, match="does not exist"):
        start(platform, "true", {"snapshotId": snapshot})
    with pytest.raises(ClientError, match=r"InvalidVolume\.NotFound"):
        ec2.create_snapshot(VolumeId="vol-00000000000000000")
