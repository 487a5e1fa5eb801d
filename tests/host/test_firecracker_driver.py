"""The Firecracker driver over a stand-in that judges every request, and what it says when things go wrong.

Firecracker itself is not run by any test: it needs KVM.
"""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.conftest import REPO
from tests.support.driver_harness import FirecrackerHarness
from tests.support.firecracker_bench import FirecrackerBench

from hutch.apps.host import build_agent
from hutch.apps.paths import Paths
from hutch.base.clock import SystemClock
from hutch.host.drivers.contract import (
    Attachment,
    DriverError,
    SandboxExited,
    SandboxGone,
    SandboxSpec,
    SupportsSuspend,
)
from hutch.host.drivers.firecracker.driver import FirecrackerDriver
from hutch.host.drivers.firecracker.program import monitor_program
from hutch.host.drivers.microvm.jail import Confinement, MonitorJail
from hutch.host.kernel.process import find_processes
from hutch.host.kernel.tap import own_tap
from hutch.settings import load_settings
from hutch.wire.taskspec import TaskSpec

pytestmark = pytest.mark.needs("root", "qemu", "guest_image")


@pytest.fixture
def bench(tmp_path: Path) -> FirecrackerBench:
    """A platform that has found out before that KVM works."""
    made = FirecrackerBench(tmp_path, f"t{secrets.token_hex(3)}", guest="none")
    made.trust_kvm("1.8.0", "1.12.0")
    return made


@pytest.fixture
async def driver(bench: FirecrackerBench) -> AsyncIterator[FirecrackerDriver]:
    made = bench.driver()
    yield made
    await made.close()
    assert find_processes(f"hutch-{bench.platform_id}-task") == ()
    assert not (bench.directory / "sandbox" / "vm").exists()


def sandbox(bench: FirecrackerBench, **changes: object) -> SandboxSpec:
    directory = bench.directory / "sandbox"
    directory.mkdir(mode=0o700, exist_ok=True)
    members: dict[str, object] = {
        "task_id": "task", "cluster": "c", "arn": "a", "family": "f", "revision": 1, "launch_type": "FARGATE",
        "cpu_units": 256, "memory_mib": 128, "ephemeral_gib": 1, "network_mode": "none", "containers": (), **changes,
    }  # fmt: skip
    return SandboxSpec(task=TaskSpec(**members), directory=str(directory), images={}, attachment=Attachment())  # type: ignore[arg-type]


async def _fault(driver: FirecrackerDriver, spec: SandboxSpec) -> DriverError:
    with pytest.raises(DriverError) as caught:
        await driver.create(spec)
    return caught.value


async def test_a_refusal_is_told_in_firecrackers_words(
    bench: FirecrackerBench, driver: FirecrackerDriver
) -> None:
    bench.set(fail={"PUT /vsock": "Cannot create the vsock device."})
    fault = await _fault(driver, sandbox(bench))
    assert fault.kind == "VmMonitorFailed"
    assert "PUT /vsock: Cannot create the vsock device." in fault.message


async def test_a_process_that_dies_is_the_cause(bench: FirecrackerBench, driver: FirecrackerDriver) -> None:
    bench.set(die_at="PUT /actions")
    fault = await _fault(driver, sandbox(bench))
    assert isinstance(fault, SandboxGone) and fault.kind == "VmFailed"
    assert "exit code 1" in fault.message and "something terrible happened" in fault.message


async def test_a_process_that_never_serves_its_api(
    bench: FirecrackerBench, driver: FirecrackerDriver
) -> None:
    bench.program.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'Firecracker v1.12.0'; exit; }\necho no KVM here; exit 3\n"
    )
    fault = await _fault(driver, sandbox(bench))
    assert "no KVM here" in fault.message


async def test_a_guest_that_never_calls(bench: FirecrackerBench) -> None:
    impatient = bench.driver(boot_timeout_s=1.5)
    fault = await _fault(impatient, sandbox(bench))
    assert fault.kind == "GuestTimeout" and fault.retryable
    assert find_processes(f"hutch-{bench.platform_id}-task") == ()
    await impatient.close()


async def test_an_api_that_hangs(bench: FirecrackerBench) -> None:
    bench.set(hang_at="PUT /boot-source")
    impatient = bench.driver(boot_timeout_s=1.5)
    assert (await _fault(impatient, sandbox(bench))).kind == "GuestTimeout"
    assert find_processes(f"hutch-{bench.platform_id}-task") == ()
    await impatient.close()


async def test_a_version_that_is_too_old(bench: FirecrackerBench, driver: FirecrackerDriver) -> None:
    bench.set(version="1.7.0")
    fact = await driver.fingerprint()
    assert not fact.healthy and "Firecracker 1.7.0" in fact.reason and "--firecracker-program" in fact.reason


async def test_the_oldest_that_works(bench: FirecrackerBench, driver: FirecrackerDriver) -> None:
    bench.set(version="1.8.0")
    fact = await driver.fingerprint()
    assert fact.healthy and fact.details["firecracker"] == "1.8.0"


async def test_none_at_all(bench: FirecrackerBench, driver: FirecrackerDriver) -> None:
    bench.program.unlink()
    fact = await driver.fingerprint()
    assert (
        not fact.healthy and "can't be run" in fact.reason and "github.com/firecracker-microvm" in fact.reason
    )


