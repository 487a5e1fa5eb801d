"""Copies of disks on the host, and what a launch makes of a snapshot that it names."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from hutch.base.errors import Invalid
from hutch.control.ops.disk_snapshots import filled_from_snapshots
from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.volume_disks import VolumeDisk, VolumeStore
from hutch.host.kernel.locks import lock_open_file
from hutch.model.disk import COMPLETED, DiskSnapshot
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.memory import MemoryStore

CAUSE = Cause(id="1", actor="test", action="test")


def test_a_copy_is_whole_and_its_disk_is_nobodys_meanwhile(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    image = tmp_path / "disks" / "vol-1.img"
    image.parent.mkdir()
    image.write_bytes(b"content" + bytes(1 << 20))
    held = os.open(image, os.O_RDWR)
    assert lock_open_file(held)
    with pytest.raises(DriverError) as refused:
        store.make_snapshot("vol-1", "snap-1")
    assert refused.value.kind == "VolumeInUse"
    os.close(held)
    store.make_snapshot("vol-1", "snap-1")
    image.write_bytes(b"changed")
    disk = VolumeDisk(
        volume="v", filesystem="ext4", size_bytes=1, name="disks/vol-2.img", snapshot_id="snap-1"
    )
    made = asyncio.run(store.make(disk, tmp_path / "own", "task"))
    assert made.read_bytes() == b"content" + bytes(1 << 20)
    assert {p.name for p in tmp_path.rglob("*.img")} == {"vol-1.img", "vol-2.img", "snap-1.img"}
    assert [v.name for v in store.kept()] == ["vol-1", "vol-2"], "a snapshot is no volume"
    store.remove_snapshot("snap-1")
    store.remove_snapshot("snap-1")
    other = VolumeDisk(
        volume="w", filesystem="ext4", size_bytes=1, name="disks/vol-3.img", snapshot_id="snap-1"
    )
    with pytest.raises(DriverError) as missing:
        asyncio.run(store.make(other, tmp_path / "own", "task"))
    assert missing.value.kind == "SnapshotNotFound"
    assert not list(tmp_path.rglob(".new-*"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"snapshotId": "snap-2"}, "does not exist"),
        ({"snapshotId": "snap-half"}, "is not completed"),
        ({"snapshotId": "snap-1", "sizeInGiB": 6}, "does not change the size"),
        ({"snapshotId": "snap-1", "filesystemType": "xfs"}, "which is ext4"),
    ],
)
def test_what_a_snapshot_does_not_fit(given: dict[str, Any], words: str) -> None:
    store = _store()
    with store.read() as reader, pytest.raises(Invalid, match=words):
        filled_from_snapshots(reader, [{"name": "v", "managedEBSVolume": given}])


def test_a_disk_has_the_size_and_file_system_of_its_snapshot() -> None:
    store = _store()
    plain = {"name": "w", "managedEBSVolume": {"sizeInGiB": 3}}
    with store.read() as reader:
        filled = filled_from_snapshots(
            reader, [{"name": "v", "managedEBSVolume": {"snapshotId": "snap-1"}}, plain]
        )
    wanted = {"snapshotId": "snap-1", "sizeInGiB": 5, "filesystemType": "ext4"}
    assert filled == ({"name": "v", "managedEBSVolume": wanted}, plain)


def _store() -> MemoryStore:
    store = MemoryStore()
    done = DiskSnapshot(
        snapshot_id="snap-1", volume_id="vol-1", host_id="i-1", size_gib=5, filesystem="ext4", state=COMPLETED, created_at=0
    )  # fmt: skip
    half = DiskSnapshot(
        snapshot_id="snap-half", volume_id="vol-1", host_id="i-1", size_gib=5, filesystem="ext4", created_at=0
    )

    async def fill() -> None:
        await store.open()
        for record in (done, half):
            await store.write(CAUSE, lambda tx, r=record: tx.put(tables.DISK_SNAPSHOTS, r))

    asyncio.run(fill())
    return store
