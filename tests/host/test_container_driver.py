"""The container driver against the real kernel: what the walls are, what is measured, and every process killed."""

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.support.driver_harness import ContainerHarness
from tests.support.looking import look_until_async

from hutch.base.units import MIB
from hutch.host.criformat import parse_line
from hutch.host.drivers.container.driver import ContainerDriver
from hutch.host.drivers.contract import (
    ContainerExited,
    DriverError,
    Handle,
    SandboxEvent,
    SandboxExited,
    SandboxGone,
    SandboxSpec,
)
from hutch.host.kernel.cgroup import CGROUP_MOUNT
from hutch.host.kernel.process import ProcessRef, find_processes, process_ref, wait_gone
from hutch.wire.taskspec import ContainerSpec, MountSpec, VolumeSpec

pytestmark = pytest.mark.needs("root", "runc")
LIMIT_S = 60


class Room(ContainerHarness):
    """A harness that also starts containers from shell scripts."""

    def __init__(self, tmp_path: Path, runtime: str = "auto") -> None:
        super().__init__(tmp_path)
        self.runtime = runtime
        self.driver = self.new_driver()
        self.spec: SandboxSpec
        self.handle: Handle
        self.events: AsyncIterator[SandboxEvent]

    async def make(self, *containers: ContainerSpec, **task: object) -> None:
        spec = self.sandbox(*containers)
        self.spec = msgspec.structs.replace(spec, task=msgspec.structs.replace(spec.task, **task))
        self.handle = await self.driver.create(self.spec)
        self.events = self.driver.events(self.handle)

    async def next(self) -> SandboxEvent:
        async with asyncio.timeout(LIMIT_S):
            return await anext(self.events)

    async def runs_to_its_end(self, script: str, **changes: object) -> tuple[ContainerExited, str]:
        """A task with one container: how it ended, and what it wrote."""
        container = self._script("a", script, **changes)
        await self.make(container)
        await self.driver.start_container(self.handle, container)
        event = await self.next()
        assert isinstance(event, ContainerExited)
        return event, self.output("a")

    def script(self, name: str, script: str, **changes: object) -> ContainerSpec:
        return self._script(name, script, **changes)

    def output(self, name: str) -> str:
        raw = (self._directory / "logs" / f"{name}.log").read_bytes()
        lines = [line for line in map(parse_line, raw.splitlines()) if line is not None]
        return "".join(line.text.decode() + "\n" for line in lines)

    async def says(self, name: str, text: str) -> None:
        """Wait until a container has written something."""
        log = self._directory / "logs" / f"{name}.log"
        await look_until_async(lambda: log.exists() and text in self.output(name))

    @property
    def image_root(self) -> Path:
        return Path(self._image.directory)

    def shims(self) -> list[ProcessRef]:
        return [
            ref
            for ref in find_processes(str(self._directory / "box" / "runtime"))
            if Path(f"/proc/{ref.pid}/comm").read_text().strip() == "conmon"
        ]


@contextlib.asynccontextmanager
async def room_under(runtime: str, tmp_path: Path) -> AsyncIterator[Room]:
    """A room, of which nothing may be left."""
    made = Room(tmp_path, runtime)
    try:
        yield made
    finally:
        await made.driver.destroy_leftovers(str(made._directory), made.task_id)
        await made.driver.close()
    assert made.remains() == []


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with room_under("auto", tmp_path) as made:
        yield made


@pytest.fixture(params=["auto", pytest.param("runsc", marks=pytest.mark.needs("runsc"))])
async def any_room(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Room]:
    """The same with gVisor's kernel between."""
    async with room_under(request.param, tmp_path) as made:
        yield made


# -- the walls


async def test_a_container_sees_only_its_own(room: Room) -> None:
    _, text = await room.runs_to_its_end("ps; ls /sys/class/net; id; cat /etc/hostname; echo pid $$")
    assert "pid 1" in text and "uid=0" in text and room.task_id[:12] in text
    assert "conmon" not in text and "eth0" not in text and "lo" in text


async def test_the_image_is_never_written(any_room: Room) -> None:
    before = sorted(str(p) for p in any_room.image_root.rglob("*"))
    event, _ = await any_room.runs_to_its_end("echo x > /etc/passwd && touch /bin/new && rm /bin/yes")
    assert event.status.exit_code == 0
    assert sorted(str(p) for p in any_room.image_root.rglob("*")) == before
    assert (any_room.image_root / "etc/passwd").read_text().startswith("root:")


async def test_what_is_written_stays_when_the_container_is_started_again(any_room: Room) -> None:
    again = any_room.script("a", "test -f /mark && exit 7; touch /mark")
    await any_room.make(again)
    codes = []
    for _ in range(2):
        await any_room.driver.start_container(any_room.handle, again)
        event = await any_room.next()
        assert isinstance(event, ContainerExited)
        codes.append(event.status.exit_code)
    assert codes == [0, 7]


