"""The platform's bridge on this host, and a port for each task: carries out the plans of `rules.netplan`."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute, NetlinkError

from hutch.base.threads import in_thread
from hutch.host.drivers.contract import Attachment, HostFault
from hutch.host.kernel import links, nft
from hutch.host.kernel.listeners import listen_on_link
from hutch.host.kernel.run import CommandFailed
from hutch.host.network.contract import Counters, Traffic
from hutch.host.network.operations import perform
from hutch.host.network.resolvers import host_resolvers
from hutch.rules import netplan
from hutch.wire.taskspec import TaskSpec

T = TypeVar("T")


class BridgeNetwork:
    """`hutch.host.network.contract.HostNetwork` with a Linux bridge, taps, veths and nftables.

    `state_path` remembers whether forwarding was switched on by us. `task_api`: the platform's API, which somebody else
    serves, is open to tasks. A verb that is cancelled ends its step first, so
    that whoever cleans up comes after it, never beside it.
    """

    def __init__(self, *, platform_id: str, state_path: Path, task_api: bool = False) -> None:
        self._platform_id = platform_id
        self._state_path = state_path
        self._task_api = task_api

    async def set_up(self, vpc_cidr: str, subnets: tuple[tuple[str, str], ...]) -> None:
        """Bridge, gateway addresses, forwarding, NAT and the rules' tables."""
        await self._carry_out(
            netplan.set_up_plan(self._platform_id, vpc_cidr, subnets, task_api=self._task_api)
        )

    async def attach(self, task: TaskSpec, kind: str) -> Attachment:
        """The task's port; see the contract."""
        servers, search = await asyncio.to_thread(host_resolvers)
        if task.network_mode == "host":
            return Attachment(host_network=True, nameservers=servers, search=search)
        namespace = netplan.netns_name(self._platform_id, task.task_id)
        interface = task.interface
        if task.network_mode == "none" or interface is None:
            if kind == "tap":
                return Attachment()
            await self._carry_out((netplan.AddNamespace(name=namespace),))
            return Attachment(netns_path=links.namespace_path(namespace))
        port = netplan.PortPlan(
            task_id=task.task_id,
            kind=kind,
            mac=interface.mac,
            address=interface.address,
            prefix_length=interface.prefix_length,
            gateway=interface.gateway,
            mtu=interface.mtu,
        )
        await self._carry_out(netplan.attach_plan(self._platform_id, port))
        return Attachment(
            tap=netplan.port_name(self._platform_id, task.task_id) if kind == "tap" else "",
            netns_path=links.namespace_path(namespace) if kind == "netns" else "",
            nameservers=servers,
            search=search,
        )

    async def detach(self, task: TaskSpec) -> None:
        """Remove the task's port, namespace and rules; also if they never were."""
        interface = task.interface
        mac, address = (interface.mac, interface.address) if interface is not None else ("", "")
        await self._carry_out(netplan.detach_plan(self._platform_id, task.task_id, mac, address))

    async def remove_strays(self, task_ids: frozenset[str]) -> None:
        """Remove ports, namespaces and rules of this platform that belong to none of these tasks."""
        ports = {netplan.port_name(self._platform_id, t) for t in task_ids}
        spaces = {netplan.netns_name(self._platform_id, t) for t in task_ids}
        names = await self._netlink(links.link_names)
        plan: list[netplan.Operation] = [
            netplan.DeleteLink(name=n)
            for n in names
            if netplan.is_port_name(self._platform_id, n) and n not in ports
        ]
        plan += [
            netplan.DeleteNamespace(name=n)
            for n in await asyncio.to_thread(links.namespaces)
            if n.startswith(netplan.netns_prefix(self._platform_id)) and n not in spaces
        ]
        table = netplan.table_name(self._platform_id)
        try:
            known = await nft.set_elements("bridge", table, "sources")
        except CommandFailed as failure:
            raise _rules_fault(failure) from None
        stale = [e for e in known if e[0] not in ports]
        if stale:
            commands = "".join(netplan.detach_rules(self._platform_id, *e) for e in stale)
            plan.append(netplan.ApplyRules(commands=commands, may_be_gone=True))
        await self._carry_out(plan)

    def traffic(self, task: TaskSpec) -> Traffic | None:
        """What has passed the task's port; see the contract."""
        seen = links.counters(netplan.port_name(self._platform_id, task.task_id))
        if seen is None:
            return None
        # What the host's end of the link receives is what the task sends.
        return Traffic(
            received=Counters(
                bytes=seen["tx_bytes"],
                packets=seen["tx_packets"],
                errors=seen["tx_errors"],
                dropped=seen["tx_dropped"],
            ),
            sent=Counters(
                bytes=seen["rx_bytes"],
                packets=seen["rx_packets"],
                errors=seen["rx_errors"],
                dropped=seen["rx_dropped"],
            ),
        )

    def endpoint_socket(self) -> socket.socket | None:
        """Where tasks ask for what ECS has for them; see the contract."""
        address, port = netplan.TASK_ENDPOINT
        try:
            return listen_on_link(address, port, netplan.bridge_name(self._platform_id))
        except OSError as error:
            raise HostFault(
                "NetworkFault",
                f"tasks can't get credentials: {address}:{port} can't be listened on: {error.strerror}",
                fix="find who listens on port 80 of every address, and let it listen on fewer",
            ) from None

    async def tear_down(self) -> None:
        """Remove all that this platform made on the host."""
        await self.remove_strays(frozenset())
        await self._carry_out(netplan.tear_down_plan(self._platform_id))

    async def _carry_out(self, plan: Sequence[netplan.Operation]) -> None:
        """The operations in their order; what stands side by side shares one netlink socket and one thread."""
        batch: list[netplan.Operation] = []
        for operation in plan:
            if not isinstance(operation, netplan.ApplyRules):
                batch.append(operation)
                continue
            await self._perform(batch)
            batch = []
            try:
                await nft.apply(operation.commands, may_be_gone=operation.may_be_gone)
            except CommandFailed as failure:
                raise _rules_fault(failure) from None
        await self._perform(batch)

    async def _perform(self, batch: list[netplan.Operation]) -> None:
        def work(ip: IPRoute) -> None:
            for operation in batch:
                perform(ip, operation, self._state_path)

        if batch:
            await self._netlink(work)

    async def _netlink(self, work: Callable[[IPRoute], T]) -> T:
        def call() -> T:
            with IPRoute() as ip:
                return work(ip)

        try:
            # Some milliseconds; not waited for, it would make links behind our back.
            return await in_thread(call)
        except (NetlinkError, OSError) as error:
            raise HostFault(
                "NetworkFault",
                f"the host's network can't be set up: {error}",
                fix="hutch needs root (CAP_NET_ADMIN), bridge, tun and nf_tables support; see `hutch doctor`",
                aws_prefix="ResourceInitializationError",
            ) from None


def _rules_fault(failure: CommandFailed) -> HostFault:
    return HostFault(
        "NetworkFault",
        f"nftables refused the platform's rules: {failure.message}",
        fix="install nftables, and load the kernel's nf_tables module",
        aws_prefix="ResourceInitializationError",
    )


async def networks_in_use() -> list[str]:
    """The IPv4 networks of this host, for choosing a range that is free."""

    def read() -> list[str]:
        with IPRoute() as ip:
            return links.networks_in_use(ip)

    return await asyncio.to_thread(read)
