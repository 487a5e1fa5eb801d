"""VMs restored from templates: what they share, what they must never share, and what happens when it fails."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conftest import REPO
from tests.support.busybox_image import make_busybox_image
from tests.support.looking import look_until_async
from tests.support.microvm_bench import Bench, container, exit_of

from hutch.host.drivers.contract import Handle, RootImage
from hutch.host.kernel.process import find_processes

pytestmark = pytest.mark.needs("root", "qemu", "guest_image")

IDENTITY = """
cat /proc/sys/kernel/random/boot_id
cat /proc/sys/kernel/random/uuid
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
hostname
ssh-keygen -q -t ed25519 -N '' -f /tmp/host_key && cut -d' ' -f2 /tmp/host_key.pub
openssl genpkey -algorithm X25519 | tail -n +2 | head -1
openssl rand -hex 48
"""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        await bench.end()


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Bench]:
    """One whose driver has a state directory of its own, so no templates yet."""
    bench = Bench(tmp_path, state=tmp_path / "state")
    try:
        yield bench
    finally:
        await bench.end()


def phases(handle: Handle) -> list[str]:
    return [p.name for p in handle.phases]


def templates(bench: Bench) -> list[str]:
    return sorted(p.name for p in (bench.state / "templates").iterdir())


async def kept(bench: Bench) -> None:
    """Return when the driver has written its templates to the disk."""
    await bench.driver.close()
    bench.driver = bench.make_driver()


async def run_one(bench: Bench, script: str, **changes: object) -> tuple[Handle, str]:
    one = container("one", script)
    handle = await bench.create(bench.spec(one, **changes))
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, one)
    exited = await exit_of(events, "one")
    text = bench.log_text("one")
    assert exited.status.exit_code == 0, text
    await bench.driver.destroy(handle)
    shutil.rmtree(bench.directory)
    bench.directory.mkdir(mode=0o700)
    return handle, text


async def test_a_template_is_made_once_and_outlives_the_agent(alone: Bench) -> None:
    first, _ = await run_one(alone, "echo")
    second, _ = await run_one(alone, "echo")
    assert phases(first) == ["template", "jail", "restore", "set up"]
    assert phases(second) == ["jail", "restore", "set up"]
    await kept(alone)
    (name,) = templates(alone)
    made_at = (alone.state / "templates" / name / "memory").stat().st_mtime_ns
    # Read from the disk now; neither made again nor written again.
    third, _ = await run_one(alone, "echo")
    assert phases(third) == ["template", "jail", "restore", "set up"]
    assert templates(alone) == [name]
    assert (alone.state / "templates" / name / "memory").stat().st_mtime_ns == made_at
    memory = alone.state / "templates" / name / "memory"
    assert memory.stat().st_blocks * 512 < memory.stat().st_size


def image_with_crypto(directory: Path) -> RootImage:
    """The busybox image with the programs of the host that make keys."""
    programs = [Path(p) for name in ("ssh-keygen", "openssl") if (p := shutil.which(name))]
    assert len(programs) == 2, "install openssh-client and openssl"
    files = set(programs)
    for program in programs:
        listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
        files |= {Path(w) for line in listed.splitlines() for w in line.split() if w.startswith("/")}
    return make_busybox_image(
        directory,
        name="crypto",
        files=sorted(files),
        Env=["PATH=/bin:/usr/bin:/usr/sbin", "OPENSSL_CONF=/dev/null"],
    )


async def test_two_vms_of_one_template_share_nothing_that_should_be_theirs_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, image=image_with_crypto(tmp_path))
    try:
        one, first = await run_one(bench, IDENTITY)
        bench.task_id = "f" * 32
        two, second = await run_one(bench, IDENTITY)
        assert "restore" in phases(one) and "restore" in phases(two)
        left, right = first.splitlines(), second.splitlines()
        assert len(set(left)) == len(set(right)) == 7, (first, second)
        assert not set(left) & set(right), (left, right)
    finally:
        await bench.end()


async def test_the_first_bytes_of_a_restored_vms_random_device_are_its_own(bench: Bench) -> None:
    # The device is bound a while after the start, so that the start has the CPU for itself.
    script = (
        "until mknod /tmp/hwrng c 10 183 && dd if=/tmp/hwrng bs=32 count=1 2>/dev/null | od -An -tx1 | grep .; \
        do rm -f /tmp/hwrng; sleep 0.2; done"
    )
    seen = []
    for _ in range(2):
        one = container("one", script, privileged=True)
        handle = await bench.create(bench.spec(one))
        events = bench.driver.events(handle)
        await bench.driver.start_container(handle, one)
        assert (await exit_of(events, "one")).status.exit_code == 0
        seen.append(bench.log_text("one"))
        await bench.driver.destroy(handle)
        shutil.rmtree(bench.directory)
        bench.directory.mkdir(mode=0o700)
    assert len(set(seen)) == 2
    assert all(len(text.split()) == 32 for text in seen), seen


async def test_a_restored_vm_has_the_hosts_time(bench: Bench) -> None:
    await run_one(bench, "echo")
    await asyncio.sleep(1.5)  # time that a template would not know of
    before = time.time()
    _, text = await run_one(bench, "date +%s")
    assert int(before) <= int(text) <= time.time() + 1


async def test_a_template_that_is_damaged_is_not_used_and_the_task_boots(alone: Bench) -> None:
    await run_one(alone, "echo")
    await kept(alone)
    (name,) = templates(alone)
    state = alone.state / "templates" / name / "state"
    state.write_bytes(state.read_bytes()[:20_000])
    handle, _ = await run_one(alone, "echo")
    assert phases(handle)[-2:] == ["cold boot", "set up"]
    (boot,) = [p for p in handle.phases if p.name == "cold boot"]
    assert boot.detail.startswith("not restored:")
    # It is gone, and not tried again at once.
    again, _ = await run_one(alone, "echo")
    assert phases(again) == ["cold boot", "set up"]
    await kept(alone)
    assert templates(alone) == []


async def test_without_templates_a_task_boots_and_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, use_templates=False)
    try:
        handle, _ = await run_one(bench, "echo")
        assert next((p.name, p.detail) for p in handle.phases) == ("cold boot", "templates are switched off")
    finally:
        await bench.end()


async def test_a_cancelled_making_leaves_nothing_and_does_not_hinder_the_next(alone: Bench) -> None:
    name = f"hutch-{alone.platform_id}-template"
    creating = asyncio.create_task(alone.driver.create(alone.spec(container("one", "true"))))
    await look_until_async(lambda: bool(find_processes(name)))
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await alone.driver.close()
    assert not find_processes(name)
    assert templates(alone) == []
    alone.driver = alone.make_driver()
    handle, _ = await run_one(alone, "echo")
    assert phases(handle) == ["template", "jail", "restore", "set up"]


KILLED_AGENT = """
import asyncio, sys
from pathlib import Path
from tests.support.microvm_bench import Bench, container
async def main():
    bench = Bench(Path(sys.argv[1]) / "killed", state=Path(sys.argv[1]) / "state")
    bench.platform_id, bench.driver = sys.argv[2], None
    bench.driver = bench.make_driver()
    await bench.driver.create(bench.spec(container("one", "true")))
asyncio.run(main())
"""


async def test_an_agent_that_is_killed_while_it_makes_a_template_leaves_no_half_one(
    alone: Bench, tmp_path: Path
) -> None:
    name = f"hutch-{alone.platform_id}-template"

    def qemu_runs() -> bool:
        """Before, what has its name is a jail that is still made, and goes with the agent."""
        with contextlib.suppress(FileNotFoundError):
            exes = [os.readlink(f"/proc/{r.pid}/exe") for r in find_processes(name)]
            return any(exe.endswith("/qemu-system-x86_64") for exe in exes)
        return False

    (tmp_path / "killed").mkdir()
    agent = subprocess.Popen(
        [sys.executable, "-c", KILLED_AGENT, str(tmp_path), alone.platform_id], cwd=REPO, env={**os.environ}
    )
    try:
        await look_until_async(qemu_runs)
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    left = set(find_processes(name))
    assert left
    handle, _ = await run_one(alone, "echo")
    assert phases(handle) == ["template", "jail", "restore", "set up"]
    assert not left & set(find_processes(name))
    await kept(alone)
    (kept_name,) = templates(alone)
    assert not kept_name.startswith(".")
