"""From what a VM shall be to QEMU's command line. Pure; every line of it is held by a golden test.

All files reach QEMU as open descriptors, so that it can run as a user who may open nothing.
"""

from collections.abc import Sequence

import msgspec

PROGRAM = "qemu-system-x86_64"
CONSOLE_BYTES = 65536
"""Size of the ring in QEMU's memory that keeps the end of what the guest wrote to its console (a power of
two)."""
TCG_BUFFER_MIB = 128
"""Translated code of an emulated guest is kept up to this; QEMU's own default may take a gigabyte of the
host."""
MAX_DISKS = 20
"""The machine has 24 virtio-mmio slots; channel, randomness and network take three."""
MEMORY_OVERHEAD_MIB = 96
"""The guest's own needs, measured: kernel and its tables 40 MiB, root in memory with modules and crun 45
MiB."""
MEMORY_OVERHEAD_DIVISOR = 64
"""The kernel's page structures: 64 bytes for each 4 KiB page."""


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk, found in the guest by its serial (at most 20 bytes)."""

    serial: str
    fd: int
    read_only: bool


class VmSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A VM. Descriptors are those that QEMU inherits."""

    name: str
    accelerator: str
    """"kvm" or "tcg"."""
    vcpus: int
    memory_mib: int
    kernel_fd: int
    initrd_fd: int
    agent_fd: int
    """Listening socket of the agent's channel."""
    qmp_fd: int
    """Listening socket of QEMU's monitor."""
    disks: tuple[Disk, ...] = ()
    tap_fd: int | None = None
    mac: str = ""
    tsc_khz: int = 0
    """Frequency of the host's time stamp counter; 0: the guest shall measure it."""


def vm_memory_mib(task_memory_mib: int) -> int:
    """Memory of the VM, so that the containers get what the task asked for; the rest is the guest's own."""
    return task_memory_mib + MEMORY_OVERHEAD_MIB + task_memory_mib // MEMORY_OVERHEAD_DIVISOR


def vm_vcpus(cpu_units: int) -> int:
    """Virtual CPUs of a task: 1,024 units each, rounded up, at least one."""
    return max(1, -(-cpu_units // 1024))


def qemu_argv(spec: VmSpec) -> list[str]:
    """The whole command line. Raises `ValueError` for more disks than the machine has room for."""
    if len(spec.disks) > MAX_DISKS:
        raise ValueError(f"a microVM has room for {MAX_DISKS} disks, not for {len(spec.disks)}")
    return [
        PROGRAM,
        *_machine(spec),
        *_kernel(spec),
        *_channels(spec),
        *(a for i, disk in enumerate(spec.disks) for a in _disk(i, disk)),
        *_network(spec),
    ]


def inherited_fds(spec: VmSpec) -> Sequence[int]:
    """All descriptors that the command line names."""
    fds = [spec.kernel_fd, spec.initrd_fd, spec.agent_fd, spec.qmp_fd, *(d.fd for d in spec.disks)]
    return fds if spec.tap_fd is None else [*fds, spec.tap_fd]


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
        "-machine", "microvm,acpi=on,dump-guest-core=off",
        "-accel", "kvm" if kvm else f"tcg,thread=multi,tb-size={TCG_BUFFER_MIB}",
        # Five-level page tables cost an emulated CPU time and bring nothing below 128 TiB.
        "-cpu", "host" if kvm else "max,la57=off",
        "-smp", str(spec.vcpus),
        "-m", f"{spec.memory_mib}M",
        # A VM that has ended stays, paused, until its last words were read; see `sandbox.py`.
        "-action", "reboot=shutdown,shutdown=pause,panic=pause",
    ]  # fmt: skip


def _kernel(spec: VmSpec) -> list[str]:
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
        "-device", "virtserialport,chardev=agent,name=hutch.agent",
        "-object", "rng-random,id=rng,filename=/dev/urandom",
        "-device", "virtio-rng-device,rng=rng",
    ]  # fmt: skip


def _disk(index: int, disk: Disk) -> list[str]:
    # Freed blocks, and blocks of zeros, become holes again: the scratch disk's file is sparse.
    mode = "read-only=on" if disk.read_only else "read-only=off,discard=unmap,detect-zeroes=unmap"
    return [
        "-add-fd", f"fd={disk.fd},set={index + 1}",
        "-blockdev",
        f"driver=raw,node-name=disk{index},{mode},file.driver=file,file.filename=/dev/fdset/{index + 1},"
        f"file.locking=off",
        "-device", f"virtio-blk-device,drive=disk{index},serial={disk.serial}",
    ]  # fmt: skip


def _network(spec: VmSpec) -> list[str]:
    if spec.tap_fd is None:
        return []
    return [
        "-netdev", f"tap,id=net,fd={spec.tap_fd}",
        "-device", f"virtio-net-device,netdev=net,mac={spec.mac}",
    ]  # fmt: skip
