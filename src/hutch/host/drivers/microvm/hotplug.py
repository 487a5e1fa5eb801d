"""Disks of a VM that runs: the devices are there from the start, what is behind them is exchanged."""

from hutch.host.drivers.microvm.qemu import disk_node
from hutch.host.drivers.microvm.qmp import Qmp


async def replace_disk(qmp: Qmp, index: int, fd: int, *, read_only: bool) -> None:
    """Put an open file behind a disk. Raises `QmpError`."""
    await qmp.execute("add-fd", pass_fd=fd, fdset_id=index + 1)
    backing = f"file{index}"
    await qmp.execute(
        "blockdev-add",
        driver="file",
        node_name=backing,
        filename=f"/dev/fdset/{index + 1}",
        locking="off",
        read_only=read_only,
        discard="unmap",
    )
    await qmp.execute("blockdev-reopen", options=[disk_node(index, read_only=read_only) | {"file": backing}])
