"""What a task needs of the shared kernel, as data: names, places, limits, configurations. Pure."""

import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.units import MIB
from hutch.host.drivers.contract import DriverError, SandboxSpec
from hutch.host.drivers.oci_config import OciContext, build_oci_config, etc_files
from hutch.host.kernel.cgroup import CgroupLimits, task_cgroup
from hutch.wire.fleet import ContainerSpec, TaskSpec

CONTAINER_PIDS = 4096
TASK_PIDS = 8192
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


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

    def volume(self, name: str) -> Path:
        return self.box / "volumes" / name

    def starts(self, name: str) -> Path:
        """A directory for each start of a container: its bundle, and what is known of it."""
        return self.box / "starts" / name

    def start(self, name: str, number: int) -> Path:
        return self.starts(name) / str(number)


def check_task(spec: SandboxSpec) -> None:
    """Refuse what can't be done on the shared kernel. Raises `DriverError`."""
    task = spec.task
    for name in [c.name for c in task.containers] + [v.name for v in task.volumes]:
        if not _PLAIN_NAME.fullmatch(name):
            raise DriverError("InvalidName", f"{name[:60]!r} can't be the name of a container or volume")
    for mode, member in ((task.pid_mode, "pidMode"), (task.ipc_mode, "ipcMode")):
        if mode == "task":
            raise DriverError(
                "NotServed",
                f'this task asks for {member} "task", which the container driver does not have yet',
                fix=f"leave out {member}, or use launch type FARGATE, whose VMs have it",
                aws_prefix="CannotCreateContainerError",
            )
    for container in task.containers:
        if not spec.images[container.name].directory:
            reference = spec.images[container.name].reference
            raise DriverError("NoRootDirectory", f"image {reference} was not prepared as a directory")
        for wanted, member in (
            (container.tty, "pseudoTerminal"),
            (container.init_process, "linuxParameters.initProcessEnabled"),
        ):
            if wanted:
                raise DriverError(
                    "NotServed",
                    f'container "{container.name}" asks for {member}, which hutch does not have yet',
                    fix=f"leave out {member}",
                    aws_prefix="CannotCreateContainerError",
                )


def task_limits(task: TaskSpec) -> CgroupLimits:
    """What all containers of a task may have together. CPU is a weight: what others leave idle may be used."""
    memory_mib = task.memory_mib if task.memory_is_limit else 0
    return CgroupLimits(cpu_units=task.cpu_units, memory_bytes=memory_mib * MIB, pids=TASK_PIDS)


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


def oci_context(
    spec: SandboxSpec, container: ContainerSpec, number: int, *, platform_id: str, host: str, hard_nofile: int
) -> OciContext:
    """Where a start of a container finds its things. `host` is the host's name."""
    task, places = spec.task, Places(Path(spec.directory))
    namespaces: list[dict[str, str]] = [{"type": "mount"}, {"type": "uts"}, {"type": "cgroup"}]
    if task.pid_mode != "host":
        namespaces.append({"type": "pid"})
    if task.ipc_mode != "host":
        namespaces.append({"type": "ipc"})
    if not spec.attachment.host_network:
        path = spec.attachment.netns_path
        namespaces.append({"type": "network", **({"path": path} if path else {})})
    etc = places.etc(container.name)
    return OciContext(
        cgroup_path=f"{task_cgroup(platform_id, task.task_id)}/{container.name}.{number}",
        hostname=container.hostname or hostname(spec, host),
        namespaces=tuple(namespaces),
        files={p: f"{etc}/{p.rpartition('/')[2]}" for p in etc_texts(spec, container, host)},
        volumes={v.name: v.source_path or str(places.volume(v.name)) for v in task.volumes},
        owns_kernel=False,
        hard_nofile=hard_nofile,
        pids=CONTAINER_PIDS,
    )


def bundle_config(spec: SandboxSpec, container: ContainerSpec, context: OciContext) -> dict[str, Any]:
    """The whole `config.json`. Raises `DriverError` for what the image or the specification lacks."""
    config = build_oci_config(container, spec.images[container.name], context)
    config["root"]["path"] = str(Places(Path(spec.directory)).root(container.name))
    return config