async def test_a_host_without_kvm_says_so(bench: FirecrackerBench) -> None:
    """As it is made by the host's process, but for the jail."""
    made = FirecrackerDriver(
        platform_id=bench.platform_id,
        program=str(bench.program),
        guest_dir=REPO / "build" / "guest",
        state_dir=bench.state,
        clock=SystemClock(),
        jail=bench.jail(),
        obstacle=lambda cpuinfo: "the CPU shows neither vmx nor svm",
    )
    fact = await made.fingerprint()
    assert not fact.healthy and "neither vmx nor svm" in fact.reason
    await made.close()


async def test_a_guest_image_without_vmlinux(bench: FirecrackerBench, tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    guest.mkdir()
    for name in ("manifest.json", "vmlinuz", "initrd.img"):
        (guest / name).symlink_to(REPO / "build" / "guest" / name)
    made = FirecrackerDriver(
        platform_id=bench.platform_id,
        program=str(bench.program),
        guest_dir=guest,
        state_dir=bench.state,
        clock=SystemClock(),
        jail=bench.jail(),
        obstacle=lambda cpuinfo: "",
    )
    fact = await made.fingerprint()
    assert not fact.healthy and "vmlinux" in fact.reason and "make setup" in fact.reason
    await made.close()


async def test_more_than_it_can_do_is_refused_before_anything_is_made(
    bench: FirecrackerBench, driver: FirecrackerDriver
) -> None:
    fault = await _fault(driver, sandbox(bench, cpu_units=33 * 1024))
    assert fault.kind == "TooManyVcpus" and fault.fix
    assert not isinstance(driver, SupportsSuspend)


async def test_how_a_vm_ended_is_known(tmp_path: Path) -> None:
    """Killed from outside; and by its own kernel's panic, whose words are kept."""
    harness = FirecrackerHarness(tmp_path)
    driver = harness.new_driver()
    panics = msgspec.structs.replace(
        harness.exits("a", 0), privileged=True, command=("/bin/sh", "-c", "echo c > /proc/sysrq-trigger")
    )
    spec = harness.sandbox(panics)
    handle = await driver.create(spec)
    events = driver.events(handle)
    await driver.start_container(handle, panics)
    async with asyncio.timeout(30):
        event = await anext(events)
    assert isinstance(event, SandboxExited) and event.kind == "GuestKernelPanicked"
    assert "sysrq" in event.text
    assert "Kernel panic" in (Path(spec.directory) / "console.log").read_text()
    await driver.destroy(handle)

    handle = await driver.create(spec)
    os.kill(handle.state["pid"], signal.SIGKILL)
    async with asyncio.timeout(30):
        event = await anext(driver.events(handle))
    assert isinstance(event, SandboxExited) and event.kind == "VmKilled"
    await driver.destroy(handle)
    await driver.close()
    assert harness.remains() == []


async def test_only_its_own_user_can_open_a_tap(tmp_path: Path) -> None:
    name = f"ht{secrets.token_hex(4)}"
    run = await asyncio.create_subprocess_exec("ip", "tuntap", "add", "dev", name, "mode", "tap")
    assert await run.wait() == 0
    code = (
        "import fcntl, os, struct, sys; fd = os.open('/dev/net/tun', os.O_RDWR); "
        "os.setresuid(int(sys.argv[2]), *[int(sys.argv[2])] * 2); "
        "fcntl.ioctl(fd, 0x400454CA, struct.pack('16sH22x', sys.argv[1].encode(), 0x5002))"
    )
    try:
        own_tap(name, 70_001)
        outcomes = []
        for user in ("70001", "70002"):
            child = await asyncio.create_subprocess_exec(
                "/usr/bin/python3", "-c", code, name, user, stderr=asyncio.subprocess.DEVNULL
            )
            outcomes.append(await child.wait())
        assert outcomes == [0, 1]
    finally:
        run = await asyncio.create_subprocess_exec("ip", "link", "delete", name)
        await run.wait()


async def test_devices_that_only_root_can_open_are_named(tmp_path: Path) -> None:
    device = tmp_path / "tun"
    device.touch(mode=0o600)
    program = msgspec.structs.replace(monitor_program("/bin/true"), devices={"kvm": (str(device),)})
    jail = MonitorJail(
        platform_id="t", state_dir=tmp_path / "state", confinement=Confinement(), monitor=program
    )
    with pytest.raises(DriverError, match="only root can open") as caught:
        await jail.check()
    assert "chmod" in caught.value.fix
    device.unlink()
    with pytest.raises(DriverError, match="not there"):
        await jail.check()


async def test_the_host_offers_it_only_if_it_was_asked_for(tmp_path: Path) -> None:
    """As the host's process makes it: with the real jail, on a machine that most likely has no Firecracker."""
    default = load_settings({"data_dir": str(tmp_path)}, environment={})
    assert "firecracker" not in default.drivers.split(",")
    given = {"data_dir": str(tmp_path), "run_dir": str(tmp_path / "run"), "drivers": "firecracker"}
    given["firecracker_program"] = str(tmp_path / "nowhere" / "firecracker")
    settings = load_settings(given, environment={})
    paths = Paths(settings)
    paths.make()
    agent, _ = build_agent(settings, paths)
    (made,) = agent._context.drivers
    fact = await made.fingerprint()
    assert fact.name == "firecracker" and not fact.healthy
    assert "Firecracker" in fact.reason or "/dev/" in fact.reason
    await made.close()