async def test_no_capability_beyond_dockers(room: Room) -> None:
    script = "exec 2>&1; mount -t tmpfs none /tmp; mknod /tmp/disk b 8 0 && head -c1 /tmp/disk; echo 1 > /proc/sys/kernel/panic"
    _, text = await room.runs_to_its_end(script)
    for refusal in (
        "mount: permission denied",
        "head: /tmp/disk: Operation not permitted",
        "panic: Read-only",
    ):
        assert refusal in text


async def test_system_calls_are_filtered(room: Room) -> None:
    _, text = await room.runs_to_its_end(
        "exec 2>&1; grep Seccomp: /proc/self/status; unshare -m true; ls /proc/kcore"
    )
    assert "Seccomp:\t2" in text and "unshare(0x20000): Operation not permitted" in text


async def test_volumes_are_shared_and_host_directories_reached(any_room: Room, tmp_path: Path) -> None:
    host = tmp_path / "given"
    mounts = (MountSpec(volume="shared", path="/s"), MountSpec(volume="host", path="/h", read_only=True))
    writer = any_room.script("w", "echo hello > /s/file; cat /h/there; touch /h/no", mounts=mounts)
    reader = any_room.script("r", "cat /s/file", mounts=mounts)
    host.mkdir()
    (host / "there").write_text("from the host\n")
    volumes = (VolumeSpec(name="shared"), VolumeSpec(name="host", source_path=str(host)))
    await any_room.make(writer, reader, volumes=volumes)
    await any_room.driver.start_container(any_room.handle, writer)
    await any_room.next()
    await any_room.driver.start_container(any_room.handle, reader)
    await any_room.next()
    assert "from the host" in any_room.output("w") and "Read-only" in any_room.output("w")
    assert any_room.output("r") == "hello\n"
    await any_room.driver.destroy(any_room.handle)
    assert (host / "there").exists(), "a directory of the host is never removed"


# -- limits


async def test_a_fork_bomb_is_bounded_and_ended(room: Room) -> None:
    bomb = room.script("a", "(while :; do sleep 60 & done); exec sleep 1000")
    await room.make(bomb, memory_mib=2048)
    await room.driver.start_container(room.handle, bomb)
    await room.says("a", "fork")
    stats = await room.driver.stats(room.handle)
    assert 1000 < stats.containers["a"].pids <= 4096
    async with asyncio.timeout(LIMIT_S):
        await room.driver.destroy(room.handle)
    assert room.remains() == []


async def test_the_tasks_limit_holds_for_all_its_containers(room: Room) -> None:
    hungry = room.script("a", "x=a; while :; do x=$x$x; done")
    calm = room.runs("b")
    await room.make(hungry, calm, memory_mib=32)
    for container in (calm, hungry):
        await room.driver.start_container(room.handle, container)
    event = await room.next()
    assert isinstance(event, ContainerExited)
    assert (event.container, event.status.oom, event.status.exit_code) == ("a", True, 137)
    assert event.status.oom_process == "sh" and event.status.oom_rss_bytes > 8 * MIB
    assert set((await room.driver.stats(room.handle)).containers) == {"b"}


async def test_a_sum_of_reservations_is_no_limit(room: Room) -> None:
    big = room.script("a", "head -c 20000000 /dev/zero | tail -c 18000000 | wc -c")
    await room.make(big, memory_mib=8, memory_is_limit=False)
    await room.driver.start_container(room.handle, big)
    event = await room.next()
    assert isinstance(event, ContainerExited) and event.status.exit_code == 0
    assert "18000000" in room.output("a")


# -- health checks


async def test_a_health_check_that_hangs_is_ended_with_all_it_started(any_room: Room) -> None:
    runs = any_room.runs("a")
    await any_room.make(runs)
    await any_room.driver.start_container(any_room.handle, runs)
    command = ("/bin/sh", "-c", "echo begun; sleep 777 & sleep 778")
    result = await any_room.driver.probe(any_room.handle, "a", command, 0.5)
    assert result.timed_out and "begun" in result.output
    # The kernel takes a moment to end what was killed.
    look = "for i in $(seq 100); do ps | grep -q 'slee[p] 77' || exit 0; sleep 0.1; done; exit 1"
    seen = await any_room.driver.probe(any_room.handle, "a", ("/bin/sh", "-c", look), LIMIT_S)
    assert (seen.exit_code, seen.output) == (0, "")


async def test_a_health_check_cannot_fill_our_memory(room: Room) -> None:
    runs = room.runs("a")
    await room.make(runs)
    await room.driver.start_container(room.handle, runs)
    result = await room.driver.probe(room.handle, "a", ("/bin/sh", "-c", "yes | head -c 5000000"), 10)
    assert (result.exit_code, len(result.output)) == (0, 4096)


# -- everything may be killed


