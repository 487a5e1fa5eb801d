"""The platform's bridge on this host, and a port for each task. Names and rules come from `rules.netplan`."""

import asyncio
import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from hutch.base.log import get_logger
from hutch.host.drivers.contract import Attachment, HostFault
from hutch.host.kernel import links
from hutch.host.kernel.run import CommandFailed, run
from hutch.rules import netplan
from hutch.wire.fleet import TaskSpec

log = get_logger(__name__)

_RESOLV_CONF = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
_FORWARDING = "net.ipv4.ip_forward"


class BridgeNetwork:
    """`hutch.host.network.contract.HostNetwork` with a Linux bridge, taps, veths and nftables.

    `state_path` remembers whether forwarding was switched on by us.
    """

    def __init__(self, *, platform_id: str, state_path: Path) -> None:
        self._platform_id = platform_id
        self._bridge = netplan.bridge_name(platform_id)
        self._state_path = state_path
        self._nameservers: tuple[str, ...] = ()
        self._search: tuple[str, ...] = ()

    async def set_up(self, vpc_cidr: str, subnets: tuple[tuple[str, str], ...]) -> None:
        """Bridge, gateway addresses, forwarding, NAT and the rules' tables."""
        addresses = [(gateway, ipaddress.ip_network(cidr).prefixlen) for cidr, gateway in subnets]

        def make(ip: IPRoute) -> None:
            links.add_bridge(ip, self._bridge, addresses)
            if links.read_sysctl(_FORWARDING) != "1":
                self._state_path.write_text("0")
                links.write_sysctl(_FORWARDING, "1")

        await self._netlink(make)
        await self._nft(netplan.base_rules(self._platform_id, vpc_cidr))
        self._nameservers, self._search = _host_resolvers()

    async def attach(self, task: TaskSpec, kind: str) -> Attachment:
        """The task's port; see the contract."""
        if task.network_mode == "host":
            return Attachment(host_network=True, nameservers=self._nameservers, search=self._search)
        port = netplan.port_name(self._platform_id, task.task_id)
        namespace = netplan.netns_name(self._platform_id, task.task_id)
        interface = task.interface
        if task.network_mode == "none" or interface is None:
            if kind == "tap":
                return Attachment()
            return Attachment(netns_path=await asyncio.to_thread(links.add_empty_namespace, namespace))

        def make(ip: IPRoute) -> str:
            path = ""
            if kind == "tap":
                links.add_tap(port)
            else:
                path = links.add_veth_namespace(
                    ip,
                    namespace,
                    port,
                    interface.mac,
                    interface.address,
                    interface.prefix_length,
                    interface.gateway,
                    interface.mtu,
                )
            links.join_bridge(ip, port, self._bridge)
            return path

        path, _ = await asyncio.gather(
            self._netlink(make),
            self._nft(netplan.attach_rules(self._platform_id, port, interface.mac, interface.address)),
        )
        return Attachment(
            tap=port if kind == "tap" else "",
            netns_path=path,
            nameservers=self._nameservers,
            search=self._search,
        )

    async def detach(self, task: TaskSpec) -> None:
        """Remove the task's port, namespace and rules; also if they never were."""
        port = netplan.port_name(self._platform_id, task.task_id)
        await self._netlink(lambda ip: links.delete_link(ip, port))
        await asyncio.to_thread(links.delete_namespace, netplan.netns_name(self._platform_id, task.task_id))
        if task.interface is not None:
            interface = task.interface
            rules = netplan.detach_rules(self._platform_id, port, interface.mac, interface.address)
            try:
                # What is not there can't be deleted: adding it first makes both cases one.
                await self._nft(
                    netplan.attach_rules(self._platform_id, port, interface.mac, interface.address) + rules
                )
            except HostFault as fault:
                log.warning("rules of a port not removed", port=port, reason=fault.message)

    async def remove_strays(self, task_ids: frozenset[str]) -> None:
        """Remove ports and namespaces of this platform that belong to none of these tasks."""
        ports = {netplan.port_name(self._platform_id, t) for t in task_ids}
        spaces = {netplan.netns_name(self._platform_id, t) for t in task_ids}

        def clean(ip: IPRoute) -> None:
            for name in links.link_names(ip):
                if netplan.is_port_name(self._platform_id, name) and name not in ports:
                    links.delete_link(ip, name)

        await self._netlink(clean)
        for name in await asyncio.to_thread(links.namespaces):
            if name.startswith(f"hutch-{self._platform_id}-") and name not in spaces:
                await asyncio.to_thread(links.delete_namespace, name)

    async def tear_down(self) -> None:
        """Remove all that this platform made on the host."""
        await self.remove_strays(frozenset())

        def clean(ip: IPRoute) -> bool:
            links.delete_link(ip, self._bridge)
            return any(n.startswith("hutch-") for n in links.link_names(ip))

        others = await self._netlink(clean)
        await self._nft(netplan.tear_down_rules(self._platform_id))
        if self._state_path.exists():
            # Switched on by us: off again, unless another platform's bridge still needs it.
            if not others:
                links.write_sysctl(_FORWARDING, self._state_path.read_text().strip())
            self._state_path.unlink()

    async def _netlink(self, work: Callable[[IPRoute], Any]) -> Any:
        def call() -> Any:
            with IPRoute() as ip:
                return work(ip)

        try:
            return await asyncio.to_thread(call)
        except (NetlinkError, OSError) as error:
            raise HostFault(
                "NetworkFault",
                f"the host's network can't be set up: {error}",
                fix="hutch needs root (CAP_NET_ADMIN), bridge, tun and nf_tables support; see `hutch doctor`",
                aws_prefix="ResourceInitializationError",
            ) from None

    async def _nft(self, commands: str) -> None:
        try:
            await run(["/usr/sbin/nft", "-f", "-"], input_bytes=commands.encode(), timeout_s=30)
        except CommandFailed as failure:
            raise HostFault(
                "NetworkFault",
                f"nftables refused the platform's rules: {failure.message}",
                fix="install nftables, and load the kernel's nf_tables module",
                aws_prefix="ResourceInitializationError",
            ) from None


def _host_resolvers() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name servers and search domains that a task can use: the host's, unless they are a stub on its loopback."""
    for path in _RESOLV_CONF:
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        words = [line.split() for line in lines if line.strip()]
        servers = tuple(w[1] for w in words if w[0] == "nameserver" and len(w) > 1)
        usable = tuple(s for s in servers if not s.startswith("127.") and s != "::1")
        if usable:
            search = next((tuple(w[1:]) for w in words if w[0] == "search"), ())
            return usable, search
    return (), ()


async def networks_in_use() -> list[str]:
    """The IPv4 networks of this host, for choosing a range that is free."""

    def read() -> list[str]:
        with IPRoute() as ip:
            return links.networks_in_use(ip)

    return await asyncio.to_thread(read)
