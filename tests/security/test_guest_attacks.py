"""Root in a privileged container of a real microVM, against the host, its neighbours, and its own machine's walls."""

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.conftest import REPO
from tests.host.test_network import Net
from tests.host.test_task_endpoint import view
from tests.support.busybox_image import make_busybox_image

from hutch.base.clock import SystemClock
from hutch.host.agent.credentials import RoleCredentials
from hutch.host.agent.endpoint import TaskEndpoint
from hutch.host.drivers.contract import ContainerExited, Handle, SandboxExited, SandboxSpec
from hutch.host.drivers.microvm.driver import MicrovmDriver
from hutch.host.kernel.cgroup import CGROUP_MOUNT, task_cgroup
from hutch.host.kernel.users import LEASES
from hutch.rules import netplan
from hutch.wire.taskspec import ContainerSpec, TaskSpec

pytestmark = pytest.mark.needs("root", "qemu", "guest_image", "nft", "skopeo")
HONEST_BYTES = 333
"""Of the ping that ends a round: all that was sent before it has then arrived, or never will."""
WITNESS = """
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3)); s.settimeout(60)
print("ready", flush=True)
while True:
    frame, where = s.recvfrom(2000)
    if where[2] == socket.PACKET_OUTGOING or where[0] == "lo":
        continue
    kind = frame[12:14].hex()
    address = socket.inet_ntoa(frame[28:32] if kind == "0806" else frame[26:30])
    claimed = frame[22:28].hex(":") if kind == "0806" else ""
    print(kind, frame[6:12].hex(":"), claimed, address, len(frame), flush=True)
"""


class Attack:
    """One VM on a real bridge, with a shell in it, and a neighbour."""

    def __init__(self, directory: Path, net: Net) -> None:
        self.net = net
        self.directory = directory / "sandbox"
        self.directory.mkdir(mode=0o700)
        self.driver = MicrovmDriver(
            platform_id=net.platform_id,
            guest_dir=REPO / "build" / "guest",
            state_dir=directory / "state",
            accelerator="tcg",
            clock=SystemClock(),
        )
        forever = ("sh", "-c", "trap exit TERM; sleep 100000 & wait")
        evil = ContainerSpec(
            name="evil", container_id="evil", image="busybox", command=forever, privileged=True
        )
        self.task = msgspec.structs.replace(net.task(), containers=(evil,), memory_mib=128)
        self.image = make_busybox_image(directory)
        self.handle: Handle

    async def start(self) -> None:
        attachment = await self.net.network.attach(self.task, "tap")
        self.handle = await self.driver.create(
            SandboxSpec(
                task=self.task,
                directory=str(self.directory),
                images={"evil": self.image},
                attachment=attachment,
            )
        )
        await self.driver.start_container(self.handle, self.task.containers[0])

    async def shell(self, script: str) -> str:
        """What a script prints that runs as root in the container; its failures are part of it."""
        result = await self.driver.probe(self.handle, "evil", ("/bin/sh", "-c", script), 60)
        assert not result.timed_out, result.output
        return result.output

    @property
    def pid(self) -> int:
        return int(self.handle.state["pid"])

    def left(self) -> list[str]:
        group = task_cgroup(self.net.platform_id, self.task.task_id)
        found = [str(p) for p in (CGROUP_MOUNT / group[1:], *CGROUP_MOUNT.glob(f"*{group}")) if p.exists()]
        found += [str(p) for p in LEASES.glob("*") if self.task.task_id in os.readlink(p)]
        return found + [str(p) for p in (self.directory / "vm").glob("*")]


@pytest.fixture
async def attack(tmp_path: Path) -> AsyncIterator[Attack]:
    net = Net(tmp_path, 234)
    await net.set_up()
    made = Attack(tmp_path, net)
    try:
        await made.start()
        yield made
    finally:
        await made.driver.destroy_leftovers(str(made.directory), made.task.task_id)
        await made.driver.close()
        await net.network.detach(made.task)
        await net.network.tear_down()
    assert made.left() == []


@contextlib.contextmanager
def witness(namespace: str) -> Iterator["subprocess.Popen[str]"]:
    """Tells every frame that arrives in a namespace: kind, source MAC, MAC and address that it claims, length."""
    argv = ["/sbin/ip", "netns", "exec", namespace, sys.executable, "-c", WITNESS]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def heard(process: "subprocess.Popen[str]", own_mac: str) -> list[list[str]]:
    """What came until the honest ping, besides what the bridge itself sends."""
    assert process.stdout is not None
    frames = []
    for line in process.stdout:
        frame = line.split(" ")
        frames.append(frame)
        if frame[1] == own_mac and int(frame[4]) >= HONEST_BYTES:
            return frames
    raise AssertionError("the witness ended")


