"""Jails: a program that a hostile guest may have taken over starts, and stays, in a place where it can do nothing.

See docs/design/jail.md. Bubblewrap makes namespaces and root, and puts the system call filter in place; then `setpriv`, in
the jail, becomes the user and executes the program.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hutch.base.errors import HutchError
from hutch.host.kernel.bubblewrap import NotMade, held_child
from hutch.host.kernel.cgroup import (
    CgroupError,
    CgroupLimits,
    Cgroups,
    platform_cgroup,
    task_cgroup,
    write_text,
)
from hutch.host.kernel.jail_root import NSENTER, SETPRIV, JailRoot
from hutch.host.kernel.mounts import mount_own_proc
from hutch.host.kernel.process import ProcessRef, limit_process, reap_child
from hutch.host.kernel.run import CommandFailed
from hutch.host.kernel.syscall_filter import monitor_filter
from hutch.host.kernel.user_namespace import user_namespace
from hutch.host.kernel.users import UserLeases

OPEN_FILES = 256
_HELPER_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
"""What `setpriv` needs, and gives up."""
_INNER_CAPABILITIES = (
    "chown", "dac_override", "fowner", "fsetid", "setgid", "setuid", "mknod", "setfcap", "sys_chroot", "setpcap",
)  # fmt: skip
_INNER_CALLS = ("chroot", "setns", "unshare")
"""To enter the namespace, and what a server of files does to keep its threads apart."""


class JailFailed(HutchError):
    """A program could not be started in its jail; nothing of it is left running."""


class JailBind(msgspec.Struct, frozen=True, kw_only=True):
    """A file or directory of the host that the program sees at `place` in its root, where there must be a placeholder.
    What is writable becomes the jail's user's own, unless that has a range of ids (`inner_ids`)."""

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
    inner_ids: tuple[int, int] | None = None
    """(first, count): it is root of a user namespace of its own, where 0 and those that follow are these ids of the host.
    Only there has it any rights; its root must have `NSENTER`. None: it is nobody, with a user id for itself."""
    open_files: int = OPEN_FILES
    early: bool = False
    """It may begin while it is still being put into its control group, which saves about 10 ms. Only for a program that
    does nothing for strangers before the caller, who waits for `start`, tells it to."""


class Jailer:
    """Starts programs in jails, and removes what is left of them. Blocking verbs belong into a thread."""

    def __init__(self, *, platform_id: str, users: UserLeases, cgroups: Cgroups) -> None:
        self._platform_id = platform_id
        self._users = users
        self._cgroups = cgroups
        self._children: dict[str, ProcessRef] = {}

    def start(self, spec: JailSpec) -> ProcessRef:
        """Start a program: its jail is closed, and it is about to be executed in there. About 10 ms. If that fails it ends
        with exit code 127, and says why in its output. Raises `JailFailed`.

        It is our child, to be reaped through its pidfd (`wait_gone`). `remove` must follow, also after a failure.
        """
        try:
            user_id = spec.inner_ids[0] if spec.inner_ids else self._users.lease(spec.name)
            for bind in spec.binds:
                if bind.writable and spec.inner_ids is None:
                    os.chown(bind.source, user_id, user_id, follow_symlinks=False)
            group_files = self._cgroups.make(self._cgroup(spec.name), spec.limits)
            self._children[spec.name] = _launch(spec, user_id, group_files)
            return self._children[spec.name]
        except NotMade as error:
            raise JailFailed(f"the jail of {spec.name} can't be made: {error.message}") from None
        except (OSError, ValueError, CommandFailed, CgroupError) as error:
            raise JailFailed(str(error)) from None

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

    def processes(self, name: str) -> frozenset[int]:
        """Pids in a jail."""
        return self._cgroups.processes(self._cgroup(name))

    def cpu_ns(self, name: str) -> int | None:
        """CPU time used in a jail; None if there is none of that name."""
        return self._cgroups.cpu_ns(self._cgroup(name))

    def cap_cpu(self, name: str, cap_units: int) -> None:
        """Never more CPU than this for what runs in a jail. Raises `CgroupError`."""
        self._cgroups.cap_cpu(self._cgroup(name), cap_units)

    def close(self) -> None:
        """Remove the platform's own control group, if no jail is left in it."""
        self._cgroups.remove_if_empty(platform_cgroup(self._platform_id))

    def _cgroup(self, name: str) -> str:
        return task_cgroup(self._platform_id, name.removeprefix(f"hutch-{self._platform_id}-"))


