"""Who serves a host's directory to a VM: virtiofsd, one for each directory of each VM, in a jail and a user namespace.

In there it is root, and may give files to any user of the guest; on the host it is nobody, and sees its file system only.
It ends with its VM, whose QEMU holds the other end of the connection.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from hutch.base.errors import HutchError
from hutch.base.threads import in_thread
from hutch.base.units import MIB
from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.file_trees import FIRST_ID, ID_COUNT, FileTrees
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.vm import SERVER_LOG, VmFiles, server_name
from hutch.host.kernel.cgroup import CgroupLimits
from hutch.host.kernel.jail import JailBind, JailSpec
from hutch.host.kernel.jail_root import NSENTER, JailRoot, RootUnavailable, prepare_root
from hutch.host.kernel.process import is_alive
from hutch.host.kernel.run import CommandFailed
from hutch.wire.taskspec import FileSystemSpec

PROGRAMS = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
"""Where Debian has it: of QEMU 7, and by itself."""
SHARE = "/share"
SERVER_MEMORY_MIB = 64
SERVER_PIDS = 64
SERVER_CPU_UNITS = 256
OPEN_FILES = 65_536
"""Each file that the guest's kernel remembers is open."""
LARGEST_FILE_BYTES = 1 << 44


class FileServers:
    """Starts what serves a VM's file systems."""

    def __init__(self, state_dir: Path, trees: FileTrees, jail: MonitorJail) -> None:
        self._place = state_dir / "jail-fs"
        self._trees = trees
        self._jail = jail
        self._root: JailRoot | None = None
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def serving(
        self, wanted: Sequence[FileSystemSpec], vm: str, files: VmFiles, vm_memory_mib: int
    ) -> AsyncIterator[tuple[int, ...]]:
        """A server for each, as connections that a QEMU is to inherit meanwhile; ours are closed at the end. Servers are
        removed with their VM (`remove_vm`), also if this fails. Raises `DriverError`."""
        first, last = self._jail.user_ids
        if first < FIRST_ID + ID_COUNT and last >= FIRST_ID:
            raise DriverError(
                "FileServerMissing",
                f"user ids from {FIRST_ID} to {FIRST_ID + ID_COUNT - 1} are those of files in file systems, and "
                f"--vm-user-ids has some of them",
                fix="give --vm-user-ids another range",
            )
        root = await self._server_root()
        with contextlib.ExitStack() as stack:
            fds = []
            for index, each in enumerate(wanted):
                tree = await asyncio.to_thread(self._trees.ready, each)
                log = files.vm / f"{SERVER_LOG}{index}.log"
                serve = in_thread(self._serve, root, each, tree, vm, log, vm_memory_mib)
                connection = stack.enter_context(await serve)
                fds.append(connection.fileno())
            yield tuple(fds)

    async def _server_root(self) -> JailRoot:
        async with self._lock:
            if self._root is None:
                program = next((p for p in PROGRAMS if os.access(p, os.X_OK)), PROGRAMS[0])
                try:
                    self._root = await prepare_root(
                        self._place, program, extra=[Path(NSENTER)], devices=(), directories=(SHARE,)
                    )
                except (RootUnavailable, CommandFailed) as error:
                    raise DriverError(
                        "FileServerMissing",
                        f"file systems can't be served: {error.message}",
                        fix="install qemu-system-common (or virtiofsd) and util-linux on the host",
                        aws_prefix="ResourceInitializationError",
                    ) from None
            return self._root

    def _serve(
        self, root: JailRoot, wanted: FileSystemSpec, tree: Path, vm: str, log: Path, vm_memory_mib: int
    ) -> socket.socket:
        """Start one; its connection. Blocks."""
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # It is removed by its log, so that comes first.
        log.touch(mode=0o600)
        path = log.with_suffix(".sock")
        with socket.socket(socket.AF_UNIX) as listening:
            path.unlink(missing_ok=True)
            listening.bind(str(path))
            listening.listen(1)
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                self._start(
                    root, wanted, tree, server_name(vm, log.name), log, listening.fileno(), vm_memory_mib
                )
            except BaseException:
                connection.close()
                raise
            finally:
                path.unlink(missing_ok=True)
        return connection

    def _start(
        self,
        root: JailRoot,
        wanted: FileSystemSpec,
        tree: Path,
        name: str,
        log: Path,
        listening_fd: int,
        vm_memory_mib: int,
    ) -> None:
        inside = SHARE + wanted.root.rstrip("/")
        options = (
            f"source={inside}",
            "sandbox=chroot",
            "cache=auto",
            "posix_lock",
            "flock",
            "xattr",
            "announce_submounts",
        )
        spec = JailSpec(
            name=name,
            arguments=[
                f"--fd={listening_fd}",
                "-f",
                "--rlimit-nofile=0",
                *(w for o in options for w in ("-o", o)),
            ],
            pass_fds=(listening_fd,),
            output_path=str(log),
            root=root,
            binds=(JailBind(source=str(tree), place=SHARE, writable=True),),
            limits=CgroupLimits(
                cpu_units=SERVER_CPU_UNITS,
                # Pages of the guest that it is the first to touch are counted here.
                memory_bytes=(vm_memory_mib + SERVER_MEMORY_MIB) * MIB,
                pids=SERVER_PIDS,
            ),
            largest_file_bytes=LARGEST_FILE_BYTES,
            inner_ids=(FIRST_ID, ID_COUNT),
            open_files=OPEN_FILES,
        )
        try:
            ref = self._jail.start_beside(spec)
        except HutchError as error:
            raise _not_served(wanted, error.message) from None
        if not is_alive(ref):
            raise _not_served(wanted, log.read_text(errors="replace")[-500:])


def _not_served(wanted: FileSystemSpec, reason: str) -> DriverError:
    return DriverError(
        "FileSystemNotServed",
        f"file system {wanted.file_system_id} can't be served to the VM: {reason}",
        fix="see `hutch doctor`",
        aws_prefix="ResourceInitializationError",
    )