async def test_root_in_a_guest_reaches_nothing(attack: Attack) -> None:
    victim, namespace = await attack.net.attached()
    try:
        assert victim.interface and attack.task.interface
        await _what_the_victim_can_see_of_itself(attack, victim)
        await _spoofing(attack, namespace, victim.interface.address)
        await _services_of_the_host(attack)
        await _walls_of_the_machine(attack)
        _the_monitor_s_jail(attack)
        await _the_end(attack)
    finally:
        await attack.net.network.detach(victim)


async def _spoofing(attack: Attack, namespace: str, victim: str) -> None:
    """The neighbour never hears a MAC or an address on the wire that is not the sender's own."""
    assert attack.task.interface
    own, mac = attack.task.interface.address, attack.task.interface.mac
    other, gateway = f"{attack.net.prefix}.0.99", attack.task.interface.gateway
    with witness(namespace) as process:
        told = await attack.shell(
            f"""
            ip addr add {other}/20 dev eth0 && ping -c 2 -W 1 -I {other} {victim}
            for claimed in {gateway} {victim} {other}; do
                busybox arping -c 1 -w 1 -U -I eth0 -s $claimed {victim}
                busybox arping -c 1 -w 1 -A -I eth0 -s $claimed {victim}
            done
            ip addr del {other}/20 dev eth0
            ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:01; ip link set eth0 up
            ping -c 2 -W 1 {victim}
            ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up
            ping -c 1 -W 5 -s {HONEST_BYTES} {victim} | grep received; echo done
            """
        )
        assert "done" in told and "1 packets received" in told, told
        frames = await asyncio.wait_for(asyncio.to_thread(heard, process, mac), 30)
    assert frames
    hosts = {p.read_text().strip() for p in Path("/sys/class/net").glob("*/address")}
    for kind, source, claimed, address, _ in frames:
        if kind == "86dd" and source in hosts:
            continue  # the host's own end of a link, which looks for IPv6 routers
        bridge = netplan.bridge_mac(attack.net.platform_id)
        assert (source, address) in ((mac, own), (bridge, gateway)), (kind, source, claimed, address)
        assert claimed in ("", source)


async def _what_the_victim_can_see_of_itself(attack: Attack, victim: TaskSpec) -> None:
    """Metadata and credentials of another task: not for who knows their paths, nor for who claims its address."""
    main = ContainerSpec(
        name="main", container_id="c", image="i", metadata_id="known", environment={"KEY": "TOP-SECRET"}
    )
    tasks = {}
    for spec in (
        msgspec.structs.replace(victim, containers=(main,), credentials_id="known"),
        msgspec.structs.replace(attack.task, containers=(msgspec.structs.replace(main, metadata_id="own"),)),
    ):
        assert spec.interface
        tasks[spec.interface.address] = view(spec, attack.net.network)
    clock = SystemClock()
    endpoint = TaskEndpoint(tasks.get, RoleCredentials(clock, lambda _: False), clock)
    listening = attack.net.network.endpoint_socket()
    assert listening is not None and victim.interface
    await endpoint.start(listening)
    address = victim.interface.address
    try:
        told = await attack.shell(
            f"""
            ask() {{ printf 'GET %s HTTP/1.1\\r\\nX-Forwarded-For: {address}\\r\\nHost: {address}\\r\\n\\r\\n' "$1" |
                busybox nc -w 3 169.254.170.2 80 | head -n 1; }}
            ask /v4/own/task
            for path in /v4/known /v4/known/task /v3/known/stats /v4/known/task/stats /v2/credentials/known; do ask $path; done
            echo spoofed; ip addr add {address}/32 dev eth0
            ip route add 169.254.170.2 dev eth0 src {address} && ask /v4/known
            ip route del 169.254.170.2; ip addr del {address}/32 dev eth0
            echo done
            """
        )
    finally:
        await endpoint.close()
    before, _, spoofed = told.partition("spoofed")
    answers = [line.strip() for line in before.strip().splitlines()]
    assert answers == ["HTTP/1.1 200 OK"] + ["HTTP/1.1 404 Not Found"] * 5, told
    assert "timed out" in spoofed and "HTTP" not in spoofed and "done" in spoofed, told


