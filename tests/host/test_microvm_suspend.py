"""Suspend, resume and fork of real VMs: what is the same afterwards, what never is, and what a kill or a damage leaves."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from tests.conftest import REPO
from tests.support.looking import look_until_async
from tests.support.microvm_bench import Bench, container, joined_log, next_event

from hutch.host.drivers.contract import DriverError, Handle, SandboxExited, SandboxGone, SandboxSpec
from hutch.host.drivers.microvm import image, suspend
from hutch.host.drivers.microvm.image import Mapping
from hutch.host.kernel.process import find_processes

pytestmark = pytest.mark.needs("root", "qemu", "guest_image")

FORKS = 2
COUNTER = "i=0; while :; do echo $i; i=$((i+1)); usleep 20000; done"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        for number in range(FORKS):
            await bench.driver.destroy_leftovers(str(bench.directory / f"fork{number}"), fork_id(number))
        await bench.end()


def fork_id(number: int) -> str:
    return f"{number:x}" * 32


async def running(bench: Bench, script: str = COUNTER) -> tuple[Handle, SandboxSpec]:
    one = container("one", script)
    spec = bench.spec(one)
    handle = await bench.create(spec)
    await bench.driver.start_container(handle, one)
    return handle, spec


async def lines_after(path: Path, count: int) -> list[str]:
    """The log's lines as soon as there are so many."""

    def look() -> list[str] | None:
        lines = joined_log(path).splitlines() if path.exists() else []
        return lines if len(lines) >= count else None

    return await look_until_async(look) or []


async def test_output_goes_on_where_it_was_and_the_clock_is_right(bench: Bench) -> None:
    handle, spec = await running(bench, COUNTER.replace("echo $i", "echo $i $(date +%s)"))
    log = bench.directory / "logs" / "one.log"
    await lines_after(log, 5)
    await bench.driver.suspend(handle)
    size = sum(p.stat().st_size for p in (bench.directory / "suspended").iterdir() if p.name != "base")
    assert size < 32 << 20, "what is the template's is not written"
    told = len(joined_log(log).splitlines())
    await asyncio.sleep(1.5)
    resumed_at = time.time()
    handle = await bench.driver.resume(handle, spec)
    lines = await lines_after(log, told + 20)
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == list(range(len(numbers))), "nothing is lost, nothing comes twice"
    assert int(resumed_at) <= int(lines[-1].split()[1]) <= time.time() + 1, "not the time that it stood still"
    assert not (bench.directory / "suspended").exists()


KILLED = """
import asyncio, json, os, signal, sys
from pathlib import Path
import msgspec
from hutch.base.clock import SystemClock
from hutch.host.drivers.contract import Handle, SandboxSpec
from hutch.host.drivers.microvm import image, qemu_sandbox, sandbox, suspend
from hutch.host.drivers.microvm.driver import MicrovmDriver
given = json.loads(sys.argv[1])

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(owner, name, when=lambda *a, **k: True):
    real = getattr(owner, name)
    setattr(owner, name, lambda *a, **k: kill() if when(*a, **k) else real(*a, **k))

POINTS = {
    "frozen": lambda: kill_at(qemu_sandbox.QemuSandbox, "save_devices"),
    "half written": lambda: kill_at(image, "_write", lambda p, d: p.name == "manifest.json"),
    "before the rename": lambda: kill_at(suspend.os, "rename"),
    "after the rename": lambda: kill_at(suspend, "end_vm"),
    "process started": lambda: kill_at(qemu_sandbox, "restore"),
    "before it is used": lambda: kill_at(suspend.os, "rename"),
    "before it runs": lambda: kill_at(qemu_sandbox.Qmp, "execute", lambda self, c, **k: c == "cont"),
    "before it is thawed": lambda: kill_at(sandbox.Sandbox, "thaw"),
}

async def main():
    driver = MicrovmDriver(
        platform_id=given["platform_id"], guest_dir=Path(given["guest"]), state_dir=Path(given["state"]),
        accelerator="tcg", clock=SystemClock(),
    )
    handle = msgspec.convert(given["handle"], Handle)
    spec = msgspec.convert(given["spec"], SandboxSpec)
    if given["verb"] == "suspend":
        await driver.adopt(handle, spec)
        POINTS[given["point"]]()
        await driver.suspend(handle)
    else:
        assert await driver.is_suspended(handle)
        POINTS[given["point"]]()
        await driver.resume(handle, spec)

asyncio.run(main())
"""


