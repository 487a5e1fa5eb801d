"""Jails: a program that a hostile guest may have taken over starts, and stays, in a place where it can do nothing.

See docs/design/jail.md. The work is done by `hutch-jail`, a small program without a runtime, since a process with
threads may do next to nothing between fork and exec.
"""

import contextlib
import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hutch.base.errors import HutchError
from hutch.host.kernel.cgroup import CgroupError, CgroupLimits, Cgroups, platform_cgroup, task_cgroup
from hutch.host.kernel.jail_root import JailRoot
from hutch.host.kernel.process import ProcessRef, kill_child, process_ref, reap_child
from hutch.host.kernel.run import CommandFailed, spawn_daemon
from hutch.host.kernel.users import UserLeases

START_TIMEOUT_S = 20.0
OPEN_FILES = 256
_MAX_STATUS_BYTES = 4096


class JailFailed(HutchError):
    """A program could not be started in its jail; nothing of it is left running."""


class JailBind(msgspec.Struct, frozen=True, kw_only=True):
    """A file or directory of the host that the program sees at `place` in its root, where there must be a placeholder.
    What is writable becomes the jail's user's own."""

    source: str
    place: str
    writable: bool = False


class JailSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One program to be jailed."""

    name: str
    """Unique on the host, and an argument of the program: by it a crash's leftovers are found."""
    arguments: Sequence[str]
    """Without the program's own name."""
    pass_fds: Sequence[int]
    output_path: str
    """Its standard output and error are appended to this file."""
    root: JailRoot
    devices: Sequence[str] = ()
    binds: Sequence[JailBind] = ()
    host_network: bool = False
    """It stays in our network namespace, where it opens a tap by its name. Sockets but unix ones are refused to it."""
    limits: CgroupLimits
    largest_file_bytes: int
    """No file that it was given can grow beyond this."""
    early: bool = False
    """It may begin while it is still being put into its control group, which saves about 10 ms. Only for a program that
    does nothing for strangers before the caller, who waits for `start`, tells it to."""


def launcher_path() -> Path:
    """The program that makes jails: what `make setup` built in the source tree, else the installed one."""
    built = Path(__file__).resolve().parents[4] / "build" / "host" / "hutch-jail"
    return built if built.exists() else Path("/usr/lib/hutch/hutch-jail")


