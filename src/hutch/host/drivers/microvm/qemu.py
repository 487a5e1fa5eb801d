"""From what a VM shall be to QEMU's command line. Pure; every line of it is held by a golden test.

All files reach QEMU as open descriptors, so that it can run as a user who may open nothing.
"""

from collections.abc import Sequence

import msgspec

from hutch.wire.guest import PORT_NAME

PROGRAM = "qemu-system-x86_64"
CONSOLE_BYTES = 65536
"""Size of the ring in QEMU's memory that keeps the end of what the guest wrote to its console (a power of
two)."""
TCG_BUFFER_MIB = 48
"""Translated code of an emulated guest is kept up to this; QEMU's own default may take a gigabyte of the host. With 32
a start of a container no longer fits, and all is translated again."""
WARM_TCG_BUFFER_MIB = 72
"""The same for a VM of the warm pool, which has been through a start: with 48 its task's start makes it begin anew."""
DISK_SLOTS = (4, 20)
"""Machines are made with one of these numbers of disks, whatever the task has: what is not used is empty, and never
looked at by the guest. So a template fits any task. (There are 24 virtio-mmio slots; channel, randomness and network
take three.)"""
MAX_DISKS = DISK_SLOTS[-1]
MAX_FILE_SYSTEMS = 8
VIRTIO_SLOTS = 24
"""Of the machine; channel, randomness and network take three."""
PLACEHOLDER_MAC = "02:00:00:00:00:00"
"""Of the network device until the guest agent gives it the task's."""
MEMORY_OVERHEAD_MIB = 96
"""The guest's own needs, measured: kernel and its tables 40 MiB, root in memory with modules and crun 45
MiB."""
MEMORY_OVERHEAD_DIVISOR = 64
"""The kernel's page structures: 64 bytes for each 4 KiB page."""


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk, found in the guest by its serial: "disk" and its number. The writable ones come first."""

    fd: int
    read_only: bool


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's memory in a file: shared with it, or a private copy of what is written to."""

    fd: int
    shared: bool


class VmSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A VM. Descriptors are those that QEMU inherits."""

    name: str
    accelerator: str
    """"kvm" or "tcg"."""
    vcpus: int
    memory_mib: int
    kernel_fd: int | None = None
    initrd_fd: int | None = None
    """Kernel and initial root; None for a VM that is restored."""
    agent_fd: int
    """Listening socket of the agent's channel."""
    qmp_fd: int
    """Listening socket of QEMU's monitor."""
    disks: tuple[Disk, ...] = ()
    disk_slots: int = DISK_SLOTS[0]
    writable_disks: int = 1
    """So many disks at the beginning are writable: a trait of the machine, that its template must have too."""
    file_system_fds: tuple[int, ...] = ()
    """Connections to the servers of file systems, which the guest finds by the tags fs0, fs1... They need `memory` that is
    shared, and can't be restored."""
    tap_fd: int | None = None
    tsc_khz: int = 0
    """Frequency of the host's time stamp counter; 0: the guest shall measure it."""
    memory: Memory | None = None
    """None: memory of its own, without a file."""
    incoming: bool = False
    """It waits for its state instead of booting."""
    tcg_buffer_mib: int = TCG_BUFFER_MIB
    devices_only: bool = False
    """That state is of `save_devices`, which does not begin with a description of the machine."""


def vm_memory_mib(task_memory_mib: int) -> int:
    """Memory of the VM, so that the containers get what the task asked for; the rest is the guest's own."""
    return task_memory_mib + MEMORY_OVERHEAD_MIB + task_memory_mib // MEMORY_OVERHEAD_DIVISOR


