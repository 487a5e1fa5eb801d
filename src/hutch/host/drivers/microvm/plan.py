"""What a task needs of its VM, as data: disks, set-up documents, places in the guest. Pure."""

import hashlib
from typing import Any

import msgspec

from hutch.base.units import GIB, MIB
from hutch.host.drivers.contract import DriverError, RootImage, SandboxSpec
from hutch.host.drivers.guest_devices import guest_devices
from hutch.host.drivers.microvm.qemu import (
    MAX_DISKS,
    MAX_FILE_SYSTEMS,
    VIRTIO_SLOTS,
    disk_slots,
    file_system_tag,
)
from hutch.host.drivers.oci_config import OciContext, build_oci_config, etc_files
from hutch.host.drivers.task_mounts import check_names, task_mounts
from hutch.host.drivers.volume_disks import volume_disks
from hutch.host.drivers.volume_files import check_files, fill_requests
from hutch.rules.logdrivers.firelens import SOCKET_NAME
from hutch.wire.taskspec import ContainerSpec, FileSystemSpec, TaskSpec, VolumeSpec

SCRATCH_SERIAL = "disk0"
SCRATCH = "/disk/scratch"
FILES = "/run/hutch/files"
"""In the guest's memory."""
ROUTER_DIRECTORY = f"{SCRATCH}/router/run"
ROUTER_CONFIG = f"{SCRATCH}/router/config"
ROUTER_SOCKET = f"{ROUTER_DIRECTORY}/{SOCKET_NAME}"
REHEARSAL = "-"
PAUSE = "-pause"
"""Not names that a container can have."""
INIT_PROGRAM = "/usr/bin/catatonit"
"""In the guest: a static init that can also do nothing (`-P`)."""
_EXTRA_MODULE_CAPABILITIES = frozenset({"SYS_ADMIN", "NET_ADMIN", "ALL"})


class ImageDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A root disk, shared by the containers that have the same image."""

    serial: str
    erofs_path: str
    mount_path: str


def check_task(spec: SandboxSpec) -> None:
    """Refuse what a microVM can't do. Raises `DriverError`."""
    task = spec.task
    check_names(task)
    if task.architecture != "x86_64":
        raise DriverError(
            "WrongArchitecture",
            f"this host's microVMs are x86_64, the task asks for {task.architecture}",
            fix="set runtimePlatform.cpuArchitecture to X86_64",
        )
    if spec.attachment.host_network or spec.attachment.netns_path:
        raise DriverError(
            "HostNetworkNotPossible",
            "a microVM has a network interface of its own and can't use the host's",
            fix='use networkMode "awsvpc", or launch type EC2',
        )
    if any(v.source_path for v in task.volumes):
        raise DriverError(
            "HostVolumeNotPossible",
            "a microVM can't mount a directory of the host",
            fix="leave out host.sourcePath, or use launch type EC2",
        )
    if task.pid_mode == "host" or task.ipc_mode == "host":
        raise DriverError(
            "HostNamespaceNotPossible",
            "a microVM can't share processes or memory with the host",
            fix='use pidMode and ipcMode "task", or launch type EC2',
        )
    _check_file_systems(spec)
    guest_devices(task)
    check_files(task)
    task_mounts(task, spec.images)
    if task.memory_mib <= 0 or task.ephemeral_gib <= 0:
        raise DriverError("InvalidSize", "a microVM needs the task's memory and disk size")


def _check_file_systems(spec: SandboxSpec) -> None:
    wanted = file_systems(spec.task)
    if not wanted:
        return
    disks = 1 + len(volume_disks(spec.task)) + len({image.digest for image in spec.images.values()})
    room = VIRTIO_SLOTS - 3 - disk_slots(min(disks, MAX_DISKS))
    if len(wanted) > min(room, MAX_FILE_SYSTEMS):
        raise DriverError(
            "TooManyFileSystems",
            f"a microVM with {disks} disks has room for {min(room, MAX_FILE_SYSTEMS)} directories of file systems, "
            f"and the task has {len(wanted)}",
            fix="mount one directory, and use what is below it",
        )


