"""From a container's specification to an OCI runtime configuration (`config.json`). Pure; shared by the drivers.

Rules for entry point, command, environment and user are Docker's (its image specification, and `docker run`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hutch.base.units import MIB
from hutch.host.drivers.contract import DriverError, RootImage
from hutch.host.drivers.seccomp import seccomp_profile
from hutch.rules.logdrivers.firelens import SOCKET_DIRECTORY
from hutch.wire.taskspec import ContainerSpec, MountSpec

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_NOFILE = 65535
DEFAULT_PIDS = 32768

# Docker's default set.
DEFAULT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip
ALL_CAPABILITIES = (
    *DEFAULT_CAPABILITIES, "AUDIT_CONTROL", "AUDIT_READ", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH", "IPC_LOCK", "IPC_OWNER", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "NET_ADMIN",
    "NET_BROADCAST", "PERFMON", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE",
    "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
)  # fmt: skip
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_DEVICES = (
    ("c", 1, 3),
    ("c", 1, 5),
    ("c", 1, 7),
    ("c", 1, 8),
    ("c", 1, 9),
    ("c", 5, 0),
    ("c", 5, 2),
    ("c", 136, None),
)


_TMPFS_OPTIONS = frozenset((
    "defaults", "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "mand",
    "nomand", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime",
    "nostrictatime", "mode", "uid", "gid", "size", "nr_inodes", "nr_blocks", "mpol",
))  # fmt: skip


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """A device: "c" or "b", and its numbers."""

    kind: str
    major: int
    minor: int


INIT_PATH = "/sbin/docker-init"
"""Where a container that asked for an init finds it (Docker's own place)."""


class OciContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration needs besides the container itself."""

    cgroup_path: str
    hostname: str
    namespaces: tuple[dict[str, str], ...]
    """OCI namespace objects; those with a path are joined."""
    files: Mapping[str, str]
    """Container path to source path: /etc/hosts and the like, bind-mounted."""
    volumes: Mapping[str, str]
    """Volume name to source directory."""
    owns_kernel: bool
    mounts: Sequence[MountSpec] = ()
    """The volumes that the container sees."""
    init_program: str = ""
    """A static init, for containers that ask for one and do not share another's process namespace."""
    devices: Mapping[str, DeviceNode] = {}
    """The nodes of the devices that the container asks for, by their path on the host."""
    shm_source: str = ""
    """A directory in the place of a /dev/shm of its own; "none": no /dev/shm at all."""
    router_directory: str = ""
    """Where a log router makes its socket."""
    router_config: str = ""
    """The file with a log router's configuration; beside it, with ".include", what comes from an object."""
    hard_nofile: int = 1048576
    pids: int = DEFAULT_PIDS


def build_oci_config(container: ContainerSpec, image: RootImage, context: OciContext) -> dict[str, Any]:
    """A complete configuration but for `root.path`. Raises `DriverError` (no command, unknown user)."""
    return {
        "ociVersion": "1.0.2",
        "process": build_process(container, image, context),
        "root": {"path": "rootfs", "readonly": container.read_only_root},
        "hostname": context.hostname,
        "mounts": _mounts(container, context),
        "linux": {
            "cgroupsPath": context.cgroup_path,
            "namespaces": list(context.namespaces),
            "resources": _resources(container, context),
            "devices": _devices(container, context),
            "sysctl": dict(container.sysctls),
            "maskedPaths": [] if container.privileged else list(_MASKED),
            "readonlyPaths": [] if container.privileged else list(_READONLY),
            "rootfsPropagation": "rprivate",
            **_seccomp(container, context),
        },
    }


def _seccomp(container: ContainerSpec, context: OciContext) -> dict[str, Any]:
    """For containers on the shared kernel only: a VM's kernel is the container's own."""
    if context.owns_kernel or container.privileged:
        return {}
    return {"seccomp": seccomp_profile([c.removeprefix("CAP_") for c in _capabilities(container)])}


def build_process(container: ContainerSpec, image: RootImage, context: OciContext) -> dict[str, Any]:
    """The `process` object."""
    uid, gid, groups, home = resolve_user(
        container.user if container.user is not None else str(image.config.get("User") or ""), image
    )
    capabilities = _capabilities(container)
    effective = capabilities if uid == 0 else []
    return {
        "terminal": container.tty,
        "user": {"uid": uid, "gid": gid, "additionalGids": groups},
        "args": [*_init(context), *arguments(container, image)],
        "env": environment(container, image, home, context.hostname),
        "cwd": container.working_directory or image.config.get("WorkingDir") or "/",
        "capabilities": {
            "bounding": capabilities,
            "effective": effective,
            "permitted": effective,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": _rlimits(container, context.hard_nofile),
        "noNewPrivileges": container.no_new_privileges,
        "oomScoreAdj": 0,
    }


def build_further_process(container: ContainerSpec, image: RootImage, context: OciContext) -> dict[str, Any]:
    """The `process` object of a further process in the container: without terminal and init."""
    plain = msgspec.structs.replace(container, tty=False)
    return build_process(plain, image, msgspec.structs.replace(context, init_program=""))


def _init(context: OciContext) -> list[str]:
    return [INIT_PATH, "--"] if context.init_program else []


def arguments(container: ContainerSpec, image: RootImage) -> list[str]:
    """Docker's rule: a given entry point also drops the image's command."""
    entry = container.entry_point
    command = container.command
    if entry is None:
        entry = tuple(image.config.get("Entrypoint") or ())
        if command is None:
            command = tuple(image.config.get("Cmd") or ())
    result = [*entry, *(command or ())]
    if not result:
        raise DriverError(
            "NoCommand",
            f'neither the image "{image.reference}" nor the task definition says what to run in container '
            f'"{container.name}"',
            fix="set command or entryPoint in the container definition",
            aws_prefix="CannotStartContainerError",
        )
    return result


def environment(container: ContainerSpec, image: RootImage, home: str, hostname: str) -> list[str]:
    """The image's environment, then the container's; PATH, HOME and HOSTNAME if neither sets them."""
    values: dict[str, str] = {}
    for item in [DEFAULT_PATH, f"HOSTNAME={hostname}", *(image.config.get("Env") or ())]:
        name, _, value = str(item).partition("=")
        values[name] = value
    values.setdefault("HOME", home)
    values.update(container.environment)
    return [f"{k}={v}" for k, v in values.items()]


def resolve_user(user: str, image: RootImage) -> tuple[int, int, list[int], str]:
    """(uid, gid, additional gids, home) of `user[:group]`, names looked up in the image. Raises `DriverError`."""
    name, _, group = user.partition(":")
    passwd = [line.split(":") for line in image.passwd.splitlines() if line.count(":") >= 5]
    groups = [line.split(":") for line in image.group.splitlines() if line.count(":") >= 3]
    name = name or "0"
    entry = next((p for p in passwd if p[0] == name or (name.isdecimal() and p[2] == name)), None)
    if entry is None and not name.isdecimal():
        raise DriverError(
            "UserNotFound",
            f'the image "{image.reference}" has no user "{name}" in /etc/passwd',
            fix="use a user of the image, or a numeric uid",
            aws_prefix="CannotStartContainerError",
        )
    uid = int(entry[2]) if entry else int(name)
    gid = int(entry[3]) if entry else 0
    additional = [int(g[2]) for g in groups if entry and entry[0] in g[3].split(",") and g[2].isdecimal()]
    if group:
        found = next((g for g in groups if g[0] == group), None)
        if found is None and not group.isdecimal():
            raise DriverError(
                "UserNotFound",
                f'the image "{image.reference}" has no group "{group}" in /etc/group',
                fix="use a group of the image, or a numeric gid",
                aws_prefix="CannotStartContainerError",
            )
        gid, additional = (int(found[2]) if found else int(group)), []
    return uid, gid, additional, (entry[5] if entry and entry[5] else "/")


def _capabilities(container: ContainerSpec) -> list[str]:
    if container.privileged:
        return [f"CAP_{c}" for c in ALL_CAPABILITIES]
    add = {c.upper().removeprefix("CAP_") for c in container.capabilities_add}
    drop = {c.upper().removeprefix("CAP_") for c in container.capabilities_drop}
    kept = set() if "ALL" in drop else set(DEFAULT_CAPABILITIES) - drop
    kept |= set(ALL_CAPABILITIES) if "ALL" in add else add
    kept -= drop - {"ALL"}
    unknown = kept - set(ALL_CAPABILITIES)
    if unknown:
        raise DriverError(
            "UnknownCapability",
            f"the kernel has no capability {sorted(unknown)[0]}",
            fix="correct linuxParameters.capabilities",
            aws_prefix="CannotCreateContainerError",
        )
    return [f"CAP_{c}" for c in ALL_CAPABILITIES if c in kept]


def _rlimits(container: ContainerSpec, hard_nofile: int) -> list[dict[str, Any]]:
    """Never above the hard limit that this process has: not every host lets it be raised."""
    limits = {"nofile": (DEFAULT_NOFILE, DEFAULT_NOFILE), **container.ulimits}
    limits["nofile"] = (min(limits["nofile"][0], hard_nofile), min(limits["nofile"][1], hard_nofile))
    return [
        {"type": f"RLIMIT_{name.upper()}", "soft": _limit(soft), "hard": _limit(hard)}
        for name, (soft, hard) in limits.items()
    ]


def _limit(value: int) -> int:
    """-1 means no limit, which the runtime specification writes as the largest number."""
    return value if value >= 0 else 2**64 - 1


def _dev_mount(container: ContainerSpec, context: OciContext) -> dict[str, Any]:
    if container.privileged and context.owns_kernel:
        # All devices of the VM, which is the container's own: FUSE, loop devices, nested containers work.
        options = ["rbind", "rprivate", "nosuid"]
        return {"destination": "/dev", "type": "bind", "source": "/dev", "options": options}
    options = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    return {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": options}


def _mounts(container: ContainerSpec, context: OciContext) -> list[dict[str, Any]]:
    """In the order in which they are made: one may lie in another."""
    mounts = _system_mounts(container, context)
    for path, options in container.tmpfs.items():
        _check_tmpfs(container.name, path, options)
        options = ("nosuid", "nodev", *options)
        mounts.append({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": list(options)})
    if container.log_router is not None:
        mounts.append(_bind(context.router_directory, SOCKET_DIRECTORY, "rw"))
    for mount in context.mounts:
        access = "ro" if mount.read_only else "rw"
        mounts.append(_bind(context.volumes[mount.volume], mount.path, access, kind="rbind"))
    if context.init_program:
        mounts.append(_bind(context.init_program, INIT_PATH, "ro"))
    if container.log_router is not None:
        mounts.append(_bind(context.router_config, container.log_router.config_path, "ro"))
        if container.log_router.include_path:
            include = f"{context.router_config}.include"
            mounts.append(_bind(include, container.log_router.include_path, "ro"))
    mounts += [_bind(source, path, "rw") for path, source in context.files.items()]
    return mounts


def _system_mounts(container: ContainerSpec, context: OciContext) -> list[dict[str, Any]]:
    """What every Linux program expects to be there."""
    closed = ("nosuid", "noexec", "nodev")
    access = "rw" if container.privileged else "ro"
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": [*closed]},
        _dev_mount(container, context),
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": terminals},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*closed, access]},
        *_shm(container, context),
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": [*closed]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*closed, access]},
    ]


def _bind(source: str, destination: str, access: str, *, kind: str = "bind") -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": [kind, "rprivate", access],
    }


def _shm(container: ContainerSpec, context: OciContext) -> list[dict[str, Any]]:
    if context.shm_source == "none":
        return []
    flags = ["nosuid", "noexec", "nodev"]
    if context.shm_source:
        options = ["bind", "rprivate", *flags]
        return [{"destination": "/dev/shm", "type": "bind", "source": context.shm_source, "options": options}]
    options = [*flags, "mode=1777", f"size={container.shm_mib}m"]
    return [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options}]


def _devices(container: ContainerSpec, context: OciContext) -> list[dict[str, Any]]:
    """Nodes to be made. A privileged container of a VM has all of the VM's /dev already."""
    if container.privileged and context.owns_kernel:
        return []
    made = []
    for device in container.devices:
        node = context.devices[device.host_path]
        numbers = {"type": node.kind, "major": node.major, "minor": node.minor}
        made.append({"path": device.container_path, **numbers, "fileMode": 0o666, "uid": 0, "gid": 0})
    return made


def _check_tmpfs(name: str, path: str, options: Sequence[str]) -> None:
    """Nothing but what a tmpfs takes: "bind" among the options would mount something of the host."""
    for option in options:
        if option.partition("=")[0] not in _TMPFS_OPTIONS:
            raise DriverError(
                "InvalidTmpfs",
                f'container "{name}" wants {path} mounted with {option[:50]!r}, which is no option of a tmpfs',
                fix="correct linuxParameters.tmpfs",
                aws_prefix="CannotCreateContainerError",
            )


def _resources(container: ContainerSpec, context: OciContext) -> dict[str, Any]:
    if container.privileged:
        devices: list[dict[str, Any]] = [{"allow": True, "access": "rwm"}]
    else:
        devices = [{"allow": False, "access": "rwm"}] + [
            {"allow": True, "type": t, "major": major, "access": "rwm"}
            | ({} if minor is None else {"minor": minor})
            for t, major, minor in _DEVICES
        ]
        for device in container.devices:
            node = context.devices[device.host_path]
            numbers = {"type": node.kind, "major": node.major, "minor": node.minor}
            devices.append({"allow": True, **numbers, "access": device.access})
    memory: dict[str, Any] = {}
    if container.memory_mib:
        memory["limit"] = container.memory_mib * MIB
    if container.memory_reservation_mib:
        memory["reservation"] = container.memory_reservation_mib * MIB
    resources: dict[str, Any] = {"devices": devices, "pids": {"limit": context.pids}}
    if memory:
        resources["memory"] = memory
    if container.cpu_units:
        resources["cpu"] = {"shares": max(2, container.cpu_units)}
    return resources


def etc_files(
    container: ContainerSpec, hostname: str, address: str, nameservers: Sequence[str], search: Sequence[str]
) -> dict[str, str]:
    """The texts of /etc/hosts, /etc/hostname and /etc/resolv.conf of a container."""
    hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    if address:
        hosts.append(f"{address} {hostname}")
    hosts += [f"{ip} {name}" for name, ip in container.extra_hosts.items()]
    servers = container.dns_servers or tuple(nameservers)
    domains = container.dns_search or tuple(search)
    resolv = [f"nameserver {s}" for s in servers] + ([f"search {' '.join(domains)}"] if domains else [])
    return {
        "/etc/hosts": "\n".join(hosts) + "\n",
        "/etc/hostname": hostname + "\n",
        "/etc/resolv.conf": "\n".join(_plain(line) for line in resolv) + "\n",
    }


def _plain(line: str) -> str:
    return re.sub(r"[\x00-\x1f]", "", line)
