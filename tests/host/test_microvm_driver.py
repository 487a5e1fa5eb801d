"""The microVM driver with real VMs: QEMU, the real guest image, a busybox root disk."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.looking import look_until_async
from tests.support.microvm_bench import Bench, container, exit_of, next_event

from hutch.base.clock import SystemClock
from hutch.host.drivers.contract import (
    Attachment,
    DriverError,
    SandboxExited,
    SandboxGone,
)
from hutch.host.drivers.microvm.driver import MicrovmDriver
from hutch.host.kernel.cgroup import CGROUP_MOUNT, task_cgroup
from hutch.host.kernel.process import ProcessRef, find_processes, is_alive
from hutch.wire.taskspec import DeviceSpec, InterfaceSpec, MountSpec, VolumeSpec

pytestmark = pytest.mark.needs("root", "qemu", "guest_image")
EVENT_TIMEOUT_S = 60


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        await bench.end()


async def test_a_container_runs_and_its_output_and_exit_code_arrive(bench: Bench) -> None:
    one = container("one", "echo out $FROM_IMAGE $GIVEN; echo err >&2; exit 3", environment={"GIVEN": "too"})
    handle = await bench.create(bench.spec(one))
    events = bench.driver.events(handle)
    started = await bench.driver.start_container(handle, one)
    assert len(started.runtime_id) == 64
    exited = await exit_of(events, "one")
    assert exited.status.exit_code == 3
    assert exited.runtime_id == started.runtime_id
    assert sorted(bench.log_text("one").splitlines()) == ["err", "out yes too"]
    assert (bench.directory / "logs" / "one.log").stat().st_mode & 0o777 == 0o600


async def test_an_exit_is_told_once_and_the_same_name_can_start_again(bench: Bench) -> None:
    one = container("one", "echo run; touch /seen-$(ls / | grep -c seen); ls / | grep seen")
    handle = await bench.create(bench.spec(one))
    events = bench.driver.events(handle)
    first = await bench.driver.start_container(handle, one)
    assert (await exit_of(events, "one")).runtime_id == first.runtime_id
    second = await bench.driver.start_container(handle, one)
    assert second.runtime_id != first.runtime_id
    assert (await exit_of(events, "one")).runtime_id == second.runtime_id
    # A restart keeps the container's files, as Docker does.
    assert bench.log_text("one").splitlines() == ["run", "seen-0", "run", "seen-0", "seen-1"]


async def test_signals_probes_and_stats_reach_a_running_container(bench: Bench) -> None:
    script = "trap 'echo got it; exit 7' TERM; echo ready; while true; do sleep 0.1; done"
    one = container("one", script, user="app")
    handle = await bench.create(bench.spec(one))
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, one)
    well = await bench.driver.probe(handle, "one", ("/bin/sh", "-c", "id -u; id -G; echo $HOME; exit 4"), 20)
    assert (well.exit_code, well.timed_out, well.output) == (4, False, "1000\n1000 2000\n/home/app\n")
    late = await bench.driver.probe(handle, "one", ("sleep", "30"), 1)
    assert late.timed_out
    stats = await bench.driver.stats(handle)
    assert stats.host_memory_bytes > 30 * 2**20
    assert stats.host_cpu_ns > 0
    assert stats.containers["one"].memory_bytes > 0
    await bench.driver.signal_container(handle, "one", signal.SIGTERM)
    assert (await exit_of(events, "one")).status.exit_code == 7
    await bench.driver.signal_container(handle, "one", signal.SIGTERM)
    with pytest.raises(DriverError):
        await bench.driver.probe(handle, "one", ("true",), 5)


async def test_a_killed_container_says_by_which_signal_and_an_oom_names_its_process(bench: Bench) -> None:
    one = container("one", "sleep 1000")
    # One allocation of more than the limit: no time for anything but the OOM killer.
    hungry = container("hungry", "exec dd if=/dev/zero of=/dev/null bs=60M count=1", memory_mib=32)
    handle = await bench.create(bench.spec(one, hungry))
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, one)
    await bench.driver.signal_container(handle, "one", signal.SIGKILL)
    killed = await exit_of(events, "one")
    assert (killed.status.exit_code, killed.status.signal, killed.status.oom) == (137, 9, False)
    await bench.driver.start_container(handle, hungry)
    oom = await exit_of(events, "hungry")
    assert oom.status.oom
    assert oom.status.exit_code == 137
    assert oom.status.oom_process == "dd"


async def test_what_can_not_be_started_says_why(bench: Bench) -> None:
    absent = container("absent", "", command=("/no/such/program",))
    user = container("user", "true", user="nobody-here")
    ok = container("ok", "true")
    handle = await bench.create(bench.spec(absent, user, ok))
    with pytest.raises(DriverError) as caught:
        await bench.driver.start_container(handle, absent)
    assert caught.value.kind == "ExecNotFound"
    assert caught.value.aws_prefix == "CannotStartContainerError"
    with pytest.raises(DriverError) as caught:
        await bench.driver.start_container(handle, user)
    assert caught.value.kind == "UserNotFound"
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, ok)
    assert (await exit_of(events, "ok")).status.exit_code == 0


async def test_another_agent_takes_over_with_exits_and_output_that_happened_meanwhile(bench: Bench) -> None:
    script = "i=0; while test $i -lt 400; do echo line $i; i=$((i+1)); done; sleep 1000"
    stays, leaves = container("stays", script), container("leaves", "sleep 2; echo bye; exit 5")
    spec = bench.spec(stays, leaves)
    handle = await bench.create(spec)
    one = await bench.driver.start_container(handle, stays)
    two = await bench.driver.start_container(handle, leaves)
    await bench.driver.close()
    other = bench.driver = bench.make_driver()
    observed = {o.name: o for o in await other.adopt(handle, spec)}
    assert observed["stays"].running
    assert observed["stays"].runtime_id == one.runtime_id
    assert observed["leaves"].runtime_id == two.runtime_id
    events = other.events(handle)
    assert (await exit_of(events, "leaves")).status.exit_code == 5
    await other.signal_container(handle, "stays", signal.SIGKILL)
    await exit_of(events, "stays")
    assert bench.log_text("stays").splitlines() == [f"line {i}" for i in range(400)]
    assert bench.log_text("leaves") == "bye\n"
    # An agent life later the exits are told again, from the guest's own state.
    await other.close()
    third = bench.driver = bench.make_driver()
    observed = {o.name: o for o in await third.adopt(handle, spec)}
    assert not observed["leaves"].running
    events = third.events(handle)
    told = {e.container: e.status.exit_code for e in [await next_event(events), await next_event(events)]}  # type: ignore[union-attr]
    assert told == {"leaves": 5, "stays": 137}


async def test_a_vm_that_is_killed_ends_the_sandbox_and_says_by_what(bench: Bench) -> None:
    one = container("one", "sleep 1000")
    handle = await bench.create(bench.spec(one))
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, one)
    os.kill(handle.state["pid"], signal.SIGKILL)
    ended = await next_event(events)
    assert isinstance(ended, SandboxExited)
    assert ended.kind == "VmKilled"
    assert "signal 9" in ended.text
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    with pytest.raises(SandboxGone):
        await bench.driver.stats(handle)
    other = bench.make_driver()
    with pytest.raises(SandboxGone):
        await other.adopt(handle, bench.spec(one))


async def test_a_guest_panic_is_told_with_the_kernels_words_even_to_a_later_agent(bench: Bench) -> None:
    script = "sleep 2; mount -t proc proc /proc 2>/dev/null; echo c > /proc/sysrq-trigger"
    one = container("one", script, privileged=True)
    spec = bench.spec(one)
    handle = await bench.create(spec)
    await bench.driver.start_container(handle, one)
    await bench.driver.close()
    ref = ProcessRef(pid=handle.state["pid"], start_ticks=handle.state["start_ticks"])
    other = bench.driver = bench.make_driver()
    try:
        await other.adopt(handle, spec)
        ended = await next_event(other.events(handle))
        assert isinstance(ended, SandboxExited)
        kind, text, evidence = ended.kind, ended.text, ended.evidence
    except SandboxGone as gone:
        kind, text, evidence = gone.kind, gone.message, gone.evidence
    assert kind == "GuestKernelPanicked", (kind, text, evidence)
    assert "sysrq triggered crash" in text
    assert "Kernel panic" in evidence["console"]
    assert not is_alive(ref)


async def test_destroy_works_twice_and_while_a_start_hangs(bench: Bench) -> None:
    one = container("one", "sleep 1000")
    handle = await bench.create(bench.spec(one))
    os.kill(handle.state["pid"], signal.SIGSTOP)
    hanging = asyncio.create_task(bench.driver.start_container(handle, one))
    events = bench.driver.events(handle)
    waiting = asyncio.create_task(next_event(events))
    await asyncio.sleep(0)
    await bench.driver.destroy(handle)
    with pytest.raises(DriverError):
        await hanging
    with pytest.raises(StopAsyncIteration):
        await waiting
    await bench.driver.destroy(handle)
    await bench.make_driver().destroy(handle)
    assert not (bench.directory / "vm").exists()


async def test_a_create_that_is_cut_off_leaves_nothing(bench: Bench) -> None:
    one = container("one", "true")
    creating = asyncio.create_task(bench.driver.create(bench.spec(one)))
    name = f"hutch-{bench.platform_id}-{bench.task_id}"
    await look_until_async(lambda: find_processes(name))
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert not find_processes(name)
    assert not (bench.directory / "vm").exists()


async def test_volumes_are_shared_names_resolve_and_the_root_can_be_read_only(bench: Bench) -> None:
    mounts = (MountSpec(volume="shared", path="/shared"),)
    writer = container("writer", "echo hello > /shared/file; touch /x", mounts=mounts, read_only_root=True)
    reader = container(
        "reader",
        "cat /shared/file; grep friend /etc/hosts; hostname; cat /proc/sys/net/core/somaxconn; "
        "df /tmp/fast | grep -c tmpfs; touch /shared/no",
        mounts=(MountSpec(volume="shared", path="/shared", read_only=True),),
        extra_hosts={"friend": "10.9.8.7"},
        sysctls={"net.core.somaxconn": "1234"},
        tmpfs={"/tmp/fast": ("size=4m",)},
    )
    handle = await bench.create(bench.spec(writer, reader, volumes=(VolumeSpec(name="shared"),)))
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, writer)
    assert (await exit_of(events, "writer")).status.exit_code != 0
    await bench.driver.start_container(handle, reader)
    assert (await exit_of(events, "reader")).status.exit_code != 0
    text = bench.log_text("reader")
    assert text.startswith(f"hello\n10.9.8.7 friend\n{bench.task_id[:12]}\n1234\n1\n")
    assert "Read-only file system" in bench.log_text("writer")
    assert "Read-only file system" in text.splitlines()[-1]


async def test_the_guest_reaches_the_host_over_its_tap(bench: Bench) -> None:
    tap = f"{bench.platform_id}tap"
    subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)
    try:
        subprocess.run(["ip", "address", "add", "198.18.77.1/24", "dev", tap], check=True)
        subprocess.run(["ip", "link", "set", tap, "up"], check=True)
        link = InterfaceSpec(
            eni_id="eni-1",
            mac="02:00:00:00:77:02",
            address="198.18.77.2",
            prefix_length=24,
            gateway="198.18.77.1",
        )
        one = container("one", "ping -c 1 -W 10 198.18.77.1 && hostname")
        attachment = Attachment(tap=tap, nameservers=("198.18.77.1",))
        handle = await bench.create(bench.spec(one, attachment=attachment, interface=link))
        events = bench.driver.events(handle)
        await bench.driver.start_container(handle, one)
        exited = await exit_of(events, "one")
        assert exited.status.exit_code == 0, bench.log_text("one")
        assert bench.log_text("one").endswith("ip-198-18-77-2\n")
        await bench.driver.destroy(handle)
    finally:
        subprocess.run(["ip", "link", "delete", tap], check=True)


async def test_a_privileged_container_has_all_of_its_vm(bench: Bench) -> None:
    script = (
        "test -c /dev/fuse && test -c /dev/kmsg && mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo rooted"
    )
    root = container("root", script, privileged=True)
    plain = container("plain", "mount -t tmpfs none /tmp || test -c /dev/kmsg || echo walled")
    handle = await bench.create(bench.spec(root, plain))
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, root)
    assert (await exit_of(events, "root")).status.exit_code == 0, bench.log_text("root")
    await bench.driver.start_container(handle, plain)
    await exit_of(events, "plain")
    assert bench.log_text("plain").endswith("walled\n")


async def test_what_a_microvm_lacks_is_refused_before_anything_is_made(bench: Bench) -> None:
    gpu = DeviceSpec(host_path="/dev/nvidia0", container_path="/dev/nvidia0")
    with pytest.raises(DriverError) as caught:
        await bench.driver.create(bench.spec(container("one", "true", devices=(gpu,))))
    assert caught.value.kind == "NoSuchDevice"
    assert not (bench.directory / "vm").exists()


async def test_a_flood_of_output_arrives_whole(bench: Bench) -> None:
    one = container("one", "seq 1 60000; head -c 300000 /dev/zero; echo; echo end")
    handle = await bench.create(bench.spec(one))
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, one)
    await exit_of(events, "one")
    lines = bench.log_text("one").split("\n")
    assert lines[:60000] == [str(i) for i in range(1, 60001)]
    assert lines[60000] == "\0" * 300000
    assert lines[60001:] == ["end", ""]


async def test_fingerprint_says_what_it_runs_on(bench: Bench) -> None:
    fact = await bench.driver.fingerprint()
    assert fact.healthy, fact.reason
    assert fact.details["accelerator"] == "tcg"
    assert fact.details["guest_kernel"]


async def test_fingerprint_without_a_guest_image_says_how_to_get_one(tmp_path: Path) -> None:
    driver = MicrovmDriver(
        platform_id="x", guest_dir=tmp_path, state_dir=tmp_path, accelerator="tcg", clock=SystemClock()
    )
    fact = await driver.fingerprint()
    assert not fact.healthy
    assert "make setup" in fact.reason


async def test_a_task_that_asks_for_a_cap_of_cpu_has_it_from_its_first_container_on(bench: Bench) -> None:
    """Also after another agent took it over, killed before it was set; and launched as quickly as any other."""
    group = task_cgroup(bench.platform_id, bench.task_id)[1:]
    files = (CGROUP_MOUNT / "cpu" / group / "cpu.cfs_quota_us", CGROUP_MOUNT / group / "cpu.max")

    def quota() -> str:
        return next(f for f in files if f.exists()).read_text().split()[0]

    one, two = container("one", "sleep 1000"), container("two", "echo done")
    spec = bench.spec(one, two, cpu_units=512, cpu_capped=True)
    handle = await bench.create(spec)
    assert quota() in ("-1", "max")
    await bench.driver.start_container(handle, one)
    assert quota() == "50000"
    next(f for f in files if f.exists()).write_text("-1" if files[0].exists() else "max")
    await bench.driver.close()
    bench.driver = bench.make_driver()
    await bench.driver.adopt(handle, spec)
    assert quota() == "50000"
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, two)
    assert (await exit_of(events, "two")).status.exit_code == 0
