"""What a task needs of the shared kernel, as data: names, places, limits, configurations. Pure."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.units import MIB
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.oci_config import DeviceNode, OciContext, build_oci_config, etc_files
from hutch.host.drivers.task_mounts import check_names, task_mounts
from hutch.host.drivers.volume_files import check_files
from hutch.host.kernel.cgroup import CgroupLimits, task_cgroup
from hutch.wire.taskspec import ContainerSpec, TaskSpec

CONTAINER_PIDS = 4096
TASK_PIDS = 8192
PAUSE = "-pause"
"""Not a name that a container can have."""
INIT_PROGRAM = "/usr/bin/catatonit"
"""A static init, for containers that ask for one; it also holds namespaces."""


class Places(msgspec.Struct, frozen=True):
    """Where things lie below a sandbox's directory."""

    directory: Path

    @property
    def box(self) -> Path:
        """All that `destroy` removes."""
        return self.directory / "box"

    @property
    def runtime(self) -> Path:
        """The runtime's own state; its path is on the command line of all processes that serve this sandbox."""
        return self.box / "runtime"

    def log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def root(self, name: str) -> Path:
        """Where the overlay of a container is mounted; it stays through the container's restarts."""
        return self.box / "root" / name

    def overlay(self, name: str) -> Path:
        """Holds the overlay's upper and work directory."""
        return self.box / "overlay" / name

    def etc(self, name: str) -> Path:
        return self.box / "etc" / name

    @property
    def shm(self) -> Path:
        """The /dev/shm that containers share."""
        return self.box / "shm"

    def volume(self, name: str) -> Path:
        return self.box / "volumes" / name

    @property
    def router_directory(self) -> Path:
        """Where a log router makes its socket."""
        return self.box / "router" / "run"

    @property
    def router_config(self) -> Path:
        """What a log router is to do."""
        return self.box / "router" / "config"

    def starts(self, name: str) -> Path:
        """A directory for each start of a container: its bundle, and what is known of it."""
        return self.box / "starts" / name

    def start(self, name: str, number: int) -> Path:
        return self.starts(name) / str(number)


def check_task(spec: SandboxSpec) -> None:
    """Refuse what can't be done on the shared kernel. Raises `DriverError`."""
    task = spec.task
    check_names(task)
    if any(v.file_system is not None for v in task.volumes):
        raise DriverError(
            "FileSystemNotPossible",
            "file systems are served to microVMs, not to containers on the shared kernel",
            fix="use launch type FARGATE",
        )
    check_files(task)
    task_mounts(task, spec.images)
    for container in task.containers:
        if not spec.images[container.name].directory:
            reference = spec.images[container.name].reference
            raise DriverError("NoRootDirectory", f"image {reference} was not prepared as a directory")


def check_gvisor(spec: SandboxSpec) -> None:
    """Refuse what can't be done where each container has a kernel, with a network stack, of its own. Raises `DriverError`."""
    task = spec.task
    if shared := {task.pid_mode, task.ipc_mode} & {"task", "host"}:
        what = f"pidMode or ipcMode {min(shared)}: gVisor gives each container a kernel of its own"
    elif spec.attachment.host_network:
        what = "network mode host: gVisor has a network stack of its own"
    elif spec.attachment.netns_path and sum(not c.disable_network for c in task.containers) > 1:
        what = "several containers on one network: gVisor gives each container a network stack of its own"
    elif any(c.devices for c in task.containers):
        what = "linuxParameters.devices: gVisor hands no devices of the host on"
    else:
        return
    raise DriverError(
        "NotUnderGvisor",
        f"this host's containers run under gVisor, which can't do what the task asks for: {what}",
        fix="use launch type FARGATE, or a host whose --container-runtime is runc or crun",
    )


def task_limits(task: TaskSpec, *, cap_cpu: bool) -> CgroupLimits:
    """What all containers of a task may have together. CPU is a weight: what others leave idle may be used, unless the
    task, or the host's owner for all (`cap_cpu`), wants a cap. A task without a share of its own can't have one."""
    return CgroupLimits(
        cpu_units=task.cpu_units,
        cpu_cap_units=task.cpu_units if cap_cpu or task.cpu_capped else 0,
        memory_bytes=task.memory_mib * MIB if task.memory_is_limit else 0,
        pids=TASK_PIDS,
    )


