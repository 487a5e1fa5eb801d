"""Carries out the operations of `rules.netplan` that need the kernel's netlink; called in a worker thread."""

import errno
from pathlib import Path

from pyroute2 import IPRoute

from hutch.host.kernel import links
from hutch.rules import netplan

FORWARDING = "net.ipv4.ip_forward"


def perform(ip: IPRoute, operation: netplan.Operation, state_path: Path) -> None:
    """One operation, idempotent. `state_path` remembers what forwarding was. Raises `NetlinkError`, `OSError`."""
    match operation:
        case netplan.AddBridge():
            links.add_bridge(ip, operation.name, operation.mac, operation.addresses)
        case netplan.AddTap():
            links.add_tap(operation.name)
        case netplan.AddNamespace():
            links.add_namespace(operation.name)
        case netplan.AddVeth():
            links.add_veth(
                ip,
                operation.namespace,
                operation.port,
                operation.mac,
                operation.address,
                operation.prefix_length,
                operation.gateway,
                operation.mtu,
            )
        case netplan.JoinBridge():
            links.join_bridge(ip, operation.port, operation.bridge, operation.alias)
        case netplan.DeleteLink():
            links.delete_link(ip, operation.name)
        case netplan.DeleteNamespace():
            links.delete_namespace(operation.name)
        case netplan.SetForwarding():
            _set_forwarding(ip, operation.on, state_path)
        case _:
            raise OSError(errno.EINVAL, f"{type(operation).__name__} is not done by netlink")


def _set_forwarding(ip: IPRoute, on: bool, state_path: Path) -> None:
    """On: for us, remembered before it is done. Off: only if it was off before us, and no other bridge is there that
    may rely on it by now (Docker's, libvirt's, another platform's)."""
    if on:
        if links.read_sysctl(FORWARDING) != "1":
            state_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            state_path.write_text("0")
            links.write_sysctl(FORWARDING, "1")
    elif state_path.exists():
        if not links.other_bridges(ip, ""):
            links.write_sysctl(FORWARDING, "0")
        state_path.unlink()
