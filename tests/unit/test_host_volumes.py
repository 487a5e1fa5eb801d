"""Volumes of a host: who has them, and that nobody's is removed."""

import pytest

from hutch.host.agent.volumes import HostVolumes
from hutch.host.drivers.contract import Capabilities, HostFault, HostVolume
from hutch.wire.taskspec import DiskSpec, TaskSpec, VolumeSpec


class Keeper:
    """A driver that keeps two volumes."""

    name = "vm"
    capabilities = Capabilities(
        launch_types=("FARGATE",), root_format="erofs", network="tap", owns_kernel=True
    )

    def __init__(self) -> None:
        self.kept = [HostVolume(kind="shared", name="data", bytes=5), HostVolume(kind="disk", name="vol-1")]

    async def volumes(self) -> tuple[HostVolume, ...]:
        return tuple(self.kept)

    async def remove_volume(self, name: str) -> None:
        self.kept = [v for v in self.kept if v.name != name]


def task(task_id: str, launch_type: str, *volumes: VolumeSpec) -> TaskSpec:
    return TaskSpec(
        task_id=task_id, cluster="c", arn="a", family="f", revision=1, launch_type=launch_type, cpu_units=256,
        memory_mib=256, ephemeral_gib=1, network_mode="awsvpc", containers=(), volumes=volumes,
    )  # fmt: skip


async def test_a_volume_that_a_task_has_stays() -> None:
    keeper = Keeper()
    specs = [
        task("1", "FARGATE", VolumeSpec(name="a", shared_name="data")),
        task("2", "EC2", VolumeSpec(name="a", disk=DiskSpec(disk_id="vol-1", size_gib=1))),
    ]
    volumes = HostVolumes((keeper,), lambda: specs)  # type: ignore[arg-type]
    found = {v["id"]: (v["used_by"], v.get("bytes")) for v in await volumes.told()}
    assert found == {"vm:data": (["1"], 5), "vm:vol-1": ([], None)}
    with pytest.raises(HostFault, match="used by task 1"):
        await volumes.remove("vm:data")
    await volumes.remove("vm:vol-1")
    specs.clear()
    await volumes.remove("vm:data")
    assert await volumes.told() == []


@pytest.mark.parametrize("volume_id", ["vm:none", "other:data", "data", ""])
async def test_a_volume_that_is_not_there(volume_id: str) -> None:
    with pytest.raises(HostFault, match="this host has no volume"):
        await HostVolumes((Keeper(),), list).remove(volume_id)  # type: ignore[arg-type]
