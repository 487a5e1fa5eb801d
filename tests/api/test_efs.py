"""EFS over HTTP, by boto3: file systems, access points, mount targets, and what a task definition says of them."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.api.support.aws import AwsServer


@pytest.fixture(scope="module")
def efs(aws: AwsServer) -> Any:
    return aws.client("efs")


@pytest.fixture
def file_system(efs: Any) -> str:
    made: str = efs.create_file_system(CreationToken=uuid.uuid4().hex)["FileSystemId"]
    return made


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as refused:
        call()
    code: str = refused.value.response["Error"]["Code"]
    return code


def test_a_file_system(efs: Any, aws: AwsServer) -> None:
    token = uuid.uuid4().hex
    made = efs.create_file_system(CreationToken=token, Tags=[{"Key": "Name", "Value": "data"}])
    fs = made["FileSystemId"]
    assert fs.startswith("fs-") and made["LifeCycleState"] == "available" and made["Name"] == "data"
    assert refusal(lambda: efs.create_file_system(CreationToken=token)) == "FileSystemAlreadyExists"
    (shown,) = efs.describe_file_systems(CreationToken=token)["FileSystems"]
    assert shown["FileSystemId"] == fs and shown["SizeInBytes"]["Value"] == 4096
    assert efs.describe_file_systems(FileSystemId=made["FileSystemArn"])["FileSystems"] == [shown]
    assert efs.describe_lifecycle_configuration(FileSystemId=fs)["LifecyclePolicies"] == []
    efs.tag_resource(ResourceId=fs, Tags=[{"Key": "team", "Value": "a"}])
    efs.untag_resource(ResourceId=made["FileSystemArn"], TagKeys=["Name"])
    assert efs.list_tags_for_resource(ResourceId=fs)["Tags"] == [{"Key": "team", "Value": "a"}]
    efs.delete_file_system(FileSystemId=fs)
    assert aws.file_hosts.asked[-1] == ("filesystem.remove", {"id": fs})
    assert refusal(lambda: efs.describe_file_systems(FileSystemId=fs)) == "FileSystemNotFound"
    assert refusal(lambda: efs.delete_file_system(FileSystemId=fs)) == "FileSystemNotFound"


def test_pages(efs: Any) -> None:
    made = {efs.create_file_system(CreationToken=uuid.uuid4().hex)["FileSystemId"] for _ in range(3)}
    pages = efs.get_paginator("describe_file_systems").paginate(PaginationConfig={"PageSize": 2})
    assert made <= {f["FileSystemId"] for p in pages for f in p["FileSystems"]}


def test_access_points(efs: Any, file_system: str) -> None:
    root = {"Path": "/app/data", "CreationInfo": {"OwnerUid": 1000, "OwnerGid": 1001, "Permissions": "0750"}}
    made = efs.create_access_point(ClientToken="t", FileSystemId=file_system, RootDirectory=root)
    point = made["AccessPointId"]
    assert point.startswith("fsap-") and made["RootDirectory"] == root
    (shown,) = efs.describe_access_points(FileSystemId=file_system)["AccessPoints"]
    assert shown["AccessPointArn"] == made["AccessPointArn"]
    again = {"ClientToken": "t", "FileSystemId": file_system}
    assert refusal(lambda: efs.create_access_point(**again)) == "AccessPointAlreadyExists"
    other = {"ClientToken": "u", "FileSystemId": file_system}
    assert refusal(lambda: efs.create_access_point(**other, RootDirectory={"Path": "/../x"})) == "BadRequest"
    user = {"Uid": 1, "Gid": 1}
    assert refusal(lambda: efs.create_access_point(**other, PosixUser=user)) == "BadRequest"
    efs.delete_access_point(AccessPointId=point)
    assert refusal(lambda: efs.describe_access_points(AccessPointId=point)) == "AccessPointNotFound"


def test_mount_targets(efs: Any, aws: AwsServer, file_system: str) -> None:
    subnet = aws.client("ec2").describe_subnets()["Subnets"][0]
    wanted = {"FileSystemId": file_system, "SubnetId": subnet["SubnetId"]}
    made = efs.create_mount_target(**wanted)
    assert made["AvailabilityZoneName"] == subnet["AvailabilityZone"]
    assert refusal(lambda: efs.create_mount_target(**wanted)) == "MountTargetConflict"
    missing = {**wanted, "SubnetId": "subnet-12345678"}
    assert refusal(lambda: efs.create_mount_target(**missing)) == "SubnetNotFound"
    shown = efs.describe_mount_targets(FileSystemId=file_system)["MountTargets"]
    assert [t["MountTargetId"] for t in shown] == [made["MountTargetId"]]
    assert refusal(lambda: efs.delete_file_system(FileSystemId=file_system)) == "FileSystemInUse"
    target = made["MountTargetId"]
    assert efs.describe_mount_target_security_groups(MountTargetId=target)["SecurityGroups"] == []
    efs.delete_mount_target(MountTargetId=target)
    efs.delete_file_system(FileSystemId=file_system)


def test_what_is_refused(efs: Any) -> None:
    for member in (
        {"Encrypted": True},
        {"Backup": True},
        {"KmsKeyId": "k"},
        {"AvailabilityZoneName": "us-east-1a"},
    ):
        assert (
            refusal(lambda m=member: efs.create_file_system(CreationToken=uuid.uuid4().hex, **m))
            == "BadRequest"
        )
    efs.create_file_system(CreationToken=uuid.uuid4().hex, Encrypted=False)


FS, POINT = "fs-0123456789abcdef0", "fsap-0123456789abcdef0"


def register(aws: AwsServer, volume: dict[str, Any], **more: Any) -> dict[str, Any]:
    definition: dict[str, Any] = aws.client("ecs").register_task_definition(
        family=f"efs-{uuid.uuid4().hex[:6]}",
        containerDefinitions=[
            {"name": "a", "image": "x", "mountPoints": [{"sourceVolume": "v", "containerPath": "/v"}]}
        ],
        volumes=[{"name": "v", "efsVolumeConfiguration": volume}],
        networkMode="awsvpc",
        cpu="256",
        memory="512",
        **more,
    )["taskDefinition"]
    return definition


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        ({"fileSystemId": "nfs:/x"}, "fileSystemId"),
        ({"fileSystemId": FS, "rootDirectory": "a"}, "absolute path"),
        ({"fileSystemId": FS, "rootDirectory": "/../a"}, "absolute path"),
        (
            {"fileSystemId": FS, "authorizationConfig": {"iam": "ENABLED"}},
            "EFS IAM authorization requires TransitEncryption to be enabled",
        ),
        (
            {
                "fileSystemId": FS,
                "rootDirectory": "/a",
                "transitEncryption": "ENABLED",
                "authorizationConfig": {"accessPointId": POINT},
            },
            'When using an EFS access point, the root directory must either be set to "/" or be omitted',
        ),
    ],
)
def test_volumes_that_are_refused(aws: AwsServer, volume: dict[str, Any], words: str) -> None:
    with pytest.raises(ClientError) as refused:
        register(aws, volume)
    assert words in str(refused.value)


def test_a_task_definition_with_a_file_system(aws: AwsServer, efs: Any, file_system: str) -> None:
    volume = {
        "fileSystemId": file_system,
        "transitEncryption": "ENABLED",
        "authorizationConfig": {"accessPointId": POINT, "iam": "ENABLED"},
    }
    definition = register(aws, volume, requiresCompatibilities=["FARGATE"])
    assert definition["volumes"][0]["efsVolumeConfiguration"] == volume
    assert "ecs.capability.efs" in {a["name"] for a in definition["requiresAttributes"]}
    ecs = aws.client("ecs")
    ecs.create_cluster(clusterName="efs")
    run = {"cluster": "efs", "taskDefinition": definition["taskDefinitionArn"]}
    with pytest.raises(ClientError, match="use launch type FARGATE"):
        ecs.run_task(**run, launchType="EC2")
    task = ecs.run_task(**run, launchType="FARGATE")["tasks"][0]
    assert refusal(lambda: efs.delete_file_system(FileSystemId=file_system)) == "FileSystemInUse"
    ecs.stop_task(cluster="efs", task=task["taskArn"])