def file_systems(task: TaskSpec) -> tuple[FileSystemSpec, ...]:
    """The directories of file systems that a task has, each once, in the order of their tags."""
    return tuple(dict.fromkeys(v.file_system for v in task.volumes if v.file_system is not None))


def image_disks(spec: SandboxSpec) -> dict[str, ImageDisk]:
    """By container name, the disk with its root. One disk for each distinct image, after those that can be written to.
    Raises `DriverError`."""
    images, writable = spec.images, 1 + len(volume_disks(spec.task))
    digests = sorted({image.digest for image in images.values()})
    if len(digests) > MAX_DISKS - writable:
        raise DriverError(
            "TooManyDisks", f"a microVM has room for {MAX_DISKS - 1} different images and volumes on disks"
        )
    disks = {}
    for name, image in images.items():
        if not image.erofs_path:
            raise DriverError("NoRootDisk", f"image {image.reference} was not prepared as a root disk")
        index = digests.index(image.digest)
        disks[name] = ImageDisk(
            serial=f"disk{index + writable}", erofs_path=image.erofs_path, mount_path=f"/disk/image{index}"
        )
    return disks


def image_files(spec: SandboxSpec) -> list[tuple[str, str]]:
    """The root disks in the order in which the VM has them, after those that can be written to: (serial, file). Raises
    `DriverError`."""
    files = {disk.serial: disk.erofs_path for disk in image_disks(spec).values()}
    return sorted(files.items(), key=lambda item: int(item[0].removeprefix("disk")))


def scratch_bytes(task: TaskSpec) -> int:
    """Size of the writable disk."""
    return task.ephemeral_gib * GIB


def hostname(task: TaskSpec) -> str:
    """The VM's host name, from its address as EC2 does."""
    if task.interface is None:
        return task.task_id[:12]
    return f"ip-{task.interface.address.replace('.', '-')}"


def configure_members(spec: SandboxSpec) -> dict[str, Any]:
    """Members of the `configure` request."""
    task, link = spec.task, spec.task.interface
    interfaces = []
    if link is not None and spec.attachment.tap:
        interfaces.append(
            {
                "mac": link.mac.lower(),
                "address": link.address,
                "prefix": link.prefix_length,
                "gateway": link.gateway,
                "mtu": link.mtu,
            }
        )
    return {
        "hostname": hostname(task),
        "machine_id": hashlib.sha256(f"machine {task.task_id}".encode()).hexdigest()[:32],
        "memory_bytes": task.memory_mib * MIB,
        "interfaces": interfaces,
        "nameservers": list(spec.attachment.nameservers),
        "search": list(spec.attachment.search),
        "extra_modules": any(_wants_extra_modules(c) for c in task.containers),
    }


def identify_members(spec: SandboxSpec) -> dict[str, Any]:
    """Members of the `identify` request: who a copied VM is now, and what its containers are to see of that."""
    files: dict[str, str] = {}
    for container in spec.task.containers:
        context = oci_context(spec, container, 0)
        files |= {context.files[path]: text for path, text in _etc(spec, container).items()}
    hostnames = {c.name: c.hostname or hostname(spec.task) for c in spec.task.containers}
    return configure_members(spec) | {"files": files, "hostnames": hostnames}


def _wants_extra_modules(container: ContainerSpec) -> bool:
    added = {c.upper().removeprefix("CAP_") for c in container.capabilities_add}
    return container.privileged or bool(container.devices) or bool(added & _EXTRA_MODULE_CAPABILITIES)


def disk_mounts(spec: SandboxSpec) -> list[dict[str, Any]]:
    """`mounts` of the `disks` request."""
    images = {d.serial: d for d in image_disks(spec).values()}
    mounts: list[dict[str, Any]] = [
        {"serial": d.serial, "path": d.mount_path, "fs": "erofs", "read_only": True}
        for _, d in sorted(images.items())
    ]
    for index, disk in enumerate(volume_disks(spec.task)):
        # The kernel's ext4 is its ext3 too.
        kind = "ext4" if disk.filesystem == "ext3" else disk.filesystem
        place = {"serial": f"disk{index + 1}", "path": _volume_mount(index)}
        mounts.append({**place, "fs": kind, "read_only": False})
    mounts += [
        {"tag": file_system_tag(i), "path": _file_system_mount(i), "fs": "virtiofs"}
        for i in range(len(file_systems(spec.task)))
    ]
    return [*mounts, {"serial": SCRATCH_SERIAL, "path": SCRATCH, "fs": "ext4", "read_only": False}]


