"""Writable disks: sparse files with an ext4 file system in them."""

import os
from pathlib import Path

from hutch.host.kernel.run import run

MKFS_TIMEOUT_S = 60.0


def make_sparse(path: Path, size_bytes: int) -> None:
    """Make a new file (mode 0600) that is one hole. Raises `OSError`."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)


async def format_ext4(path: Path) -> None:
    """Put an empty ext4 into a file that `make_sparse` made; it may be open elsewhere. No journal: the
    disk lives no longer than its VM. Raises `CommandFailed`."""
    # A new file reads as zeros, so the inode tables need not be written, neither now nor by the guest.
    extended = "lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard"
    argv = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", extended, str(path)]
    await run(argv, timeout_s=MKFS_TIMEOUT_S)