def killed_at(bench: Bench, handle: Handle, spec: SandboxSpec, verb: str, point: str) -> None:
    """An agent of its own does this, and is killed there."""
    given = {
        "platform_id": bench.platform_id, "guest": str(REPO / "build/guest"), "state": str(bench.state),
        "handle": msgspec.to_builtins(handle), "spec": msgspec.to_builtins(spec), "verb": verb, "point": point,
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(given)], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, (point, done.stderr.decode()[-2000:])


async def test_an_agent_killed_at_any_moment_leaves_a_vm_or_an_image(bench: Bench) -> None:
    handle, spec = await running(bench)
    log = bench.directory / "logs" / "one.log"
    await lines_after(log, 3)
    await bench.driver.close()
    for verb, point, is_suspended in (
        ("suspend", "frozen", False),
        ("suspend", "half written", False),
        ("suspend", "before the rename", False),
        ("suspend", "after the rename", True),
        ("resume", "process started", True),
        ("resume", "before it is used", True),
        ("resume", "before it runs", False),
        ("suspend", "after the rename", True),
        ("resume", "before it is thawed", False),
    ):
        killed_at(bench, handle, spec, verb, point)
        bench.driver = bench.make_driver()
        assert await bench.driver.is_suspended(handle) == is_suspended, point
        told = len(joined_log(log).splitlines())
        if not is_suspended:
            (found,) = await bench.driver.adopt(handle, spec)
            assert found.running
            await lines_after(log, told + 3)
            assert (
                not (bench.directory / "suspending").exists() and not (bench.directory / "suspended").exists()
            )
        await bench.driver.close()
    numbers = [int(line) for line in joined_log(log).splitlines()]
    assert numbers == list(range(len(numbers)))
    bench.driver = bench.make_driver()