def vm_vcpus(cpu_units: int) -> int:
    """Virtual CPUs of a task: 1,024 units each, rounded up, at least one."""
    return max(1, -(-cpu_units // 1024))


def disk_slots(disks: int) -> int:
    """The machine for so many disks. Raises `ValueError` for more than any has room for."""
    for slots in DISK_SLOTS:
        if disks <= slots:
            return slots
    raise ValueError(f"a microVM has room for {MAX_DISKS} disks, not for {disks}")


def qemu_argv(spec: VmSpec) -> list[str]:
    """The whole command line. Raises `ValueError` for more disks than slots."""
    if len(spec.disks) > spec.disk_slots:
        raise ValueError(f"there are {spec.disk_slots} slots for {len(spec.disks)} disks")
    if spec.disk_slots + len(spec.file_system_fds) + 3 > VIRTIO_SLOTS:
        raise ValueError(f"there are not {len(spec.file_system_fds)} slots left for file systems")
    return [
        PROGRAM,
        *_machine(spec),
        *_memory(spec),
        # Servers beside QEMU speak today's virtio only; all slots of a machine speak the same.
        *(["-global", "virtio-mmio.force-legacy=off"] if spec.file_system_fds else []),
        *_kernel(spec),
        *_channels(spec),
        *(a for i, disk in enumerate(spec.disks) for a in _disk(i, disk)),
        *(
            a
            for i in range(len(spec.disks), spec.disk_slots)
            for a in _empty_disk(i, read_only=i >= spec.writable_disks)
        ),
        *(a for i, fd in enumerate(spec.file_system_fds) for a in _file_system(i, fd)),
        *_network(spec),
    ]


def inherited_fds(spec: VmSpec) -> Sequence[int]:
    """All descriptors that the command line names."""
    memory_fd = spec.memory.fd if spec.memory is not None else None
    fds = (spec.kernel_fd, spec.initrd_fd, spec.agent_fd, spec.qmp_fd, *(d.fd for d in spec.disks),
           *spec.file_system_fds, spec.tap_fd, memory_fd)  # fmt: skip
    return [fd for fd in fds if fd is not None]


def machine_traits(spec: VmSpec) -> str:
    """All that a saved state of a VM depends on, as text: two VMs with the same can be restored from one another."""
    placeholder = msgspec.structs.replace(
        spec, name="", kernel_fd=None, initrd_fd=None, agent_fd=0, qmp_fd=0, disks=(), tap_fd=None, memory=None,
        incoming=False, devices_only=False,
    )  # fmt: skip
    return " ".join([*qemu_argv(placeholder), kernel_arguments(spec.accelerator, 0)])


def kernel_arguments(accelerator: str, tsc_khz: int) -> str:
    """The guest kernel's command line. A panic restarts at once, which ends the VM (see `-action`)."""
    words = ["console=ttyS0", "quiet", "panic=-1", "reboot=t", "no_timer_check", "cryptomgr.notests"]
    if accelerator == "tcg":
        # An emulated CPU does not speculate, and its clock is the host's.
        words += ["mitigations=off", "tsc=reliable"]
        if tsc_khz:
            # Measured by the guest on a busy host, it may be missing: then no timer ticks, and the boot hangs.
            words.append(f"tsc_early_khz={tsc_khz}")
    return " ".join(words)


def _machine(spec: VmSpec) -> list[str]:
    kvm = spec.accelerator == "kvm"
    return [
        "-name", spec.name,
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine", "microvm,acpi=on,dump-guest-core=off,memory-backend=memory",
        "-accel", "kvm" if kvm else f"tcg,thread=multi,tb-size={spec.tcg_buffer_mib}",
        # Five-level page tables cost an emulated CPU time and bring nothing below 128 TiB.
        "-cpu", "host" if kvm else "max,la57=off",
        "-smp", str(spec.vcpus),
        "-m", f"{spec.memory_mib}M",
        # A VM that has ended stays, paused, until its last words were read; see `sandbox.py`.
        "-action", "reboot=shutdown,shutdown=pause,panic=pause",
    ]  # fmt: skip


def _memory(spec: VmSpec) -> list[str]:
    size = f"id=memory,size={spec.memory_mib}M"
    if spec.memory is None:
        return ["-object", f"memory-backend-ram,{size}"]
    share = "on" if spec.memory.shared else "off"
    return ["-object", f"memory-backend-file,{size},mem-path=/proc/self/fd/{spec.memory.fd},share={share}"]


def _kernel(spec: VmSpec) -> list[str]:
    if spec.incoming:
        # Not running by itself when its state is there: there is something to be done before.
        plain = ["-global", "migration.send-configuration=off"] if spec.devices_only else []
        return [*plain, "-incoming", "defer", "-S"]
    if spec.kernel_fd is None or spec.initrd_fd is None:
        return []
    return [
        "-kernel", f"/proc/self/fd/{spec.kernel_fd}",
        "-initrd", f"/proc/self/fd/{spec.initrd_fd}",
        "-append", kernel_arguments(spec.accelerator, spec.tsc_khz),
    ]  # fmt: skip


def _channels(spec: VmSpec) -> list[str]:
    return [
        "-chardev", f"ringbuf,id=console,size={CONSOLE_BYTES}",
        "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,fd={spec.qmp_fd},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=agent,fd={spec.agent_fd},server=on,wait=off",
        "-device", "virtio-serial-device",
        "-device", f"virtserialport,chardev=agent,name={PORT_NAME}",
        "-object", "rng-random,id=rng,filename=/dev/urandom",
        "-device", "virtio-rng-device,rng=rng",
    ]  # fmt: skip


def disk_node(index: int, *, read_only: bool) -> dict[str, object]:
    """The block node of a disk, as QEMU's monitor wants it, without the file below it."""
    node: dict[str, object] = {"driver": "raw", "node-name": f"disk{index}", "read-only": read_only}
    # Freed blocks, and blocks of zeros, become holes again: the scratch disk's file is sparse.
    return node if read_only else node | {"discard": "unmap", "detect-zeroes": "unmap"}


def _node_argument(index: int, *, read_only: bool) -> str:
    words = {True: "on", False: "off"}
    node = disk_node(index, read_only=read_only)
    return ",".join(f"{k}={words[v] if isinstance(v, bool) else v}" for k, v in node.items())


def _disk(index: int, disk: Disk) -> list[str]:
    node = _node_argument(index, read_only=disk.read_only)
    return [
        "-add-fd", f"fd={disk.fd},set={index + 1}",
        "-blockdev",
        f"{node},file.driver=file,file.filename=/dev/fdset/{index + 1},file.locking=off",
        *_disk_device(index),
    ]  # fmt: skip


def _empty_disk(index: int, *, read_only: bool) -> list[str]:
    # Whether it is writable is a trait of the device, which must be the same when another disk is in its place.
    blockdev = f"{_node_argument(index, read_only=read_only)},file.driver=null-co,file.size=512"
    return ["-blockdev", blockdev, *_disk_device(index)]


def _disk_device(index: int) -> list[str]:
    return ["-device", f"virtio-blk-device,drive=disk{index},serial=disk{index}"]


def _file_system(index: int, fd: int) -> list[str]:
    return [
        "-chardev", f"socket,id=fs{index},fd={fd}",
        "-device", f"vhost-user-fs-device,chardev=fs{index},tag={file_system_tag(index)}",
    ]  # fmt: skip


def file_system_tag(index: int) -> str:
    """By which the guest mounts it."""
    return f"fs{index}"


def _network(spec: VmSpec) -> list[str]:
    device = f"virtio-net-device,mac={PLACEHOLDER_MAC}"
    if spec.tap_fd is None:
        return ["-device", device]
    return ["-netdev", f"tap,id=net,fd={spec.tap_fd}", "-device", f"{device},netdev=net"]
