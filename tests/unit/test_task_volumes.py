"""Volumes from a task definition and a launch to what a host gets; and that no member of RegisterTaskDefinition is taken
without a word."""

from typing import Any

import pytest

from hutch.api.aws.ecs.taskdefs import REGISTER_COVERAGE
from hutch.api.coverage_page import rows
from hutch.api.gateway.coverage import UNDECLARED
from hutch.api.gateway.operation import Operation, Request
from hutch.api.gateway.service_model import load_model
from hutch.base.errors import Invalid
from hutch.control.taskspec import task_spec
from hutch.model.task import Container, ManagedVolume, Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules.taskdef.volumes import ManagedVolumeRequest, managed_volumes
from hutch.wire.taskspec import DeviceSpec, DiskSpec, FilesSpec, VolumesFromSpec, VolumeSpec

DOCUMENT: dict[str, Any] = {"volumes": [{"name": "plain"}, {"name": "disk", "configuredAtLaunch": True}]}
ROLE = "arn:aws:iam::000000000000:role/r"
TEXTS = {"driver": "hutch-files", "driverOpts": {"app.conf": "x=1"}}
KEYS = {
    "driver": "hutch-secret-files",
    "driverOpts": {"key": "/app/key"},
    "labels": {"hutch:mode": "0440", "hutch:uid": "7", "hutch:gid": "8", "other": "x"},
}


def given(name: str = "disk", **members: Any) -> list[dict[str, Any]]:
    return [{"name": name, "managedEBSVolume": {"roleArn": ROLE, "sizeInGiB": 5, **members}}]


def test_what_a_launch_says_of_a_volume() -> None:
    (found,) = managed_volumes(DOCUMENT, given())
    assert found == ManagedVolumeRequest(
        name="disk", size_gib=5, filesystem="xfs", role_arn=ROLE, delete_on_termination=True
    )
    (kept,) = managed_volumes(
        DOCUMENT, given(filesystemType="ext4", terminationPolicy={"deleteOnTermination": False})
    )
    assert (kept.filesystem, kept.delete_on_termination) == ("ext4", False)
    assert managed_volumes({}, []) == ()


@pytest.mark.parametrize(
    ("configurations", "words"),
    [
        ([], "name it in volumeConfigurations"),
        (given("other"), "The volume name 'other' in your request does not have a matching volume"),
        (given("plain"), "The volume name 'plain' in your request does not have a matching volume"),
        (given() * 2, "configured twice"),
        (given(sizeInGiB=0), "sizeInGiB of volume disk must be between 1 and 16384"),
        (given(sizeInGiB=16385), "sizeInGiB"),
        ([{"name": "disk"}], "sizeInGiB"),
        (given(filesystemType="ntfs"), "must be one of ext3, ext4, xfs"),
        (given(volumeType="fast"), "volumeType"),
        (given(encrypted=True), "hutch has no KMS"),
    ],
)
def test_what_is_wrong_with_a_launch(configurations: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        managed_volumes(DOCUMENT, configurations)


def test_a_host_is_told_all_of_it() -> None:
    document = {
        "volumes": [
            {"name": "plain"},
            {"name": "kept", "dockerVolumeConfiguration": {"scope": "shared", "autoprovision": True}},
            {"name": "task", "dockerVolumeConfiguration": {"scope": "task"}},
            {"name": "files", "dockerVolumeConfiguration": TEXTS},
            {"name": "keys", "dockerVolumeConfiguration": KEYS},
            {"name": "disk", "configuredAtLaunch": True},
        ],
        "containerDefinitions": [
            {
                "name": "a",
                "image": "i",
                "interactive": True,
                "disableNetworking": True,
                "dockerSecurityOptions": ["no-new-privileges"],
                "volumesFrom": [{"sourceContainer": "b", "readOnly": True}],
                "linuxParameters": {"devices": [{"hostPath": "/dev/fuse", "permissions": ["read", "write"]}]},
            }
        ],
    }
    task = Task(
        task_id="t", cluster="c", family="f", revision=1, launch_type="FARGATE", cpu=256, memory_mib=512, created_at=0,
        containers=(Container(name="a", container_id="1", image="i"),),
        volumes=(ManagedVolume(attachment_id="x", volume_id="vol-1", name="disk", size_gib=5, filesystem="xfs",
                               delete_on_termination=False),),
    )  # fmt: skip
    definition = TaskDefinition(family="f", revision=1, registered_at=0, registered_by="", document=document)
    spec = task_spec(task, definition, None, region="us-east-1", account_id="000000000000")
    assert spec.volumes == (
        VolumeSpec(name="plain"),
        VolumeSpec(name="kept", shared_name="kept"),
        VolumeSpec(name="task"),
        VolumeSpec(name="files", files=FilesSpec(texts={"app.conf": "x=1"}, mode=0o444)),
        VolumeSpec(name="keys", files=FilesSpec(secret_names=("key",), mode=0o440, uid=7, gid=8)),
        VolumeSpec(name="disk", disk=DiskSpec(disk_id="vol-1", size_gib=5, filesystem="xfs", keep=True)),
    )
    container = spec.containers[0]
    assert container.interactive and container.disable_network and container.no_new_privileges
    assert container.volumes_from == (VolumesFromSpec(container="b", read_only=True),)
    assert container.devices == (DeviceSpec(host_path="/dev/fuse", container_path="/dev/fuse", access="rw"),)


INERT = {
    "containerDefinitions.portMappings.appProtocol",
    "containerDefinitions.versionConsistency",
    "volumes.dockerVolumeConfiguration.labels",
    "volumes.efsVolumeConfiguration.transitEncryption",
    "volumes.efsVolumeConfiguration.transitEncryptionPort",
    "volumes.efsVolumeConfiguration.authorizationConfig.iam",
    "enableFaultInjection",
}


def test_every_member_of_a_task_definition_is_spoken_for() -> None:
    async def nothing(request: Request) -> dict[str, Any]:
        return {}

    operation = Operation(name="RegisterTaskDefinition", handler=nothing, coverage=REGISTER_COVERAGE)
    found = rows(operation, load_model("ecs"))
    assert [r.path for r in found if r.reason == UNDECLARED] == [], (
        "enforced, inert with a reason, or refused with one"
    )
    assert {r.path for r in found if r.state == "accepted, no effect"} == INERT