async def test_a_vm_that_dies_while_it_is_suspended_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, _ = await running(bench)
    events = bench.driver.events(handle)
    real = suspend.write_image

    def write_image(directory: Path, mapping: Mapping, *args: object, **kwargs: object) -> image.Manifest:
        os.kill(mapping.pid, signal.SIGKILL)
        os.waitid(os.P_PID, mapping.pid, os.WEXITED | os.WNOWAIT)
        return real(directory, mapping, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(suspend, "write_image", write_image)
    with pytest.raises(DriverError):
        await bench.driver.suspend(handle)
    event = await next_event(events)
    assert isinstance(event, SandboxExited) and event.kind == "VmKilled"
    assert not await bench.driver.is_suspended(handle)


async def test_a_full_disk_lets_the_vm_run_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    handle, _ = await running(bench)
    log = bench.directory / "logs" / "one.log"
    monkeypatch.setattr(image, "DISK_MARGIN_BYTES", 1 << 60)
    with pytest.raises(DriverError, match="MiB are to stay free") as refused:
        await bench.driver.suspend(handle)
    assert refused.value.kind == "NoRoomToSuspend" and refused.value.fix
    assert not (bench.directory / "suspending").exists()
    told = len(await lines_after(log, 1))
    await lines_after(log, told + 5)


async def test_what_is_damaged_or_foreign_is_refused_and_kept(bench: Bench) -> None:
    handle, spec = await running(bench)
    await lines_after(bench.directory / "logs" / "one.log", 1)
    await bench.driver.suspend(handle)
    for name, change in (
        ("pages", lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]),
        ("pages", lambda data: data[:-4096]),
        ("state", lambda data: data[:-1] + b"x"),
        ("manifest.json", lambda data: data.replace(b'"format":1', b'"format":9')),
        ("manifest.json", lambda data: data[: len(data) // 2]),
        ("manifest.json", lambda data: data.replace(b'"accelerator":"tcg"', b'"accelerator":"kvm"')),
    ):
        path = bench.directory / "suspended" / name
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        with pytest.raises(DriverError) as refused:
            await bench.driver.resume(handle, spec)
        assert not isinstance(refused.value, SandboxGone)
        assert refused.value.kind == "SuspendedImageUnusable", refused.value.message
        assert await bench.driver.is_suspended(handle)
        path.write_bytes(whole)
    assert not find_processes(f"hutch-{bench.platform_id}-{bench.task_id}")
    await bench.driver.resume(handle, spec)


async def test_the_templates_memory_stays_for_as_long_as_an_image_needs_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, state=tmp_path / "state")
    try:
        handle, spec = await running(bench)
        await lines_after(bench.directory / "logs" / "one.log", 3)
        await bench.driver.close()  # writes the template to the disk
        bench.driver = bench.make_driver()
        await bench.driver.adopt(handle, spec)
        await bench.driver.suspend(handle)
        await bench.driver.close()
        assert (bench.directory / "suspended" / "base").exists()
        for entry in sorted((tmp_path / "state" / "templates").rglob("*"), reverse=True):
            entry.rmdir() if entry.is_dir() else entry.unlink()
        bench.driver = bench.make_driver()
        log = bench.directory / "logs" / "one.log"
        told = len(joined_log(log).splitlines())
        handle = await bench.driver.resume(handle, spec)
        await lines_after(log, told + 3)
        # There is no template on the disk now: this time all of the memory is written.
        await bench.driver.suspend(handle)
        assert not (bench.directory / "suspended" / "base").exists()
        told = len(joined_log(log).splitlines())
        await bench.driver.resume(handle, spec)
        await lines_after(log, told + 3)
    finally:
        await bench.end()


async def test_forks_never_draw_the_same_random_bytes_and_have_names_of_their_own(bench: Bench) -> None:
    # Ever drawing, at full speed: whatever runs before its VM has fresh randomness would be seen.
    draw = (
        "while :; do cat /proc/sys/kernel/random/uuid; head -c 8 /dev/urandom | od -An -tx1 | tr -d ' '; done"
    )
    handle, spec = await running(bench, draw)
    await lines_after(bench.directory / "logs" / "one.log", 8)
    await bench.driver.snapshot(handle, str(bench.directory / "snapshot"))
    directories = []
    names = set()
    for number in range(FORKS):
        directory = bench.directory / f"fork{number}"
        directory.mkdir(mode=0o700)
        directories.append(directory)
        fork_spec = replace(spec, directory=str(directory), task=replace(spec.task, task_id=fork_id(number)))
        fork, _ = await bench.driver.fork(str(bench.directory / "snapshot"), fork_spec)
        name = await bench.driver.probe(fork, "one", ("sh", "-c", "hostname; cat /etc/hostname"), 30)
        seen, in_file = name.output.split()
        assert seen == in_file == f"{number:x}" * 12
        names.add(seen)
        bench.handles.append(fork)
    drawn = [await lines_after(bench.directory / "logs" / "one.log", 24)]
    drawn += [await lines_after(d / "logs" / "one.log", 12) for d in directories]
    # What was drawn by the original and not yet written when it was copied is written by the copies too: one line.
    places: dict[str, list[tuple[int, int]]] = {}
    for copy, lines in enumerate(drawn):
        for at, value in enumerate(lines[:-1]):
            if copy == 0 or at > 0:
                places.setdefault(value, []).append((copy, at))
    assert not {v: p for v, p in places.items() if len(p) > 1} and len(names) == 2
    for fork in bench.handles[-2:]:
        await bench.driver.destroy(fork)