def _volume_mount(index: int) -> str:
    return f"/disk/volume{index}"


def _file_system_mount(index: int) -> str:
    return f"/disk/filesystem{index}"


def _files_path(volume: VolumeSpec) -> str:
    return f"{FILES}/{volume.name}"


def files_members(task: TaskSpec) -> list[dict[str, Any]]:
    """Members of the `files` requests that a task's VM is sent, in this order."""
    return [r for v in task.volumes if v.files is not None for r in fill_requests(v.files, _files_path(v))]


def _volume_paths(spec: SandboxSpec) -> dict[str, str]:
    """Where the volumes are in the guest. A shared one keeps apart from what its file system has by itself."""
    volumes = task_mounts(spec.task, spec.images).volumes
    paths = {v.name: f"{SCRATCH}/volumes/{v.name}" for v in volumes}
    shared = {v.name for v in volumes if v.shared_name}
    paths |= {v.name: _files_path(v) for v in volumes if v.files is not None}
    for index, disk in enumerate(volume_disks(spec.task)):
        paths[disk.volume] = _volume_mount(index) + ("/data" if disk.volume in shared else "")
    served = file_systems(spec.task)
    for volume in spec.task.volumes:
        if volume.file_system is not None:
            paths[volume.name] = _file_system_mount(served.index(volume.file_system))
    return paths


def runtime_id(task_id: str, name: str, number: int) -> str:
    """64 hex digits that name one start of a container; derived, so that it is the same after a restart of
    ours."""
    return hashlib.sha256(f"{task_id}/{name}/{number}".encode()).hexdigest()


def oci_context(spec: SandboxSpec, container: ContainerSpec, number: int) -> OciContext:
    """Where a start of a container finds its things in the guest."""
    task = spec.task
    # The VM's own network: joining it by its path lets the runtime set network sysctls.
    network = {} if container.disable_network else {"path": "/proc/1/ns/net"}
    namespaces = [{"type": t} for t in ("mount", "uts", "cgroup")]
    namespaces += [
        {"type": "network", **network},
        _shared("pid", task.pid_mode),
        _shared("ipc", task.ipc_mode),
    ]
    etc = f"{SCRATCH}/etc/{container.name}"
    mounts = task_mounts(task, spec.images)
    has_init = container.init_process and task.pid_mode != "task"
    return OciContext(
        cgroup_path=f"/hutch/c{number}",
        hostname=container.hostname or hostname(task),
        namespaces=tuple(namespaces),
        files={path: f"{etc}/{path.rpartition('/')[2]}" for path in _etc(spec, container)},
        volumes=_volume_paths(spec),
        mounts=mounts.of.get(container.name, ()),
        # Where processes are shared, the one that holds the namespace is their init.
        init_program=INIT_PROGRAM if has_init else "",
        devices=guest_devices(task),
        shm_source={"task": "/dev/shm", "none": "none"}.get(task.ipc_mode, ""),
        router_directory=ROUTER_DIRECTORY,
        router_config=ROUTER_CONFIG,
        owns_kernel=True,
    )


def _shared(kind: str, mode: str) -> dict[str, str]:
    """A namespace that all containers of the task share, or one of the container's own."""
    return {"type": kind, **({"path": f"container:{PAUSE}"} if mode == "task" else {})}


def needs_pause(task: TaskSpec) -> bool:
    """Whether containers share namespaces, which then need somebody who holds them."""
    return "task" in (task.pid_mode, task.ipc_mode)