async def _services_of_the_host(attack: Attack) -> None:
    """Whatever listens on the host, on each of its addresses, does not answer."""
    assert attack.task.interface
    lines = subprocess.run(
        ["/sbin/ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True
    ).stdout
    addresses = [line.split()[3].partition("/")[0] for line in lines.splitlines()]
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        for address in addresses:
            socket.create_connection((address, port), timeout=5).close()
        tries = [f"busybox nc -w 3 {a} {port} </dev/null && echo reached {a}" for a in addresses]
        tries.append("busybox nc -w 3 169.254.169.254 80 </dev/null && echo reached metadata")
        told = await attack.shell("; ".join(tries) + "; echo done")
    assert "done" in told and "reached" not in told, told


async def _walls_of_the_machine(attack: Attack) -> None:
    """Root disks can't be written, the scratch disk does not grow, the agent's port is taken."""
    told = await attack.shell(
        """
        mount -t devtmpfs none /tmp
        for disk in vda vdb; do
            [ -b /tmp/$disk ] && size=$(cat /sys/block/$disk/size)
            [ "$(cat /sys/block/$disk/ro)" = 1 ] && kind=readonly || kind=writable
            last=- first=- beyond=no
            dd if=/tmp/$disk of=/dev/null bs=512 skip=$((size-1)) count=1 2>/dev/null && last=readable
            if [ $kind = readonly ]; then
                first=no; dd if=/bin/busybox of=/tmp/$disk bs=512 count=1 conv=notrunc 2>/dev/null && first=yes
            fi
            dd if=/bin/busybox of=/tmp/$disk bs=512 seek=$size count=1 conv=notrunc 2>/dev/null && beyond=yes
            echo $kind last=$last first=$first beyond=$beyond
        done
        for port in /tmp/vport*; do (exec 3<>$port) 2>&1; done
        echo done
        """
    )
    assert "readonly last=readable first=no beyond=no" in told, told
    assert "writable last=readable first=- beyond=no" in told, told
    assert "vport" in told and "busy" in told, told
    scratch = (attack.directory / "vm" / "scratch.img").stat()
    assert scratch.st_size == attack.task.ephemeral_gib << 30
    assert scratch.st_blocks * 512 <= scratch.st_size


def _the_monitor_s_jail(attack: Attack) -> None:
    """What QEMU itself is left with, should the guest take it over."""
    process = Path(f"/proc/{attack.pid}")
    status = dict(
        line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line
    )
    assert {int(status[name], 16) for name in status if name.startswith("Cap")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["Uid"].split()[0]) > 1_000_000 and status["Groups"].strip() == ""
    assert status["NSpid"].split()[1:] == ["1"]
    for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(process / "ns" / name) != os.readlink(f"/proc/self/ns/{name}")
    places = [line.split()[4] for line in (process / "mountinfo").read_text().splitlines()]
    assert sorted(places) == ["/", "/dev/urandom", "/proc"]
    limits = (process / "limits").read_text()
    assert f"Max file size             {attack.task.ephemeral_gib << 30} " in limits
    assert "Max core file size        0 " in limits
    templates = [p for p in (process / "fd").iterdir() if "memfd:hutch-template" in os.readlink(p)]
    assert templates, "it was restored from a template"
    for entry in templates:
        with entry.open("r+b", buffering=0) as memory, pytest.raises(PermissionError):
            memory.write(b"x")  # what one VM could change, all others would start with
    for entry in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            assert not stat.S_ISDIR(entry.stat().st_mode), os.readlink(entry)
    group = task_cgroup(attack.net.platform_id, attack.task.task_id)
    joined = [line for line in (process / "cgroup").read_text().splitlines() if line.endswith(group)]
    assert len(joined) >= 4 or joined[0].startswith("0:"), "memory, cpu, pids, blkio"
    socket_mode = (attack.directory / "vm" / "agent.sock").stat()
    assert (socket_mode.st_uid, stat.S_IMODE(socket_mode.st_mode)) == (0, 0o600)


async def _the_end(attack: Attack) -> None:
    """A machine that its root restarts ends, and takes nothing with it."""
    begun = asyncio.create_task(attack.shell("echo b > /proc/sysrq-trigger; reboot -f"))
    async with asyncio.timeout(60):
        ends = [e async for e in attack.driver.events(attack.handle) if not isinstance(e, ContainerExited)]
    await asyncio.gather(begun, return_exceptions=True)
    assert isinstance(ends[-1], SandboxExited) and ends[-1].kind in ("GuestReset", "GuestPoweredOff")
    await attack.driver.destroy(attack.handle)
    assert attack.left() == []