def _launch(spec: JailSpec, user_id: int, group_files: Sequence[str]) -> ProcessRef:
    """Joining control groups waits for the kernel's RCU, whoever does it: the root is made meanwhile, and with `early` the
    program starts meanwhile."""
    system_call_filter = monitor_filter(os.uname().machine, _INNER_CALLS if spec.inner_ids else ())
    with contextlib.ExitStack() as stack:
        pass_fds = list(spec.pass_fds)
        if spec.inner_ids is None:
            command = _command(spec, user_id)
        else:
            pass_fds.append(stack.enter_context(user_namespace(*spec.inner_ids)))
            command = _inner_command(spec, pass_fds[-1])
        child = stack.enter_context(
            held_child(_options(spec), command, output_path=spec.output_path, pass_fds=pass_fds)
        )
        if not spec.early:
            try:
                _join(group_files, child.pid)
            except CgroupError:
                child.adopt()  # which tells why, if it has ended by itself
                raise
        ref = child.adopt()
        limit_process(ref.pid, _resource_limits(spec))
        if spec.inner_ids is None:
            mount_own_proc(ref.pid)
        child.release(system_call_filter)
        if spec.early:
            _join(group_files, ref.pid)
    return ref


def _join(group_files: Sequence[str], pid: int) -> None:
    for file in group_files:
        write_text(Path(file), str(pid))


def _options(spec: JailSpec) -> list[str]:
    """Bubblewrap's: namespaces, root, and what is bound into it. /proc comes later: bubblewrap's own tells too much."""
    kinds = ("pid", "ipc", "uts", "cgroup", *(() if spec.host_network else ("net",)))
    options = [*(f"--unshare-{kind}" for kind in kinds), "--as-pid-1", "--new-session"]
    options += ["--hostname", "jail", "--clearenv", "--ro-bind", str(spec.root.directory), "/"]
    if spec.inner_ids is not None:
        # Of its PID namespace, since others may have its user; whole, since virtiofsd gives up if it can't read how many
        # files the host can have open. Bubblewrap makes what could be written to read-only.
        options += ["--proc", "/proc"]
    for device in spec.devices:
        options += ["--dev-bind", device, device]
    for bind in spec.binds:
        options += ["--bind" if bind.writable else "--ro-bind", bind.source, bind.place]
    options += ["--cap-drop", "ALL"]
    for capability in _HELPER_CAPABILITIES:
        options += ["--cap-add", capability]
    return options


def _command(spec: JailSpec, user_id: int) -> list[str]:
    groups = ",".join(_device_groups(spec.devices))
    return [
        SETPRIV,
        f"--reuid={user_id}",
        f"--regid={user_id}",
        f"--groups={groups}" if groups else "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs",
        spec.root.program,
        *spec.arguments,
    ]


def _inner_command(spec: JailSpec, namespace_fd: int) -> list[str]:
    """Root of the user namespace, with what a file server needs to act for whoever asks it."""
    kept = ",".join(f"+{c}" for c in _INNER_CAPABILITIES)
    return [
        NSENTER,
        f"--user=/proc/self/fd/{namespace_fd}",
        "--",
        SETPRIV,
        f"--bounding-set=-all,{kept}",
        "--no-new-privs",
        spec.root.program,
        *spec.arguments,
    ]


def _resource_limits(spec: JailSpec) -> dict[str, int]:
    limits = {
        "core": 0,
        "fsize": spec.largest_file_bytes,
        "memlock": 0,
        "msgqueue": 0,
        "nofile": spec.open_files,
    }
    if spec.inner_ids is not None:
        # Its user is that of others as well.
        return limits
    # As many processes (threads) as the control group allows: a second lock on the same door.
    return limits | ({"nproc": spec.limits.pids} if spec.limits.pids else {})


def _device_groups(devices: Sequence[str]) -> list[str]:
    """The groups that may use devices which others may not (`kvm`), root's never."""
    statuses = [os.stat(d) for d in devices]
    return [str(s.st_gid) for s in statuses if s.st_gid and s.st_mode & 0o006 != 0o006]
