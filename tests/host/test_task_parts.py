"""What a task definition says about containers and volumes, carried out by both drivers: what a program in a container
sees of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.support.driver_harness import ContainerHarness, MicrovmHarness

from hutch.host.criformat import parse_line
from hutch.host.drivers.contract import ContainerExited, DriverError, Handle, SandboxSpec
from hutch.host.kernel.inotify import FileWatcher
from hutch.wire.taskspec import ContainerSpec, DeviceSpec, MountSpec, VolumesFromSpec, VolumeSpec

LIMIT_S = 60


class Room:
    """One task on one driver. Scripts of its containers are run one after the other."""

    def __init__(self, harness: MicrovmHarness) -> None:
        self.harness = harness
        self.driver = harness.new_driver()
        self.spec: SandboxSpec
        self.handle: Handle
        self._exits: dict[str, ContainerExited] = {}

    def script(self, name: str, script: str, **members: object) -> ContainerSpec:
        made = self.harness._script(name, script)
        return msgspec.structs.replace(made, **members)

    async def make(self, *containers: ContainerSpec, **task: object) -> None:
        spec = self.harness.sandbox(*containers)
        self.spec = msgspec.structs.replace(spec, task=msgspec.structs.replace(spec.task, **task))
        self.handle = await self.driver.create(self.spec)
        self.events = self.driver.events(self.handle)

    async def start(self, name: str) -> None:
        await self.driver.start_container(self.handle, self._container(name))

    def _container(self, name: str) -> ContainerSpec:
        return next(c for c in self.spec.task.containers if c.name == name)

    async def run(self, name: str) -> str:
        """Start a container and wait for its end: what it wrote."""
        await self.start(name)
        async with asyncio.timeout(LIMIT_S):
            while name not in self._exits:
                event = await anext(self.events)
                assert isinstance(event, ContainerExited), event
                self._exits[event.container] = event
        del self._exits[name]
        return self.output(name)

    def output(self, name: str) -> str:
        path = Path(self.spec.directory) / "logs" / f"{name}.log"
        lines = path.read_bytes().splitlines() if path.exists() else []
        parsed = [parse_line(line) for line in lines]
        return "".join(p.text.decode() + "\n" for p in parsed if p is not None)

    async def written(self, name: str, text: str) -> None:
        """Return when a container has written something: its log file is looked at whenever it changes."""
        watcher = FileWatcher()
        try:
            logs = Path(self.spec.directory) / "logs"
            logs.mkdir(mode=0o700, exist_ok=True)
            watch = watcher.watch(logs)
            async with asyncio.timeout(LIMIT_S):
                while text not in self.output(name):
                    await watch.changed.wait()
                    watch.changed.clear()
        finally:
            watcher.close()

    async def destroy(self) -> None:
        await self.driver.destroy_leftovers(str(self.harness._directory), self.harness.task_id)
        await self.driver.close()
        assert self.harness.remains() == []


@pytest.fixture(
    params=[
        pytest.param(MicrovmHarness, id="microvm", marks=pytest.mark.needs("root", "qemu", "guest_image")),
        pytest.param(ContainerHarness, id="container", marks=pytest.mark.needs("root", "runc", "catatonit")),
    ]
)
async def room(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(request.param(tmp_path))
    yield made
    await made.destroy()


async def test_init_terminal_and_open_input(room: Room) -> None:
    await room.make(
        room.script("init", "cat /proc/1/cmdline | tr '\\0' ' '; (sleep 0.1 & exec true) ; sleep 0.5; ps | grep -c sleep",
                    init_process=True),
        room.script("tty", "test -t 0 && test -t 1 && test -t 2 && echo a terminal", tty=True),
        room.script("closed", "cat; echo ended"),
        room.script("open", "cat; echo ended", interactive=True),
    )  # fmt: skip
    assert (await room.run("init")).startswith("/sbin/docker-init -- /bin/sh -c")
    assert (await room.run("tty")).strip() == "a terminal"
    assert await room.run("closed") == "ended\n"
    await room.start("open")
    probe = await room.driver.probe(room.handle, "open", ("/bin/ps",), 20)
    assert "cat" in probe.output, "its input has ended"
    assert room.output("open") == ""


async def test_limits_flags_and_devices(room: Room) -> None:
    fuse = DeviceSpec(host_path="/dev/fuse", container_path="/dev/my-fuse", access="rw")
    await room.make(
        room.script("plain", "grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status; ip -o link | wc -l; "
                    "ls /dev | grep -c fuse; grep ' /dev/shm ' /proc/mounts"),
        room.script("given", "grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status; ip -o link; "
                    "stat -c %t:%T /dev/my-fuse; : </dev/my-fuse && echo opened; grep ' /dev/shm ' /proc/mounts; "
                    "ulimit -n; touch /x || echo read only; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; "
                    "grep ' /cache ' /proc/mounts; cat /etc/resolv.conf /etc/hosts; hostname",
                    no_new_privileges=True, capabilities_drop=("ALL",), capabilities_add=("SYS_PTRACE",),
                    disable_network=True, devices=(fuse,), shm_mib=8, ulimits={"nofile": (99, 100)},
                    read_only_root=True, sysctls={"net.ipv4.ip_unprivileged_port_start": "77"},
                    tmpfs={"/cache": ("size=5m", "noexec")}, dns_servers=("192.0.2.1",), dns_search=("corp.test",),
                    extra_hosts={"db.corp": "192.0.2.7"}, hostname="named"),
    )  # fmt: skip
    plain, given = await room.run("plain"), await room.run("given")
    assert "NoNewPrivs:\t0" in plain and "NoNewPrivs:\t1" in given
    assert f"{1 << 19:016x}" in given and f"{1 << 19:016x}" not in plain
    assert "a:e5" in given and "opened" in given
    assert "size=65536k" in plain and "size=8192k" in given
    assert "99\n" in given and "read only" in given and "\n77\n" in given
    assert "/cache tmpfs rw" in given and "noexec" in given and "size=5120k" in given
    assert "nameserver 192.0.2.1\nsearch corp.test" in given and "192.0.2.7 db.corp" in given
    assert given.endswith("named\n")
    assert [line for line in given.splitlines() if ": lo:" in line]
    assert not [line for line in given.splitlines() if "eth0" in line]


async def test_shared_processes_and_memory(room: Room) -> None:
    await room.make(
        room.script("one", "echo kept > /dev/shm/note; exec sleep 1000"),
        room.script("two", "ps; cat /dev/shm/note"),
        pid_mode="task",
        ipc_mode="task",
    )
    await room.start("one")
    seen = await room.run("two")
    assert "sleep 1000" in seen and "kept" in seen
    assert "/pause -P" in seen, "somebody holds the namespace"
    assert "crun" not in seen and "init" not in seen.replace("--", ""), "nothing else of the machine"
    await room.driver.signal_container(room.handle, "one", 9)
    async with asyncio.timeout(LIMIT_S):
        event = await anext(room.events)
    assert isinstance(event, ContainerExited) and event.status.signal == 9


async def test_without_memory_to_share(room: Room) -> None:
    await room.make(room.script("a", "ls /dev/shm || echo none"), ipc_mode="none")
    assert "none" in await room.run("a")


async def test_an_empty_volume_gets_what_the_image_has(room: Room) -> None:
    await room.make(
        room.script("a", "stat -c %a /etc; grep -c app /etc/passwd; rm /etc/group; echo new > /etc/made; ls /none",
                    mounts=(MountSpec(volume="v", path="/etc"), MountSpec(volume="w", path="/none"))),
        room.script("b", "cat /data/made /data/passwd; ls /data; touch /data/x || echo read only",
                    mounts=(MountSpec(volume="v", path="/data", read_only=True),)),
        volumes=(VolumeSpec(name="v"), VolumeSpec(name="w")),
    )  # fmt: skip
    first, second = await room.run("a"), await room.run("b")
    assert first.startswith("755\n")
    assert "new" in second and "app" in second and "group" not in second and "read only" in second


async def test_volumes_of_another_container(room: Room) -> None:
    image = {name: msgspec.structs.replace(i, config={"Volumes": {"/home": {}, "/../x": {}}})
             for name, i in (("source", room.harness._image), ("user", room.harness._image))}  # fmt: skip
    containers = (
        room.script("source", "echo here > /v/file; echo home > /home/file", mounts=(MountSpec(volume="v", path="/v"),)),
        room.script("user", "cat /v/file /home/file; ls /home; touch /v/y || echo read only",
                    volumes_from=(VolumesFromSpec(container="source", read_only=True),)),
    )  # fmt: skip
    sandbox = room.harness.sandbox

    def with_volumes(*given: ContainerSpec) -> SandboxSpec:
        return msgspec.structs.replace(sandbox(*given), images=image)

    room.harness.sandbox = with_volumes  # type: ignore[method-assign]
    await room.make(*containers, volumes=(VolumeSpec(name="v"),))
    await room.run("source")
    seen = await room.run("user")
    assert "here\nhome\n" in seen and "app" in seen and "read only" in seen


async def test_a_device_that_is_not_there(room: Room) -> None:
    device = DeviceSpec(host_path="/dev/nothing-like-it", container_path="/dev/x")
    with pytest.raises(DriverError, match="/dev/nothing-like-it") as caught:
        await room.make(room.script("a", "true", devices=(device,)))
    assert caught.value.kind == "NoSuchDevice"
