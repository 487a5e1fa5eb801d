"""The microVM driver's pure parts: QEMU's command line, why a VM ended, and what is refused."""

import msgspec
import pytest

from hutch.host.drivers.contract import Attachment, DriverError, RootImage, SandboxSpec
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.ending import Traces, explain
from hutch.host.drivers.microvm.qemu import (
    Disk,
    Memory,
    VmSpec,
    disk_slots,
    inherited_fds,
    machine_traits,
    qemu_argv,
    vm_memory_mib,
    vm_vcpus,
)
from hutch.wire.taskspec import (
    ContainerSpec,
    DeviceSpec,
    DiskSpec,
    FileSystemSpec,
    MountSpec,
    TaskSpec,
    VolumeSpec,
)

GOLDEN = """qemu-system-x86_64
-name hutch-p-t
-nodefaults
-no-user-config
-display none
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine microvm,acpi=on,dump-guest-core=off,memory-backend=memory
-accel tcg,thread=multi,tb-size=48
-cpu max,la57=off
-smp 2
-m 616M
-action reboot=shutdown,shutdown=pause,panic=pause
-object memory-backend-ram,id=memory,size=616M
-kernel /proc/self/fd/3
-initrd /proc/self/fd/4
-append console=ttyS0 quiet panic=-1 reboot=t no_timer_check cryptomgr.notests mitigations=off tsc=reliable tsc_early_khz=2596118
-chardev ringbuf,id=console,size=65536
-serial chardev:console
-chardev socket,id=qmp,fd=6,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev socket,id=agent,fd=5,server=on,wait=off
-device virtio-serial-device
-device virtserialport,chardev=agent,name=hutch.agent
-object rng-random,id=rng,filename=/dev/urandom
-device virtio-rng-device,rng=rng
-add-fd fd=7,set=1
-blockdev driver=raw,node-name=disk0,read-only=off,discard=unmap,detect-zeroes=unmap,file.driver=file,\
file.filename=/dev/fdset/1,file.locking=off
-device virtio-blk-device,drive=disk0,serial=disk0
-add-fd fd=8,set=2
-blockdev driver=raw,node-name=disk1,read-only=on,file.driver=file,file.filename=/dev/fdset/2,file.locking=off
-device virtio-blk-device,drive=disk1,serial=disk1
-blockdev driver=raw,node-name=disk2,read-only=on,file.driver=null-co,file.size=512
-device virtio-blk-device,drive=disk2,serial=disk2
-blockdev driver=raw,node-name=disk3,read-only=on,file.driver=null-co,file.size=512
-device virtio-blk-device,drive=disk3,serial=disk3
-netdev tap,id=net,fd=9
-device virtio-net-device,mac=02:00:00:00:00:00,netdev=net"""


def vm(accelerator: str = "tcg") -> VmSpec:
    return VmSpec(
        name="hutch-p-t",
        accelerator=accelerator,
        vcpus=2,
        memory_mib=616,
        kernel_fd=3,
        initrd_fd=4,
        agent_fd=5,
        qmp_fd=6,
        disks=(
            Disk(fd=7, read_only=False),
            Disk(fd=8, read_only=True),
        ),
        tap_fd=9,
        tsc_khz=2596118,
    )


def test_the_command_line_is_this() -> None:
    assert " ".join(qemu_argv(vm())) == " ".join(GOLDEN.split("\n"))
    assert list(inherited_fds(vm())) == [3, 4, 5, 6, 7, 8, 9]


def test_a_restored_vm_is_the_same_machine_without_a_kernel() -> None:
    restored = msgspec.structs.replace(
        vm(), kernel_fd=None, initrd_fd=None, incoming=True, memory=Memory(fd=3, shared=False)
    )
    argv = qemu_argv(restored)
    assert argv[argv.index("-incoming") + 1] == "defer"
    assert "-kernel" not in argv
    assert "memory-backend-file,id=memory,size=616M,mem-path=/proc/self/fd/3,share=off" in argv
    assert list(inherited_fds(restored)) == [5, 6, 7, 8, 9, 3]
    template = msgspec.structs.replace(vm(), disks=(), tap_fd=None, memory=Memory(fd=3, shared=True))
    assert machine_traits(restored) == machine_traits(vm()) == machine_traits(template)
    assert machine_traits(vm("kvm")) != machine_traits(vm())
    for change in ({"vcpus": 1}, {"memory_mib": 617}, {"disk_slots": 20}):
        assert machine_traits(msgspec.structs.replace(vm(), **change)) != machine_traits(vm())