def runtime_id(task_id: str, name: str, number: int) -> str:
    """64 hex digits that name one start of a container; derived, so that it is the same after a restart of ours."""
    return hashlib.sha256(f"{task_id}/{name}/{number}".encode()).hexdigest()


def hostname(spec: SandboxSpec, host: str) -> str:
    """The containers' host name: from the task's address as EC2 does, or the host's own."""
    if spec.attachment.host_network:
        return host
    link = spec.task.interface
    return spec.task.task_id[:12] if link is None else f"ip-{link.address.replace('.', '-')}"


def etc_texts(spec: SandboxSpec, container: ContainerSpec, host: str) -> dict[str, str]:
    """By path in the container: /etc/hosts, /etc/hostname, /etc/resolv.conf."""
    link = spec.task.interface
    return etc_files(
        container,
        container.hostname or hostname(spec, host),
        link.address if link is not None else "",
        spec.attachment.nameservers,
        spec.attachment.search,
    )


def needs_pause(task: TaskSpec) -> bool:
    """Whether containers share namespaces, which then need somebody who holds them."""
    return "task" in (task.pid_mode, task.ipc_mode)


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What the host brings to a start of a container."""

    platform_id: str
    host: str
    """The host's name."""
    hard_nofile: int
    pause_pid: int = 0
    """The process that holds the namespaces which the task's containers share; 0: they share none."""
    devices: dict[str, DeviceNode] = {}
    volumes: dict[str, str] = {}
    """Where the volumes are that are not below the sandbox's directory."""


def oci_context(spec: SandboxSpec, container: ContainerSpec, number: int, ground: Ground) -> OciContext:
    """Where a start of a container finds its things."""
    task, places = spec.task, Places(Path(spec.directory))
    etc, mounts = places.etc(container.name), task_mounts(task, spec.images)
    has_init = container.init_process and task.pid_mode != "task"
    own = {v.name: v.source_path or str(places.volume(v.name)) for v in mounts.volumes}
    return OciContext(
        cgroup_path=f"{task_cgroup(ground.platform_id, task.task_id)}/{container.name}.{number}",
        hostname=container.hostname or hostname(spec, ground.host),
        namespaces=_namespaces(spec, container, ground.pause_pid),
        files={p: f"{etc}/{p.rpartition('/')[2]}" for p in etc_texts(spec, container, ground.host)},
        volumes=own | ground.volumes,
        mounts=mounts.of.get(container.name, ()),
        init_program=INIT_PROGRAM if has_init else "",
        devices=ground.devices,
        shm_source={"task": str(places.shm), "host": "/dev/shm", "none": "none"}.get(task.ipc_mode, ""),
        router_directory=str(places.router_directory),
        router_config=str(places.router_config),
        owns_kernel=False,
        hard_nofile=ground.hard_nofile,
        pids=CONTAINER_PIDS,
    )


def _namespaces(spec: SandboxSpec, container: ContainerSpec, pause_pid: int) -> tuple[dict[str, str], ...]:
    namespaces = [{"type": t} for t in ("mount", "uts", "cgroup")]
    for kind, mode in (("pid", spec.task.pid_mode), ("ipc", spec.task.ipc_mode)):
        if mode != "host":
            path = {"path": f"/proc/{pause_pid}/ns/{kind}"} if mode == "task" else {}
            namespaces.append({"type": kind, **path})
    if container.disable_network:
        namespaces.append({"type": "network"})
    elif not spec.attachment.host_network:
        where = spec.attachment.netns_path
        namespaces.append({"type": "network", **({"path": where} if where else {})})
    return tuple(namespaces)


def bundle_config(spec: SandboxSpec, container: ContainerSpec, context: OciContext) -> dict[str, Any]:
    """The whole `config.json`. Raises `DriverError` for what the image or the specification lacks."""
    config = build_oci_config(container, spec.images[container.name], context)
    config["root"]["path"] = str(Places(Path(spec.directory)).root(container.name))
    return config
