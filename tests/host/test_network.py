"""The host's network, for real: who reaches whom, who can't pretend to be another, and that nothing is left over."""

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hutch.host.drivers.contract import Attachment, HostFault
from hutch.host.kernel import links, nft
from hutch.host.kernel.run import CommandFailed
from hutch.host.network import bridge as bridge_module
from hutch.host.network.bridge import BridgeNetwork
from hutch.host.network.resolvers import host_resolvers
from hutch.rules import netplan
from hutch.wire.taskspec import InterfaceSpec, TaskSpec

pytestmark = pytest.mark.needs("root", "nft")

FORWARDING = "net.ipv4.ip_forward"
RECEIVE = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); s.bind(("", 7000)); print("ready", flush=True)
while (m := s.recvfrom(100)[0].decode()) != "end":
    print(m, flush=True)
"""
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[3], 0)); s.sendto(sys.argv[2].encode(), (sys.argv[1], 7000))
"""
SERVE = """
import socket
s = socket.create_server(("", 7001)); s.settimeout(20); print("ready", flush=True); print(s.accept()[1][0], flush=True)
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 7001), timeout=5).close()"


def ip(*arguments: str) -> str:
    done = subprocess.run(["/sbin/ip", *arguments], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout


def python_in(namespace: str, code: str, *arguments: str) -> None:
    subprocess.run(
        ["/sbin/ip", "netns", "exec", namespace, sys.executable, "-c", code, *arguments],
        capture_output=True, timeout=30, check=True,
    )  # fmt: skip


@contextlib.contextmanager
def running_in(namespace: str, code: str) -> "Iterator[subprocess.Popen[str]]":
    """A Python program in a namespace that has said that it is ready."""
    argv = ["/sbin/ip", "netns", "exec", namespace, sys.executable, "-c", code]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Net:
    """A platform's network on a range that is free on this machine."""

    def __init__(self, directory: Path, number: int) -> None:
        self.platform_id = secrets.token_hex(4)
        self.state_path = directory / f"ip_forward-{self.platform_id}"
        self.network = BridgeNetwork(platform_id=self.platform_id, state_path=self.state_path)
        self.prefix = f"10.{number}"
        self._next = 10

    async def set_up(self) -> None:
        await self.network.set_up(
            f"{self.prefix}.0.0/16",
            (
                (f"{self.prefix}.0.0/20", f"{self.prefix}.0.1"),
                (f"{self.prefix}.16.0/20", f"{self.prefix}.16.1"),
            ),
        )

    def task(self, *, subnet: int = 0, network_mode: str = "awsvpc") -> TaskSpec:
        self._next += 1
        address = f"{self.prefix}.{subnet}.{self._next}"
        interface = InterfaceSpec(
            eni_id="eni-1",
            mac=netplan.mac_of(address),
            address=address,
            prefix_length=20,
            gateway=f"{self.prefix}.{subnet}.1",
        )
        return TaskSpec(
            task_id=secrets.token_hex(16), cluster="c", arn="a", family="f", revision=1, launch_type="FARGATE",
            cpu_units=256, memory_mib=512, ephemeral_gib=1, network_mode=network_mode, containers=(),
            interface=interface if network_mode == "awsvpc" else None,
        )  # fmt: skip

    async def attached(self, *, subnet: int = 0) -> tuple[TaskSpec, str]:
        """A task with a port, and its namespace."""
        task = self.task(subnet=subnet)
        await self.network.attach(task, "netns")
        return task, netplan.netns_name(self.platform_id, task.task_id)

    async def leftovers(self) -> list[str]:
        """Everything on the host that bears the platform's name, but the bridge and the empty tables."""
        names = [n.split("@")[0] for n in (line.split(": ")[1] for line in ip("-o", "link").splitlines())]
        found = [n for n in names if netplan.is_port_name(self.platform_id, n)]
        found += [n for n in links.namespaces() if n.startswith(netplan.netns_prefix(self.platform_id))]
        elements = await nft.set_elements("bridge", netplan.table_name(self.platform_id), "sources")
        return found + [" ".join(e) for e in elements]

    def tables(self) -> list[str]:
        listed = subprocess.run(
            ["/usr/sbin/nft", "list", "tables"], capture_output=True, text=True, check=True
        )
        return [line for line in listed.stdout.splitlines() if self.platform_id in line]


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    made = Net(tmp_path, 231)
    await made.set_up()
    try:
        yield made
    finally:
        await made.network.tear_down()


