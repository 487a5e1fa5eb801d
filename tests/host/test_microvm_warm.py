"""The warm pool: spares are made for sizes in use, given to tasks whole, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conftest import REPO
from tests.host.test_microvm_restore import phases, run_one
from tests.support.looking import look_until_async
from tests.support.microvm_bench import Bench, container, exit_of, joined_log

from hutch.host.drivers.contract import Attachment
from hutch.host.drivers.microvm.warm import WarmLimits
from hutch.host.kernel.process import find_processes, process_ref
from hutch.wire.taskspec import InterfaceSpec

pytestmark = pytest.mark.needs("root", "qemu", "guest_image")
LIMITS = WarmLimits(count=1, memory_mib=1024)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path, warm=LIMITS)
    bench.state = tmp_path / "state"
    bench.driver = bench.make_driver()
    try:
        yield bench
    finally:
        await bench.end()
        assert list((bench.state / "spares").glob("*")) == []
        assert not links(bench)


def links(bench: Bench) -> list[str]:
    return [n for n in os.listdir("/sys/class/net") if n.startswith(f"h{bench.platform_id[:4]}w")]


async def spare_pid(bench: Bench) -> int:
    """The pid of the pool's VM, once it is complete."""
    pool = bench.driver._launcher.spares.pool
    await look_until_async(lambda: len(pool) == 1)
    return pool._spares[0].sandbox.ref.pid


async def test_a_task_gets_a_spare_with_its_own_disks_network_and_logs(bench: Bench) -> None:
    first, _ = await run_one(bench, "echo cold")
    assert "warm" not in phases(first)
    pid = await spare_pid(bench)
    tap = f"tw{os.getpid() % 100000}"
    subprocess.run(["ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr"], check=True)
    try:
        subprocess.run(["ip", "addr", "add", "10.254.7.1/30", "dev", tap], check=True)
        subprocess.run(["ip", "link", "set", tap, "up"], check=True)
        link = InterfaceSpec(
            mac="02:AA:00:00:00:07", address="10.254.7.2", prefix_length=30, gateway="10.254.7.1", mtu=1400, eni_id="e",
        )  # fmt: skip
        script = "ping -c1 -w5 10.254.7.1 >/dev/null && cat /sys/class/net/eth0/address && df /tmp | tail -1"
        one = container("one", script)
        handle = await bench.create(bench.spec(one, attachment=Attachment(tap=tap), interface=link))
        assert phases(handle) == ["warm", "set up"]
        assert handle.state["pid"] == pid
        assert not links(bench)
        events = bench.driver.events(handle)
        await bench.driver.start_container(handle, one)
        assert (await exit_of(events, "one")).status.exit_code == 0
        assert "02:aa:00:00:00:07" in bench.log_text("one")
        await bench.driver.destroy(handle)
        assert process_ref(pid) is None
    finally:
        subprocess.run(["ip", "link", "del", tap], check=True)


async def test_a_task_on_a_spare_is_suspended_and_resumed_like_any_other(bench: Bench) -> None:
    await run_one(bench, "echo")
    pid = await spare_pid(bench)
    one = container("one", "while :; do echo on >> /tmp/file; cat /tmp/file | wc -l; sleep 0.05; done")
    spec = bench.spec(one)
    handle = await bench.create(spec)
    assert handle.state["pid"] == pid
    await bench.driver.start_container(handle, one)
    log = bench.directory / "logs" / "one.log"
    for lines in (3, 6):
        await look_until_async(lambda n=lines: log.exists() and len(joined_log(log).splitlines()) > n)  # type: ignore[misc]
        await bench.driver.suspend(handle)
        assert process_ref(pid) is None
        handle = await bench.driver.resume(handle, spec)
        pid = handle.state["pid"]
    await look_until_async(lambda: len(joined_log(log).splitlines()) > 9)
    numbers = [int(line) for line in bench.log_text("one").splitlines()]
    assert numbers == list(range(1, len(numbers) + 1)), "its disk went with it"
    await bench.driver.destroy(handle)
    assert process_ref(pid) is None


async def test_a_spare_survives_as_a_task_when_the_agent_is_killed_and_another_comes(bench: Bench) -> None:
    await run_one(bench, "echo")
    pid = await spare_pid(bench)
    one = container("one", "sleep 1000")
    spec = bench.spec(one)
    handle = await bench.create(spec)
    assert handle.state["pid"] == pid
    await bench.driver.start_container(handle, one)
    await bench.driver.close()
    bench.driver = bench.make_driver()
    await bench.driver.fingerprint()  # reaps what has no task
    (observed,) = await bench.driver.adopt(handle, spec)
    assert observed.running
    # From names alone, as after a crash before the handle was durable.
    await bench.make_driver().destroy_leftovers(str(bench.directory), bench.task_id)
    assert process_ref(pid) is None


KILLED_AGENT = """
import asyncio, sys
from pathlib import Path
from tests.host.test_microvm_warm import LIMITS
from tests.host.test_microvm_restore import run_one
from tests.support.looking import look_until_async
from tests.support.microvm_bench import Bench
async def main():
    bench = Bench(Path(sys.argv[1]), state=Path(sys.argv[2]), warm=LIMITS)
    bench.platform_id = sys.argv[3]
    bench.driver = bench.make_driver()
    await run_one(bench, "echo")
    await look_until_async(lambda: len(bench.driver._launcher.spares.pool) == 1)
    print("ready", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


async def test_spares_of_a_killed_agent_are_reaped_by_the_next(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    agent = subprocess.Popen(
        [sys.executable, "-c", KILLED_AGENT, str(tmp_path / "killed"), str(bench.state), bench.platform_id],
        cwd=REPO,
        stdout=subprocess.PIPE,
    )
    assert agent.stdout is not None
    try:
        assert await asyncio.to_thread(agent.stdout.readline) == b"ready\n"
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        agent.stdout.close()
    (spare,) = (bench.state / "spares").iterdir()
    assert find_processes(f"hutch-{bench.platform_id}-{spare.name}")
    await bench.driver.fingerprint()
    assert not find_processes(f"hutch-{bench.platform_id}-{spare.name}")
    assert not spare.exists()


async def test_a_spare_that_died_is_not_given_to_a_task(bench: Bench) -> None:
    await run_one(bench, "echo")
    os.kill(await spare_pid(bench), signal.SIGKILL)
    handle, _ = await run_one(bench, "echo")
    assert phases(handle)[-3:] == ["jail", "restore", "set up"]
