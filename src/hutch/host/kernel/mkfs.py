"""File systems of volumes: journalled, since they outlive a VM that is killed."""

from pathlib import Path

from hutch.host.kernel.run import run

FILESYSTEMS = ("ext3", "ext4", "xfs")
MKFS_TIMEOUT_S = 120.0
MOUNT_TIMEOUT_S = 30.0


async def make_filesystem(path: Path, kind: str) -> None:
    """Put an empty file system of a kind (one of `FILESYSTEMS`) into a file that is one hole. Raises `CommandFailed`."""
    # A new file reads as zeros, so nothing need be zeroed or discarded.
    if kind == "xfs":
        argv = ["mkfs.xfs", "-q", "-K", str(path)]
    else:
        extended = "lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard"
        argv = [f"mkfs.{kind}", "-q", "-F", "-m", "0", "-E", extended, str(path)]
    await run(argv, timeout_s=MKFS_TIMEOUT_S)


async def mount_image(image: Path, target: Path) -> None:
    """Mount the file system in a file, over a loop device that goes with the mount. Raises `CommandFailed`."""
    await run(["mount", "-o", "loop,nodev", str(image), str(target)], timeout_s=MOUNT_TIMEOUT_S)