@pytest.fixture
def outside() -> Iterator[tuple[str, str, str]]:
    """A namespace beyond the host that has no way back to the VPC: (name, host's address there, its own address)."""
    tag = secrets.token_hex(3)
    name, link = f"outside-{tag}", f"out{tag}"
    ip("netns", "add", name)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", "198.51.100.1/24", "dev", link)
        ip("link", "set", link, "up")
        for address in ("198.51.100.2/24", "169.254.77.77/32"):
            ip("-n", name, "addr", "add", address, "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("route", "add", "169.254.77.77/32", "dev", link)
        yield name, "198.51.100.1", "198.51.100.2"
    finally:
        ip("netns", "del", name)


async def reaches(sender: str, receiver: str, address: str) -> str:
    """Connect from one namespace to a server in another; the peer address that the server saw."""
    with running_in(receiver, SERVE) as server:
        await asyncio.to_thread(python_in, sender, CONNECT, address)
        assert server.stdout is not None
        return server.stdout.readline().strip()


async def test_tasks_reach_each_other_also_across_subnets(net: Net) -> None:
    (one, here), (two, there), (far, beyond) = [await net.attached(subnet=s) for s in (0, 0, 16)]
    assert one.interface and two.interface and far.interface
    assert await reaches(here, there, two.interface.address) == one.interface.address
    assert await reaches(here, beyond, far.interface.address) == one.interface.address


async def test_the_host_reaches_a_task_and_a_task_reaches_the_outside(
    net: Net, outside: tuple[str, str, str]
) -> None:
    task, namespace = await net.attached()
    assert task.interface
    with running_in(namespace, SERVE) as server:
        done = subprocess.run([sys.executable, "-c", CONNECT, task.interface.address], timeout=20)
        assert done.returncode == 0 and server.stdout is not None
        assert server.stdout.readline().strip() == f"{net.prefix}.0.1"
    name, host_address, address = outside
    assert await reaches(namespace, name, address) == host_address, "masqueraded as the host"


async def test_what_listens_on_the_host_is_not_there_for_tasks(
    net: Net, outside: tuple[str, str, str]
) -> None:
    _, namespace = await net.attached()
    with socket.create_server(("", 7001)) as server:
        for address in (f"{net.prefix}.0.1", f"{net.prefix}.16.1", outside[1]):
            with pytest.raises(subprocess.CalledProcessError) as refused:
                python_in(namespace, CONNECT, address)
            assert b"ConnectionRefusedError" in refused.value.stderr, "refused at once, not left to time out"
            socket.create_connection((address, 7001), timeout=5).close()
            server.accept()[0].close()


async def test_a_task_gets_no_answer_from_the_host_s_metadata_service(
    net: Net, outside: tuple[str, str, str]
) -> None:
    _, namespace = await net.attached()
    with running_in(outside[0], SERVE) as server:
        with pytest.raises(subprocess.CalledProcessError) as refused:
            python_in(namespace, CONNECT, "169.254.77.77")
        assert b"ConnectionRefusedError" in refused.value.stderr, "refused at once, not left to time out"
        assert subprocess.run([sys.executable, "-c", CONNECT, "169.254.77.77"], timeout=20).returncode == 0
        assert server.stdout is not None
        assert server.stdout.readline().strip() == "198.51.100.1", "the host itself still reaches it"


async def test_the_outside_can_not_come_in_by_itself(net: Net, outside: tuple[str, str, str]) -> None:
    task, namespace = await net.attached()
    assert task.interface
    name, host_address, _ = outside
    ip("-n", name, "route", "add", "default", "via", host_address)
    with running_in(namespace, SERVE), pytest.raises(subprocess.CalledProcessError) as failure:
        python_in(name, CONNECT, task.interface.address)
    assert b"TimeoutError" in failure.value.stderr


async def test_a_task_can_not_use_another_address_or_mac(net: Net) -> None:
    (one, evil), (two, victim) = [await net.attached() for _ in range(2)]
    assert one.interface and two.interface
    own, other = one.interface.address, f"{net.prefix}.0.99"
    ip("-n", evil, "addr", "add", f"{other}/20", "dev", "eth0")
    with running_in(victim, RECEIVE) as receiver:
        target = two.interface.address
        python_in(evil, SEND, target, "hello", own)
        python_in(evil, SEND, target, "forged address", other)
        ip("-n", evil, "link", "set", "eth0", "address", "02:00:00:00:00:01")
        ip("-n", evil, "neigh", "replace", target, "lladdr", two.interface.mac, "dev", "eth0")
        python_in(evil, SEND, target, "forged MAC", own)
        ip("-n", evil, "link", "set", "eth0", "address", one.interface.mac)
        ip("-n", evil, "neigh", "replace", target, "lladdr", two.interface.mac, "dev", "eth0")
        python_in(evil, SEND, target, "honest again", own)
        python_in(evil, SEND, target, "end", own)
        assert receiver.stdout is not None
        assert receiver.stdout.read().splitlines() == ["hello", "honest again"]


async def test_a_task_can_not_answer_arp_for_another(net: Net) -> None:
    (one, evil), (two, victim), (three, asked) = [await net.attached() for _ in range(3)]
    assert one.interface and two.interface and three.interface
    await reaches(victim, asked, three.interface.address)
    forged = f"""
import socket
own, claimed, victim = (bytes.fromhex(m.replace(":", "")) for m in
                        ({one.interface.mac!r}, {three.interface.mac!r}, {two.interface.mac!r}))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
head = bytes.fromhex("0001080006040002")
mine, theirs, to = (socket.inet_aton(a) for a in
                    ({one.interface.address!r}, {three.interface.address!r}, {two.interface.address!r}))
# "Three is at one's MAC"; the same with three's MAC on the frame; and "one is at a MAC that is not its own".
for source, sender, address in ((own, own, theirs), (claimed, own, theirs), (own, b"\\x02" + bytes(5), mine)):
    s.send(victim + source + b"\\x08\\x06" + head + sender + address + victim + to)
"""
    before = ip("-n", victim, "neigh", "show", three.interface.address).split()
    with running_in(victim, RECEIVE) as receiver:
        python_in(evil, forged)
        python_in(evil, SEND, two.interface.address, "end", one.interface.address)
        assert receiver.wait(timeout=20) == 0, "a frame sent after the forged ones has arrived"
    after = ip("-n", victim, "neigh", "show").splitlines()
    assert any(three.interface.address in n and three.interface.mac in n for n in after), (before, after)
    assert any(one.interface.address in n and one.interface.mac in n for n in after)


async def test_a_port_without_rules_is_deaf(net: Net) -> None:
    (one, here), (two, there) = [await net.attached() for _ in range(2)]
    assert one.interface and two.interface
    await reaches(here, there, two.interface.address)
    port = netplan.port_name(net.platform_id, one.task_id)
    await nft.apply(netplan.detach_rules(net.platform_id, port, one.interface.mac, one.interface.address))
    with running_in(there, SERVE), pytest.raises(subprocess.CalledProcessError):
        python_in(here, CONNECT, two.interface.address)


async def test_the_gateway_s_mac_does_not_change_with_the_ports(net: Net) -> None:
    def mac() -> str:
        return Path(f"/sys/class/net/{netplan.bridge_name(net.platform_id)}/address").read_text().strip()

    macs = {mac()}
    for _ in range(3):
        task = net.task()
        await net.network.attach(task, "tap")
        macs.add(mac())
        await net.network.detach(task)
        macs.add(mac())
    assert macs == {netplan.bridge_mac(net.platform_id)}


async def test_a_tap_is_named_after_its_task_and_survives_a_second_attach(net: Net) -> None:
    task = net.task()
    first = await net.network.attach(task, "tap")
    fd = links.open_tap(first.tap)
    try:
        assert await net.network.attach(task, "tap") == first, "also while a VM holds the device"
    finally:
        os.close(fd)
    assert Path(f"/sys/class/net/{first.tap}/ifalias").read_text().strip() == task.task_id
    await net.network.detach(task)
    await net.network.detach(task)
    assert await net.leftovers() == []


async def test_network_modes_host_and_none(net: Net) -> None:
    host = await net.network.attach(net.task(network_mode="host"), "tap")
    assert host.host_network and not host.tap
    assert await net.network.attach(net.task(network_mode="none"), "tap") == Attachment()
    task = net.task(network_mode="none")
    alone = await net.network.attach(task, "netns")
    name = netplan.netns_name(net.platform_id, task.task_id)
    assert alone.netns_path.endswith(name)
    assert len(ip("-n", name, "-o", "link").splitlines()) == 1
    await net.network.detach(task)
    assert await net.leftovers() == []


@pytest.mark.parametrize("kind", ["tap", "netns"])
async def test_whatever_step_fails_detach_leaves_nothing(
    net: Net, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 3 if kind == "tap" else 4
    real_perform, real_apply = bridge_module.perform, nft.apply
    for failing in range(steps):
        done = 0

        def step(failing: int = failing) -> None:
            nonlocal done
            done += 1
            if done == failing + 1:
                raise OSError(12, "injected")

        def perform(*arguments: object) -> None:
            step()
            real_perform(*arguments)  # type: ignore[arg-type]

        async def apply(commands: str, *, may_be_gone: bool = False) -> None:
            try:
                step()
            except OSError:
                raise CommandFailed(["nft"], 1, b"", b"injected") from None
            await real_apply(commands, may_be_gone=may_be_gone)

        task = net.task()
        with monkeypatch.context() as patched:
            patched.setattr(bridge_module, "perform", perform)
            patched.setattr(nft, "apply", apply)
            with pytest.raises(HostFault, match="injected"):
                await net.network.attach(task, kind)
        await net.network.detach(task)
        assert await net.leftovers() == [], f"step {failing}"
    task = net.task()
    await net.network.attach(task, kind)
    assert await net.leftovers() != []


async def test_a_cancelled_attach_does_nothing_behind_our_back(net: Net) -> None:
    for _ in range(5):
        task = net.task()
        attaching = asyncio.create_task(net.network.attach(task, "netns"))
        while not attaching.done() and not await net.leftovers():
            pass
        attaching.cancel()
        await asyncio.gather(attaching, return_exceptions=True)
        await net.network.detach(task)
        assert await net.leftovers() == []


async def test_half_made_namespaces_are_made_anew_and_removed(net: Net) -> None:
    task = net.task()
    path = Path(links.namespace_path(netplan.netns_name(net.platform_id, task.task_id)))
    path.parent.mkdir(exist_ok=True)
    path.touch()
    await net.network.attach(task, "netns")
    await net.network.detach(task)
    path.touch()
    await net.network.detach(task)
    assert await net.leftovers() == []


async def test_strays_go_and_the_others_stay(net: Net) -> None:
    kept, _ = await net.attached()
    stray, _ = await net.attached()
    tapped = net.task()
    await net.network.attach(tapped, "tap")
    await net.network.remove_strays(frozenset({kept.task_id}))
    left = await net.leftovers()
    assert len(left) == 3 and all(
        netplan.port_name(net.platform_id, kept.task_id) in name
        or name == netplan.netns_name(net.platform_id, kept.task_id)
        for name in left
    )
    assert stray.task_id != kept.task_id


async def test_set_up_again_leaves_the_tasks_alone(net: Net) -> None:
    (_, here), (two, there) = [await net.attached() for _ in range(2)]
    assert two.interface
    await net.set_up()
    await reaches(here, there, two.interface.address)


async def test_two_platforms_side_by_side(net: Net, tmp_path: Path) -> None:
    other = Net(tmp_path, 232)
    await other.set_up()
    try:
        (_, here), (two, there) = [await net.attached() for _ in range(2)]
        theirs, beyond = await other.attached()
        assert two.interface and theirs.interface
        with running_in(beyond, SERVE), pytest.raises(subprocess.CalledProcessError):
            python_in(here, CONNECT, theirs.interface.address)
    finally:
        await other.network.tear_down()
    assert other.tables() == [] and await other.leftovers() == []
    await reaches(here, there, two.interface.address)


async def test_tear_down_leaves_nothing_and_needs_nothing(tmp_path: Path) -> None:
    before = links.read_sysctl(FORWARDING)
    net = Net(tmp_path, 233)
    await net.network.tear_down()
    await net.network.detach(net.task())
    await net.set_up()
    await net.attached()
    assert links.read_sysctl(FORWARDING) == "1"
    bridge = netplan.bridge_name(net.platform_id)
    assert Path(f"/sys/class/net/{bridge}").exists()
    with_others = [n for n in ip("-o", "link", "show", "type", "bridge").splitlines() if bridge not in n]
    await net.network.tear_down()
    assert not Path(f"/sys/class/net/{bridge}").exists()
    assert net.tables() == [] and await net.leftovers() == [] and not net.state_path.exists()
    if not with_others:
        assert links.read_sysctl(FORWARDING) == before


def test_resolvers_that_a_task_can_reach(tmp_path: Path) -> None:
    stub, real, missing = tmp_path / "stub", tmp_path / "real", tmp_path / "missing"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\nsearch lan\n")
    real.write_text("# real\nnameserver fe80::1%eth0\nnameserver 192.0.2.53\nsearch corp example.com .\n")
    assert host_resolvers((str(stub), str(real))) == (("192.0.2.53",), ("corp", "example.com"))
    assert host_resolvers((str(stub), str(missing))) == ((), ())