def pause_members(number: int) -> dict[str, Any]:
    """Members of the `start` request for the container that holds the namespaces: one program, in an empty root, that waits
    and reaps."""
    container = ContainerSpec(
        name=PAUSE, container_id=PAUSE, image="", entry_point=("/pause", "-P"), capabilities_drop=("ALL",)
    )
    context = OciContext(
        cgroup_path=f"/hutch/c{number}",
        hostname=PAUSE,
        namespaces=tuple({"type": t} for t in ("mount", "uts", "cgroup", "network", "pid", "ipc")),
        files={},
        volumes={},
        owns_kernel=True,
        pids=1,
    )
    config = build_oci_config(container, RootImage(reference="", digest="", config={}), context)
    bind = {"destination": "/pause", "source": INIT_PROGRAM, "type": "bind", "options": ["bind", "ro"]}
    config["mounts"] = [bind, *config["mounts"]]
    return {"name": PAUSE, "number": number, "config": config}


def _etc(spec: SandboxSpec, container: ContainerSpec) -> dict[str, str]:
    link = spec.task.interface
    return etc_files(
        container,
        container.hostname or hostname(spec.task),
        link.address if link is not None else "",
        spec.attachment.nameservers,
        spec.attachment.search,
    )


def rehearsal_members() -> dict[str, Any]:
    """Members of a `start` request for a container without a task: the runtime itself, run from the VM's own root. What
    it needs to run is then in QEMU's store of translated code."""
    container = ContainerSpec(
        name=REHEARSAL, container_id=REHEARSAL, image="", entry_point=("/usr/bin/crun", "--version")
    )
    context = OciContext(
        cgroup_path="/hutch/c0",
        hostname=REHEARSAL,
        namespaces=tuple({"type": t} for t in ("mount", "uts", "cgroup", "pid", "ipc")),
        files={},
        volumes={},
        owns_kernel=True,
    )
    config = build_oci_config(container, RootImage(reference="", digest="", config={}), context)
    binds = [
        {"destination": path, "source": path, "type": "bind", "options": ["rbind", "ro"]}
        for path in ("/usr", "/lib", "/lib64")
    ]
    config["mounts"] = [*binds, *config["mounts"]]
    return {"name": REHEARSAL, "number": 0, "config": config}


def start_members(
    spec: SandboxSpec, container: ContainerSpec, number: int, *, first: bool = True
) -> dict[str, Any]:
    """Members of the `start` request. `first`: it was not started before in this VM, so its volumes, while empty, get what
    images have at their paths. Raises `DriverError` for what the image or the specification lacks."""
    image = spec.images[container.name]
    context = oci_context(spec, container, number)
    members: dict[str, Any] = {
        "name": container.name,
        "number": number,
        "image": image_disks(spec)[container.name].mount_path,
        "scratch": f"{SCRATCH}/containers/{container.name}",
        "config": build_oci_config(container, image, context),
        "directories": sorted(context.volumes[m.volume] for m in context.mounts),
        "files": {context.files[path]: text for path, text in _etc(spec, container).items()},
    }
    if container.log_router is not None:
        members["directories"].append(ROUTER_DIRECTORY)
        members["files"][ROUTER_CONFIG] = container.log_router.config
        if container.log_router.include_path:
            # A VM that is only looked into has no values.
            members["files"][f"{ROUTER_CONFIG}.include"] = container.log_router.include or ""
    if container.interactive:
        members["interactive"] = True
    if first:
        members["seeds"] = _seeds(spec, context)
    return members


def _seeds(spec: SandboxSpec, context: OciContext) -> list[dict[str, Any]]:
    """Where the content of the container's volumes may come from."""
    mounts, disks = task_mounts(spec.task, spec.images), image_disks(spec)
    seeds = []
    # What tasks share is nobody's to fill.
    served = {v.name for v in spec.task.volumes if v.file_system is not None}
    for volume in sorted({m.volume for m in context.mounts} - served):
        sources = [{"root": disks[name].mount_path, "path": path} for name, path in mounts.candidates(volume)]
        seeds.append({"to": context.volumes[volume], "from": sources})
    return seeds