async def test_a_killed_conmon_is_told_and_leaves_nothing_running(any_room: Room) -> None:
    first, second = any_room.runs("a"), any_room.runs("b")
    await any_room.make(first, second)
    pids = []
    for container in (first, second):
        await any_room.driver.start_container(any_room.handle, container)
    for path in sorted((any_room._directory / "box" / "starts").glob("*/1/pid")):
        pids.append(process_ref(int(path.read_text())))
    victim = any_room.shims()[0]
    os.kill(victim.pid, signal.SIGKILL)
    event = await any_room.next()
    assert isinstance(event, SandboxExited)
    assert event.kind == "ShimKilled" and "signal 9" in event.text
    for ref in pids:
        assert ref is not None
        async with asyncio.timeout(LIMIT_S):
            await wait_gone(ref)
    with pytest.raises(SandboxGone, match="conmon"):
        await any_room.driver.start_container(any_room.handle, first)


async def test_a_conmon_killed_while_no_agent_was_there(room: Room) -> None:
    runs = room.runs("a")
    await room.make(runs)
    await room.driver.start_container(room.handle, runs)
    await room.driver.close()
    (shim,) = room.shims()
    os.kill(shim.pid, signal.SIGKILL)
    await wait_gone(shim)
    other = room.new_driver()
    with pytest.raises(SandboxGone, match="conmon"):
        await other.adopt(room.handle, room.spec)
    await other.destroy(room.handle)
    assert room.remains() == []


async def test_the_first_process_killed_from_outside(any_room: Room) -> None:
    runs = any_room.runs("a")
    await any_room.make(runs)
    await any_room.driver.start_container(any_room.handle, runs)
    pid = int((any_room._directory / "box/starts/a/1/pid").read_text())
    os.kill(pid, signal.SIGKILL)
    event = await any_room.next()
    assert isinstance(event, ContainerExited)
    assert (event.status.exit_code, event.status.signal, event.status.oom) == (137, 9, False)


async def test_an_out_of_memory_exit_while_no_agent_was_there(room: Room) -> None:
    hungry = room.script("a", "read x < /go; x=a; while :; do x=$x$x; done", memory_mib=24)
    await room.make(hungry)
    go = room._directory / "box/root/a/go"
    os.mkfifo(go)
    await room.driver.start_container(room.handle, hungry)
    await room.driver.close()
    (shim,) = room.shims()
    go.write_text("go\n")
    async with asyncio.timeout(LIMIT_S):
        await wait_gone(shim)
    room.driver = room.new_driver()
    (seen,) = await room.driver.adopt(room.handle, room.spec)
    assert not seen.running
    room.events = room.driver.events(room.handle)
    event = await room.next()
    assert isinstance(event, ContainerExited) and event.status.oom


async def test_an_agent_killed_during_a_start(any_room: Room) -> None:
    """What it left half-made goes, and the container can be started."""
    runs = any_room.runs("a")
    await any_room.make(runs)
    await any_room.driver.start_container(any_room.handle, runs)
    await any_room.driver.close()
    (any_room._directory / "box/starts/a/1/started.json").unlink()
    any_room.driver = any_room.new_driver()
    assert await any_room.driver.adopt(any_room.handle, any_room.spec) == ()
    assert any_room.shims() == [] and not (any_room._directory / "box/starts/a/1").exists()
    await any_room.driver.start_container(any_room.handle, runs)


async def test_destroy_ends_a_start_that_is_under_way(any_room: Room) -> None:
    runs = any_room.runs("a")
    await any_room.make(runs)
    starting = asyncio.create_task(any_room.driver.start_container(any_room.handle, runs))
    await look_until_async(lambda: any_room.shims() or starting.done())
    await any_room.driver.destroy(any_room.handle)
    result = (await asyncio.gather(starting, return_exceptions=True))[0]
    assert not isinstance(result, Exception) or isinstance(result, DriverError)
    assert any_room.remains() == []


# -- what it can't do, it says


async def test_a_runtime_that_is_missing_is_told(tmp_path: Path) -> None:
    from hutch.base.clock import SystemClock

    driver = ContainerDriver(
        platform_id=secrets.token_hex(4),
        state_dir=tmp_path,
        runtime="nothing",
        clock=SystemClock(),
        toolbox=tmp_path / "toolbox",
    )
    fact = await driver.fingerprint()
    assert not fact.healthy and "nothing is not installed" in fact.reason


async def test_a_container_that_handles_sigterm_ends_by_itself(room: Room) -> None:
    polite = room.script("a", "trap 'exit 5' TERM; echo ready; sleep 1000 & wait")
    await room.make(polite)
    await room.driver.start_container(room.handle, polite)
    await room.says("a", "ready")
    await room.driver.signal_container(room.handle, "a", signal.SIGTERM)
    event = await room.next()
    assert isinstance(event, ContainerExited) and event.status.exit_code == 5


# -- CPU


async def test_a_task_that_asks_for_a_cap_has_one_for_all_its_containers(room: Room) -> None:
    await room.make(room.runs("a"), cpu_units=512, cpu_capped=True)
    group = f"/hutch-{room.platform_id}/{room.task_id}"
    files = (CGROUP_MOUNT / f"cpu{group}/cpu.cfs_quota_us", CGROUP_MOUNT / f"{group[1:]}/cpu.max")
    assert next(f for f in files if f.exists()).read_text().split()[0] == "50000"
