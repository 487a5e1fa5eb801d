"""File systems that tasks share: a directory of this host for each, and safe steps in what hostile guests have filled it with.

`<directory>/<file system id>`: its content, owned by ids of the host that are 0 and on in the guests (`FIRST_ID`).
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from hutch.host.drivers.contract import DriverError
from hutch.wire.taskspec import FileSystemSpec

FIRST_ID = 1_895_825_408
"""The host's id of the guests' root. It follows the range that VM monitors run as, and no user of the host has it."""
ID_COUNT = 65_536
MAX_COUNTED = 100_000
_GONE = ".gone-"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileTrees:
    """The file systems of this host. All verbs block."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made when it is needed."""
        self._directory = directory

    def ready(self, wanted: FileSystemSpec) -> Path:
        """The directory of a file system, made if it is new, with the wanted root in it. Raises `DriverError`."""
        tree = self._directory / wanted.file_system_id
        try:
            self._make(tree)
            with contextlib.ExitStack() as stack:
                _walk(tree, wanted, stack)
        except OSError as error:
            kind, why = "FileSystemNotMounted", error.strerror or str(error)
            fix = f"look at {tree}"
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                kind, why = "FileSystemRootMissing", "No such file or directory"
                fix = "make the directory with a task that mounts what is above it, or use an access point, which makes it"
            raise DriverError(
                kind,
                f"failed to invoke EFS utils commands to set up EFS volumes: stderr: mount.nfs4: mounting "
                f"{wanted.file_system_id}:{wanted.root} failed, reason given by server: {why}",
                fix=fix,
                aws_prefix="ResourceInitializationError",
                evidence={"file_system": wanted.file_system_id, "root": wanted.root},
            ) from None
        return tree

    def _make(self, tree: Path) -> None:
        """Whole or not there: a draft without its owner is never seen."""
        if tree.is_dir():
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._directory / f"{_GONE}{tree.name}-{os.getpid()}-new"
        draft.mkdir(mode=0o755)
        os.chown(draft, FIRST_ID, FIRST_ID)
        os.chmod(draft, 0o755)
        try:
            os.rename(draft, tree)
        except OSError:
            draft.rmdir()
            if not tree.is_dir():
                raise

    def remove(self, file_system_id: str) -> None:
        """Remove a file system with all that is in it; no error if there is none. Raises `OSError`."""
        tree = self._directory / file_system_id
        gone = self._directory / f"{_GONE}{file_system_id}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(tree, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def allocated_bytes(self, file_system_id: str) -> int:
        """What a file system takes on the disk; of one with more than `MAX_COUNTED` files a part of it."""
        total, left = 0, MAX_COUNTED
        waiting: list[str] = [str(self._directory / file_system_id)]
        while waiting and left > 0:
            # A guest may take away, or exchange for a link, what is looked at; a link's target is never followed.
            with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    left -= 1
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
        return total

    def clean(self) -> None:
        """Remove what was half made or half removed when an earlier agent was killed."""
        for leftover in self._directory.glob(f"{_GONE}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _walk(tree: Path, wanted: FileSystemSpec, stack: contextlib.ExitStack) -> None:
    """Go down to the wanted root without following a link, and make what an access point wants made. Raises `OSError`."""

    def opened(name: str | Path, parent: int | None) -> int:
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
        stack.callback(os.close, fd)
        return fd

    here = opened(tree, None)
    for name in (p for p in wanted.root.split("/") if p):
        try:
            here = opened(name, here)
        except FileNotFoundError:
            if wanted.owner is None:
                raise
            user, group, permissions = wanted.owner
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=here)
            here = opened(name, here)
            os.fchown(here, FIRST_ID + user, FIRST_ID + group)
            os.fchmod(here, permissions)
