"""What Firecracker is told, judged by its own description of its API; which versions are used; disks' serials."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.firecracker_api import ApiDocument, Refused

from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.firecracker.config import (
    MAX_DISKS,
    MAX_VCPUS,
    VmConfig,
    boot_requests,
    disk_serial,
    kernel_arguments,
    load_requests,
    machine_traits,
    save_requests,
)
from hutch.host.drivers.firecracker.program import arguments, monitor_program, parse_version

DOCUMENT = ApiDocument()
CONFIGS = st.builds(
    VmConfig,
    vcpus=st.integers(1, MAX_VCPUS),
    memory_mib=st.integers(128, 1 << 20),
    disks=st.integers(0, MAX_DISKS),
    tap=st.sampled_from(["", "h1234t5678"]),
)


@given(config=CONFIGS)
def test_every_request_is_what_the_document_allows(config: VmConfig) -> None:
    requests = boot_requests(config)
    operations = [DOCUMENT.check(r.method, r.path, r.body, booted=False) for r in requests]
    assert operations[-1] == "createSyncAction", "nothing comes after the start"
    assert operations.count("putGuestDriveByID") == config.disks
    assert operations.count("putGuestNetworkInterfaceByID") == (1 if config.tap else 0)


@given(config=CONFIGS)
def test_saving_and_restoring_too(config: VmConfig) -> None:
    saving = [DOCUMENT.check(r.method, r.path, r.body, booted=True) for r in save_requests()]
    assert saving == ["patchVm", "createSnapshot"]
    (load,) = load_requests(config, memory="/proc/self/fd/5", state="/proc/self/fd/6")
    assert DOCUMENT.check(load.method, load.path, load.body, booted=False) == "loadSnapshot"
    assert load.body["mem_backend"] == {"backend_type": "File", "backend_path": "/proc/self/fd/5"}
    assert [o["host_dev_name"] for o in load.body.get("network_overrides", [])] == (
        [config.tap] if config.tap else []
    )


@given(config=CONFIGS, tap=st.sampled_from(["a", "b"]))
def test_a_template_fits_any_tap_but_not_none(config: VmConfig, tap: str) -> None:
    same = msgspec.structs.replace(config, tap=tap if config.tap else "")
    assert machine_traits(same) == machine_traits(config)
    other = msgspec.structs.replace(config, tap="" if config.tap else tap)
    assert machine_traits(other) != machine_traits(config)


@pytest.mark.parametrize(
    ("method", "path", "body", "booted"),
    [
        ("PUT", "/machine-config", {"vcpu_count": 1}, False),
        ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 128}, False),
        ("PUT", "/machine-config", {"vcpu_count": "1", "mem_size_mib": 128}, False),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128, "speed": 1}, False),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128}, True),
        ("PUT", "/drives/a", {"drive_id": "b", "is_root_device": False}, False),
        ("PUT", "/vsock", {"guest_cid": 2, "uds_path": "/run/agent.sock"}, False),
        ("PUT", "/actions", {"action_type": "Start"}, False),
        ("PATCH", "/drives/a", {"drive_id": "a"}, False),
        ("DELETE", "/vm", None, True),
    ],
)
def test_the_judge_refuses(method: str, path: str, body: dict[str, object], booted: bool) -> None:
    with pytest.raises(Refused):
        DOCUMENT.check(method, path, body, booted=booted)


def test_the_kernel_is_told_where_the_channel_is_and_how_to_end() -> None:
    words = kernel_arguments().split()
    assert "hutch_vsock=1024" in words and "reboot=k" in words and "panic=-1" in words


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DriverError, match="32 vCPUs"):
        boot_requests(VmConfig(vcpus=33, memory_mib=128))
    with pytest.raises(DriverError, match="14 different images"):
        boot_requests(VmConfig(vcpus=1, memory_mib=128, disks=16))


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("Firecracker v1.8.0\n\n", "1.8.0"),
        ("Firecracker v1.12.1-dev\n", "1.12.1"),
        ("x\nFirecracker v2.0.0", "2.0.0"),
    ],
)
def test_versions_that_can_be_used(output: str, version: str) -> None:
    assert parse_version(output).version_text == version


@pytest.mark.parametrize(
    ("output", "kind", "words"),
    [
        ("Firecracker v1.7.0\n", "FirecrackerTooOld", "ACPI"),
        ("Firecracker v0.25.2\n", "FirecrackerTooOld", "1.8.0"),
        ("QEMU emulator version 7.2\n", "FirecrackerUnknown", "QEMU emulator"),
        ("", "FirecrackerUnknown", "not a Firecracker"),
    ],
)
def test_versions_that_can_not(output: str, kind: str, words: str) -> None:
    with pytest.raises(DriverError, match=words) as caught:
        parse_version(output)
    assert caught.value.kind == kind and caught.value.fix


def test_the_serial_is_of_the_files_numbers(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    status = os.stat(path)
    serial = disk_serial(status.st_dev, status.st_rdev, status.st_ino)
    assert serial == f"{status.st_dev}{status.st_rdev}{status.st_ino}"[:20]
    assert len(disk_serial(2**32, 2**32, 2**64)) == 20


def test_the_process_is_found_by_its_name_and_sees_what_it_needs() -> None:
    assert arguments("firecracker", "hutch-p-t")[1:3] == ["--id", "hutch-p-t"]
    jail = monitor_program("firecracker")
    assert set(jail.devices["kvm"]) == {"/dev/kvm", "/dev/net/tun", "/dev/urandom"}
    assert {"/boot/vmlinux", "/boot/initrd.img", "/disks/disk0", "/disks/disk14"} <= set(jail.files)