def test_machines_have_room_for_a_few_disks_or_for_many() -> None:
    assert [disk_slots(n) for n in (1, 4, 5, 20)] == [4, 4, 20, 20]
    with pytest.raises(ValueError, match="20 disks"):
        disk_slots(21)


def test_file_systems_are_devices_of_todays_virtio_in_memory_that_is_shared() -> None:
    served = msgspec.structs.replace(
        vm(), memory=Memory(fd=20, shared=True), file_system_fds=(21, 22), disk_slots=4
    )
    line = " ".join(qemu_argv(served))
    assert "-global virtio-mmio.force-legacy=off" in line and "share=on" in line
    assert "-chardev socket,id=fs1,fd=22 -device vhost-user-fs-device,chardev=fs1,tag=fs1" in line
    assert {21, 22} <= set(inherited_fds(served))
    assert "force-legacy" not in " ".join(qemu_argv(vm()))
    many = msgspec.structs.replace(served, disk_slots=20)
    with pytest.raises(ValueError, match="slots left"):
        qemu_argv(many)


def test_kvm_brings_the_hosts_cpu_and_no_emulation_tricks() -> None:
    argv = qemu_argv(vm("kvm"))
    assert argv[argv.index("-accel") + 1] == "kvm"
    assert argv[argv.index("-cpu") + 1] == "host"
    assert "tsc" not in argv[argv.index("-append") + 1]
    assert "mitigations" not in argv[argv.index("-append") + 1]


@pytest.mark.parametrize(("units", "vcpus"), [(0, 1), (256, 1), (1024, 1), (1025, 2), (4096, 4)])
def test_a_vcpu_for_each_begun_1024_units(units: int, vcpus: int) -> None:
    assert vm_vcpus(units) == vcpus


def test_containers_get_the_memory_that_was_asked_for() -> None:
    assert vm_memory_mib(512) == 512 + 96 + 8


@pytest.mark.parametrize(
    ("traces", "kind"),
    [
        (
            Traces(shutdown_reason="guest-reset", console="Kernel panic - not syncing: x\n"),
            "GuestKernelPanicked",
        ),
        (Traces(shutdown_reason="guest-shutdown", console="hutch-agent: fatal: root\n"), "GuestAgentFailed"),
        (Traces(shutdown_reason="guest-shutdown"), "GuestPoweredOff"),
        (Traces(shutdown_reason="guest-reset"), "GuestReset"),
        (Traces(exit_code=-9, oom_record="Killed process 1 (qemu)"), "HostOutOfMemory"),
        (
            Traces(exit_code=-9, oom_record="Memory cgroup out of memory: Killed process 1"),
            "VmOverMemoryLimit",
        ),
        (Traces(exit_code=-9), "VmKilled"),
        (Traces(exit_code=1, qemu_output="no\nbad option\n"), "VmFailed"),
        (Traces(), "VmEnded"),
    ],
)
def test_every_end_has_its_one_cause(traces: Traces, kind: str) -> None:
    event = explain(traces, at=1.0, memory_mib=512)
    assert event.kind == kind
    assert event.text


DEVICE = ContainerSpec(
    name="a",
    container_id="1",
    image="x",
    devices=(DeviceSpec(host_path="/dev/nvme0", container_path="/dev/x"),),
)


def sandbox(**changes: object) -> SandboxSpec:
    members: dict[str, object] = {
        "task_id": "t", "cluster": "c", "arn": "a", "family": "f", "revision": 1, "launch_type": "FARGATE",
        "cpu_units": 256, "memory_mib": 512, "ephemeral_gib": 20, "network_mode": "awsvpc",
        "containers": tuple(ContainerSpec(name=n, container_id=n, image=n) for n in ("a", "b", "c")), **changes,
    }  # fmt: skip
    same = RootImage(reference="x", digest="sha256:1", config={"Cmd": ["run"]}, erofs_path="/1")
    other = RootImage(reference="y", digest="sha256:2", config={"Cmd": ["run"]}, erofs_path="/2")
    return SandboxSpec(
        task=TaskSpec(**members),  # type: ignore[arg-type]
        directory="/d",
        images={"a": same, "b": other, "c": same},
        attachment=Attachment(),
    )


def test_containers_with_the_same_image_share_a_disk() -> None:
    disks = plan.image_disks(sandbox())
    assert disks["a"] == disks["c"] != disks["b"]
    assert [m["serial"] for m in plan.disk_mounts(sandbox())] == ["disk1", "disk2", "disk0"]