class Jailer:
    """Starts programs in jails, and removes what is left of them. Blocking verbs belong into a thread."""

    def __init__(self, *, platform_id: str, launcher: Path, users: UserLeases, cgroups: Cgroups) -> None:
        self._platform_id = platform_id
        self._launcher = launcher
        self._users = users
        self._cgroups = cgroups
        self._children: dict[str, ProcessRef] = {}

    def start(self, spec: JailSpec) -> ProcessRef:
        """Start a program; it is executed, in its jail, when this returns. About 10 ms. Raises `JailFailed`.

        It is our child, to be reaped through its pidfd (`wait_gone`). `remove` must follow, also after a failure.
        """
        try:
            user_id = self._users.lease(spec.name)
            for bind in spec.binds:
                if bind.writable:
                    os.chown(bind.source, user_id, user_id, follow_symlinks=False)
            group_files = self._cgroups.make(self._cgroup(spec.name), spec.limits)
            self._children[spec.name] = self._launch(spec, user_id, group_files)
            return self._children[spec.name]
        except (OSError, CommandFailed, CgroupError) as error:
            raise JailFailed(str(error)) from None

    def _launch(self, spec: JailSpec, user_id: int, group_files: Sequence[str]) -> ProcessRef:
        status_fd, told_fd = os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, status_fd)
            try:
                launcher = spawn_daemon(
                    [*self._launcher_argv(spec, user_id, group_files, told_fd), *spec.arguments],
                    output_path=spec.output_path,
                    pass_fds=(*spec.pass_fds, told_fd),
                    cwd="/",
                )
            finally:
                os.close(told_fd)
            try:
                told = _read_status(status_fd)
            finally:
                _reap(launcher)
        return _started(told, spec.name)

    def _launcher_argv(
        self, spec: JailSpec, user_id: int, group_files: Sequence[str], told_fd: int
    ) -> list[str]:
        # As many processes (threads) as the control group allows: a second lock on the same door.
        limits = {
            "core": 0,
            "fsize": spec.largest_file_bytes,
            "memlock": 0,
            "msgqueue": 0,
            "nofile": OPEN_FILES,
            **({"nproc": spec.limits.pids} if spec.limits.pids else {}),
        }
        argv = [str(self._launcher), "--name", spec.name, "--status-fd", str(told_fd)]
        argv += ["--root", str(spec.root.directory), "--user", str(user_id)]
        argv += ["--early"] if spec.early else []
        argv += ["--host-network"] if spec.host_network else []
        for option, values in (
            ("--group", _device_groups(spec.devices)),
            ("--cgroup", group_files),
            ("--device", spec.devices),
            ("--bind", [f"{b.source}:{b.place}:{'rw' if b.writable else 'ro'}" for b in spec.binds]),
            ("--limit", [f"{name}={value}" for name, value in limits.items()]),
        ):
            argv += [word for value in values for word in (option, value)]
        return [*argv, "--", spec.root.program]

    async def remove(self, name: str) -> None:
        """Kill all that runs in the jail of that name, and leave nothing of it on the host. Idempotent.

        Raises `CgroupError`.
        """
        await self._cgroups.remove(self._cgroup(name))
        if (child := self._children.pop(name, None)) is not None:
            # Whoever watched it may have stopped a moment before it ended.
            reap_child(child)
        self._users.release(name)

    def are_there_any(self) -> bool:
        """Whether a program runs in a jail of this platform."""
        return bool(self._cgroups.processes(platform_cgroup(self._platform_id)))

    def cpu_ns(self, name: str) -> int | None:
        """CPU time used in a jail; None if there is none of that name."""
        return self._cgroups.cpu_ns(self._cgroup(name))

    def close(self) -> None:
        """Remove the platform's own control group, if no jail is left in it."""
        self._cgroups.remove_if_empty(platform_cgroup(self._platform_id))

    def _cgroup(self, name: str) -> str:
        return task_cgroup(self._platform_id, name.removeprefix(f"hutch-{self._platform_id}-"))


def _device_groups(devices: Sequence[str]) -> list[str]:
    """The groups that may use devices which others may not (`kvm`), root's never."""
    statuses = [os.stat(d) for d in devices]
    return [str(s.st_gid) for s in statuses if s.st_gid and s.st_mode & 0o006 != 0o006]


def _read_status(fd: int) -> str:
    """All that the launcher and its child said, until the program was executed or the time was up."""
    told = b""
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    while len(told) < _MAX_STATUS_BYTES:
        if not ready.poll(START_TIMEOUT_S * 1000):
            return told.decode("utf-8", "replace") + f"error nothing happened for {START_TIMEOUT_S:g} s\n"
        data = os.read(fd, _MAX_STATUS_BYTES)
        if not data:
            break
        told += data
    return told.decode("utf-8", "replace")


def _reap(launcher: "subprocess.Popen[bytes]") -> None:
    """The launcher ends by itself, at once; if it hangs it is ended."""
    try:
        launcher.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()


def _started(told: str, name: str) -> ProcessRef:
    words = dict(line.partition(" ")[::2] for line in told.splitlines())
    pid = int(words.get("pid", 0))
    if "error" in words or not pid:
        if pid:
            kill_child(pid)
        reason = words.get("error", "its launcher ended without a word")
        raise JailFailed(f"the jail of {name} can't be made: {reason}")
    ref = process_ref(pid)
    if ref is None:
        kill_child(pid)
        raise JailFailed(f"the program in the jail of {name} ended at once")
    return ref
