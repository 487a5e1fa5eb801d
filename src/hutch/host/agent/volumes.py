"""The volumes of this host that outlive their tasks: listed, and removed when nobody has them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from hutch.host.drivers.contract import Driver, HostFault, SupportsDiskSnapshots, SupportsVolumes
from hutch.wire.taskspec import TaskSpec


class HostVolumes:
    """What the drivers keep. `specs` gives the tasks that are on this host now."""

    def __init__(self, drivers: Sequence[Driver], specs: Callable[[], Iterable[TaskSpec]]) -> None:
        self._drivers = {d.name: d for d in drivers if isinstance(d, SupportsVolumes)}
        self._specs = specs

    async def told(self) -> list[dict[str, Any]]:
        """All of them: `id` (driver:name), `driver`, `kind`, `name`, `bytes`, and the tasks that `used_by` names."""
        found = []
        for driver_name, driver in self._drivers.items():
            for volume in await driver.volumes():
                users = self._users(driver_name, volume.name)
                shape = {"id": f"{driver_name}:{volume.name}", "driver": driver_name, "used_by": users}
                found.append(shape | msgspec.to_builtins(volume))
        return sorted(found, key=lambda v: str(v["id"]))

    async def remove(self, volume_id: str) -> None:
        """Remove one with all that is in it. Raises `HostFault` if there is none, or a task has it."""
        driver_name, _, name = volume_id.partition(":")
        driver = self._drivers.get(driver_name)
        if driver is None or name not in {v.name for v in await driver.volumes()}:
            raise HostFault(
                "NotFound", f"this host has no volume {volume_id[:300]}", fix="hutch volume ls lists them"
            )
        if users := self._users(driver_name, name):
            raise HostFault("VolumeInUse", f"volume {name} is used by task {users[0]}", fix="stop it first")
        await driver.remove_volume(name)

    async def make_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """Copy a disk. Raises `HostFault` if no driver has it, or a task does."""
        for driver in self._drivers.values():
            if isinstance(driver, SupportsDiskSnapshots) and volume_id in {
                v.name for v in await driver.volumes()
            }:
                await driver.make_disk_snapshot(volume_id, snapshot_id)
                return
        raise HostFault("NotFound", f"this host has no disk of volume {volume_id[:60]} that can be copied")

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """Remove a copy; no error if there is none."""
        for driver in self._drivers.values():
            if isinstance(driver, SupportsDiskSnapshots):
                await driver.remove_disk_snapshot(snapshot_id)

    def _users(self, driver_name: str, name: str) -> list[str]:
        launch_types = self._drivers[driver_name].capabilities.launch_types
        return sorted(
            spec.task_id
            for spec in self._specs()
            if spec.launch_type in launch_types
            and any(name in (v.shared_name, v.disk.disk_id if v.disk else "") for v in spec.volumes)
        )