def test_a_vms_images_are_in_the_order_of_their_serials() -> None:
    # As text, disk10 would come before disk2, and the guest would find another image under that serial.
    images = {
        f"c{n}": RootImage(reference="x", digest=f"sha256:{n:02}", config={}, erofs_path=f"/{n}")
        for n in range(12)
    }
    spec = msgspec.structs.replace(sandbox(), images=images | {"again": images["c3"]})
    assert plan.image_files(spec) == [(f"disk{n + 1}", f"/{n}") for n in range(12)]


def test_disks_that_can_be_written_to_come_first() -> None:
    volumes = (
        VolumeSpec(name="plain"),
        VolumeSpec(name="own", disk=DiskSpec(disk_id="vol-1", size_gib=1, filesystem="ext3")),
        VolumeSpec(name="shared", shared_name="s"),
    )
    spec = sandbox(volumes=volumes)
    found = {m["serial"]: (m["path"], m["fs"], m["read_only"]) for m in plan.disk_mounts(spec)}
    assert found == {
        "disk0": ("/disk/scratch", "ext4", False),
        "disk1": ("/disk/volume0", "ext4", False),
        "disk2": ("/disk/volume1", "ext4", False),
        "disk3": ("/disk/image0", "erofs", True),
        "disk4": ("/disk/image1", "erofs", True),
    }
    places = plan.oci_context(spec, spec.task.containers[0], 1).volumes
    assert places == {
        "plain": "/disk/scratch/volumes/plain",
        "own": "/disk/volume0",
        "shared": "/disk/volume1/data",
    }


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"architecture": "aarch64"}, "WrongArchitecture"),
        ({"volumes": (VolumeSpec(name="v", source_path="/etc"),)}, "HostVolumeNotPossible"),
        ({"volumes": (VolumeSpec(name="../v"),)}, "InvalidName"),
        ({"containers": (ContainerSpec(name="a/b", container_id="1", image="x"),)}, "InvalidName"),
        ({"pid_mode": "host"}, "HostNamespaceNotPossible"),
        ({"containers": (DEVICE,)}, "NoSuchDevice"),
    ],
)
def test_what_can_not_be_done_is_refused(changes: dict[str, object], kind: str) -> None:
    plan.check_task(sandbox())
    with pytest.raises(DriverError) as caught:
        plan.check_task(sandbox(**changes))
    assert caught.value.kind == kind


def test_runtime_ids_are_the_same_after_a_restart_and_differ_between_starts() -> None:
    assert plan.runtime_id("t", "a", 1) == plan.runtime_id("t", "a", 1)
    assert len({plan.runtime_id("t", n, i) for n in "ab" for i in (1, 2)}) == 4


def test_a_directory_of_a_file_system_is_mounted_once_and_never_filled() -> None:
    one, other = (FileSystemSpec(file_system_id="fs-1", root=r) for r in ("/", "/a"))
    volumes = tuple(VolumeSpec(name=n, file_system=f) for n, f in (("v", one), ("w", one), ("x", other)))
    mounts = tuple(MountSpec(volume=n, path=f"/{n}") for n in "vwx")
    spec = sandbox(volumes=volumes)
    container = msgspec.structs.replace(spec.task.containers[0], mounts=mounts)
    task = msgspec.structs.replace(spec.task, containers=(container, *spec.task.containers[1:]))
    spec = msgspec.structs.replace(spec, task=task)
    assert plan.file_systems(spec.task) == (one, other)
    tags = [(m["tag"], m["path"]) for m in plan.disk_mounts(spec) if m["fs"] == "virtiofs"]
    assert tags == [("fs0", "/disk/filesystem0"), ("fs1", "/disk/filesystem1")]
    started = plan.start_members(spec, container, 1)
    assert started["seeds"] == [] and started["directories"] == [
        "/disk/filesystem0",
        "/disk/filesystem0",
        "/disk/filesystem1",
    ]


def test_a_machine_has_room_for_so_many_file_systems() -> None:
    volumes = tuple(
        VolumeSpec(name=f"v{i}", file_system=FileSystemSpec(file_system_id="fs-1", root=f"/{i}"))
        for i in range(9)
    )
    with pytest.raises(DriverError) as refused:
        plan.check_task(sandbox(volumes=volumes))
    assert refused.value.kind == "TooManyFileSystems"
    plan.check_task(sandbox(volumes=volumes[:8]))
