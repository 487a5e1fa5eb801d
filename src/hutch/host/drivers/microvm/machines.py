"""What machine a task's VM is, and what a template or a saved state of one must have in common with it. Pure."""

import hashlib

import msgspec

from hutch.host.drivers.contract import SandboxSpec
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.accelerator import Verdict
from hutch.host.drivers.microvm.image import Machine
from hutch.host.drivers.microvm.qemu import (
    Memory,
    VmSpec,
    disk_slots,
    machine_traits,
    vm_memory_mib,
    vm_vcpus,
)
from hutch.host.drivers.microvm.qemu_process import VmRequest
from hutch.host.drivers.microvm.templates import TemplateKey
from hutch.host.drivers.microvm.vm import GuestImage, VmFiles
from hutch.host.drivers.volume_disks import VolumeStore, volume_disks


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What all VMs of this host have in common."""

    image: GuestImage
    qemu_version: str
    accelerator: str
    verdict: Verdict
    cpu: str

    @property
    def origin(self) -> str:
        """A word for all of it: templates of another one are of no use."""
        parts = (self.image.key, self.qemu_version, self.accelerator, self.cpu)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def task_request(
    spec: SandboxSpec, name: str, accelerator: str, volumes: VolumeStore, *, tsc_khz: int
) -> VmRequest:
    """The VM of a task, as it would boot. Raises `DriverError`, `ValueError` for more disks than any machine has."""
    task = spec.task
    files = VmFiles(spec.directory)
    own = (files.scratch, *(volumes.place(d, files.vm) for d in volume_disks(task)))
    disks = (*((str(p), False) for p in own), *((path, True) for _, path in plan.image_files(spec)))
    return VmRequest(
        name=name,
        accelerator=accelerator,
        vcpus=vm_vcpus(task.cpu_units),
        memory_mib=vm_memory_mib(task.memory_mib),
        cpu_units=task.cpu_units,
        disks=disks,
        disk_slots=disk_slots(len(disks)),
        writable_disks=len(own),
        tap=spec.attachment.tap,
        tsc_khz=tsc_khz,
    )


def template_request(key: TemplateKey, name: str, memory_fd: int, *, tsc_khz: int) -> VmRequest:
    """The VM that becomes the template of a key: no task's, its memory shared with a file."""
    return VmRequest(
        name=name,
        accelerator=key.accelerator,
        vcpus=key.vcpus,
        memory_mib=key.memory_mib,
        disk_slots=key.disk_slots,
        writable_disks=key.writable_disks,
        tsc_khz=tsc_khz,
        memory=Memory(fd=memory_fd, shared=True),
    )


def template_key(request: VmRequest, ground: Ground) -> TemplateKey:
    """The template from which a VM can be restored."""
    return TemplateKey(
        origin=ground.origin,
        machine=machine_traits(_plain_spec(request)),
        accelerator=request.accelerator,
        vcpus=request.vcpus,
        memory_mib=request.memory_mib,
        disk_slots=request.disk_slots,
        writable_disks=request.writable_disks,
    )


def machine_of(request: VmRequest, ground: Ground) -> Machine:
    """What a VM is, as far as its saved state depends on it."""
    traits = machine_traits(_plain_spec(request))
    return Machine(
        traits=hashlib.sha256(traits.encode()).hexdigest(),
        qemu_version=ground.qemu_version,
        accelerator=request.accelerator,
        cpu=hashlib.sha256(ground.cpu.encode()).hexdigest()[:16],
    )


def _plain_spec(request: VmRequest) -> VmSpec:
    return VmSpec(
        name="",
        accelerator=request.accelerator,
        vcpus=request.vcpus,
        memory_mib=request.memory_mib,
        agent_fd=0,
        qmp_fd=0,
        disk_slots=request.disk_slots,
        writable_disks=request.writable_disks,
    )
