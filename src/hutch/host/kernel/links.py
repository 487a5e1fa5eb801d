"""Network links, addresses and namespaces by netlink. Every call is idempotent: making what is there, and removing
what is not, are no errors. All are quick (well below 10 ms) and are called from a worker thread."""

import errno
import fcntl
import os
import struct
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError, NetNS, netns

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
TAP_FLAGS = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR


def open_tap(name: str) -> int:
    """A file descriptor of a tap device, which is made if it is missing. The caller closes it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_FLAGS))
    except OSError:
        os.close(fd)
        raise
    return fd


def add_tap(name: str) -> None:
    """A persistent tap device, which stays when nobody has it open."""
    fd = open_tap(name)
    try:
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


def link_index(ip: IPRoute, name: str) -> int | None:
    found = ip.link_lookup(ifname=name)
    return int(found[0]) if found else None


def add_bridge(ip: IPRoute, name: str, addresses: list[tuple[str, int]]) -> None:
    """A bridge with (address, prefix length) pairs, up."""
    if link_index(ip, name) is None:
        ip.link("add", ifname=name, kind="bridge")
    index = link_index(ip, name)
    for address, prefix in addresses:
        try:
            ip.addr("add", index=index, address=address, prefixlen=prefix)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
    ip.link("set", index=index, state="up")


def join_bridge(ip: IPRoute, port: str, bridge: str) -> None:
    """Make a link a port of a bridge, and bring it up."""
    ip.link("set", index=link_index(ip, port), master=link_index(ip, bridge), state="up")


def delete_link(ip: IPRoute, name: str) -> None:
    index = link_index(ip, name)
    if index is None:
        return
    try:
        ip.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


def link_names(ip: IPRoute) -> list[str]:
    return [str(link.get_attr("IFLA_IFNAME")) for link in ip.get_links()]


def networks_in_use(ip: IPRoute) -> list[str]:
    """The IPv4 networks that the host's addresses and routes cover, default routes left out."""
    networks = [f"{a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}" for a in ip.get_addr(family=2)]
    for route in ip.get_routes(family=2):
        if route["dst_len"] and route.get_attr("RTA_DST"):
            networks.append(f"{route.get_attr('RTA_DST')}/{route['dst_len']}")
    return networks


def add_veth_namespace(
    ip: IPRoute, namespace: str, port: str, mac: str, address: str, prefix: int, gateway: str, mtu: int
) -> str:
    """A network namespace with `eth0`, whose other end is `port` on the host; the namespace's path."""
    path = f"/var/run/netns/{namespace}"
    if namespace not in netns.listnetns():
        netns.create(namespace)
    with NetNS(namespace) as inside:
        if link_index(inside, "eth0") is None:
            if link_index(ip, port) is not None:
                delete_link(ip, port)
            ip.link("add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": namespace})
        index = link_index(inside, "eth0")
        inside.link("set", index=link_index(inside, "lo"), state="up")
        inside.link("set", index=index, address=mac, mtu=mtu)
        try:
            inside.addr("add", index=index, address=address, prefixlen=prefix)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
        inside.link("set", index=index, state="up")
        try:
            inside.route("add", dst="default", gateway=gateway)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
    return path


def add_empty_namespace(namespace: str) -> str:
    """A network namespace with nothing but a loopback interface; its path."""
    if namespace not in netns.listnetns():
        netns.create(namespace)
    with NetNS(namespace) as inside:
        inside.link("set", index=link_index(inside, "lo"), state="up")
    return f"/var/run/netns/{namespace}"


def delete_namespace(namespace: str) -> None:
    if namespace in netns.listnetns():
        netns.remove(namespace)


def namespaces() -> list[str]:
    return [str(n) for n in netns.listnetns()]


def read_sysctl(name: str) -> str:
    return (Path("/proc/sys") / name.replace(".", "/")).read_text().strip()


def write_sysctl(name: str, value: str) -> None:
    (Path("/proc/sys") / name.replace(".", "/")).write_text(value)
