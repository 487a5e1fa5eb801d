"""What a VM is to Firecracker: requests to its API, in their order. Pure; checked against Firecracker's own description of
its API by the tests."""

from typing import Any

import msgspec

from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.firecracker.api import Request
from hutch.host.drivers.microvm.qemu import PLACEHOLDER_MAC
from hutch.host.guestlink.vsock import AGENT_PORT

MAX_VCPUS = 32
MAX_DISKS = 15
"""There are 19 interrupts for devices; channel, randomness and network take three, one stays free."""
GUEST_CID = 3
"""The first number that a guest may have. Each monitor has its own sockets, so that all guests can have the same."""
DISK_SLOTS = (4, MAX_DISKS)
"""VMs have one of these numbers of disks, whatever the task has: what is not used is an empty file, never looked at. So a
template fits any task."""
SERIAL_BYTES = 20
BOOT_TIMEOUT_S = 60.0
SNAPSHOT_TIMEOUT_S = 120.0

# Places in the jail, the same for every VM: so a VM can be restored in another one's jail.
KERNEL = "/boot/vmlinux"
INITRD = "/boot/initrd.img"
RUN = "/run"
API_SOCKET = f"{RUN}/api.sock"
AGENT_SOCKET = f"{RUN}/agent.sock"
SNAPSHOT = "/snapshot"
MEMORY = f"{SNAPSHOT}/memory"
STATE = f"{SNAPSHOT}/state"


class VmConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A VM. `disks`: how many; only the first can be written to."""

    vcpus: int
    memory_mib: int
    disks: int = 0
    tap: str = ""
    """The host's name of the network interface; "": the VM has none."""


def disk_place(index: int) -> str:
    """Where in the jail a disk is."""
    return f"/disks/disk{index}"


def check_config(config: VmConfig) -> None:
    """Refuse what Firecracker can't do. Raises `DriverError`."""
    if config.vcpus > MAX_VCPUS:
        raise DriverError(
            "TooManyVcpus",
            f"Firecracker's VMs have {MAX_VCPUS} vCPUs at most, the task needs {config.vcpus}",
            fix="ask for less CPU, or put microvm before firecracker in --drivers",
        )
    if config.disks > MAX_DISKS:
        raise DriverError("TooManyImages", f"a VM has room for {MAX_DISKS - 1} different images")


def kernel_arguments() -> str:
    """The guest kernel's command line. `hutch_vsock` tells the agent where its channel is; restarting, also after a panic,
    ends Firecracker."""
    words = ("console=ttyS0", "quiet", "panic=-1", "reboot=k", "cryptomgr.notests", "pci=off", "i8042.noaux")
    return " ".join((*words, f"hutch_vsock={AGENT_PORT}"))


def boot_requests(config: VmConfig) -> tuple[Request, ...]:
    """From a fresh process to a VM that boots. Raises `DriverError`."""
    check_config(config)
    machine = {"vcpu_count": config.vcpus, "mem_size_mib": config.memory_mib, "smt": False}
    boot = {"kernel_image_path": KERNEL, "initrd_path": INITRD, "boot_args": kernel_arguments()}
    network = (_network(config.tap),) if config.tap else ()
    return (
        _put("/machine-config", machine),
        _put("/boot-source", boot),
        *(_disk(i, read_only=i > 0) for i in range(config.disks)),
        *network,
        _put("/entropy", {}),
        _put("/vsock", {"guest_cid": GUEST_CID, "uds_path": AGENT_SOCKET}),
        _put("/actions", {"action_type": "InstanceStart"}, BOOT_TIMEOUT_S),
    )


def disk_slots(disks: int) -> int:
    """How many disks a VM has that needs so many. Raises `DriverError` for more than there is room for."""
    for slots in DISK_SLOTS:
        if disks <= slots:
            return slots
    raise DriverError("TooManyImages", f"a VM has room for {MAX_DISKS - 1} different images")


def machine_traits(config: VmConfig) -> str:
    """All that a saved state of a VM depends on, as text: a VM with the same can be restored from it."""
    placeholder = msgspec.structs.replace(config, tap="placeholder" if config.tap else "")
    return msgspec.json.encode(boot_requests(placeholder)).decode()


def save_requests() -> tuple[Request, ...]:
    """Stop a VM for good, and write it to `MEMORY` and `STATE`."""
    files = {"snapshot_type": "Full", "snapshot_path": STATE, "mem_file_path": MEMORY}
    return (
        Request(method="PATCH", path="/vm", body={"state": "Paused"}),
        _put("/snapshot/create", files, SNAPSHOT_TIMEOUT_S),
    )


def load_requests(config: VmConfig, *, memory: str, state: str) -> tuple[Request, ...]:
    """From a fresh process to a VM that runs from where the saved one stood still. `memory` and `state` are files; the
    disks are those that are at their places now. Raises `DriverError`."""
    check_config(config)
    body: dict[str, Any] = {
        "snapshot_path": state,
        "mem_backend": {"backend_type": "File", "backend_path": memory},
        "resume_vm": True,
    }
    if config.tap:
        body["network_overrides"] = [{"iface_id": "net", "host_dev_name": config.tap}]
    return (_put("/snapshot/load", body, SNAPSHOT_TIMEOUT_S),)


def _put(path: str, body: dict[str, Any], timeout_s: float = 10.0) -> Request:
    return Request(method="PUT", path=path, body=body, timeout_s=timeout_s)


def _disk(index: int, *, read_only: bool) -> Request:
    name = f"disk{index}"
    # Flushes are not carried out: a scratch disk lives no longer than its VM.
    return _put(
        f"/drives/{name}",
        {
            "drive_id": name,
            "is_root_device": False,
            "is_read_only": read_only,
            "path_on_host": disk_place(index),
            "cache_type": "Unsafe",
            "io_engine": "Sync",
        },
    )


def _network(tap: str) -> Request:
    # The guest agent gives the interface the task's own address.
    body = {"iface_id": "net", "host_dev_name": tap, "guest_mac": PLACEHOLDER_MAC}
    return _put("/network-interfaces/net", body)


def disk_serial(device: int, special_device: int, inode: int) -> str:
    """The serial by which the guest finds a disk: Firecracker makes it of the numbers of the file (`st_dev`, `st_rdev`,
    `st_ino`), and there is room for 20 digits."""
    return f"{device}{special_device}{inode}"[:SERIAL_BYTES]
