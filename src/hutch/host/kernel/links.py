"""Network links, addresses and namespaces by netlink. Every call is idempotent: making what is there, and removing
what is not, are no errors. All are quick (well below 10 ms) and are called from a worker thread."""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute, NetlinkError, netns

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
T = TypeVar("T")

_INSIDE_LIMIT_S = 10.0
_NETNS_DIRECTORY = "/var/run/netns"
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
    if os.path.exists(f"/sys/class/net/{name}/tun_flags"):
        return  # and a VM may hold it, so that it can't be opened again
    fd = open_tap(name)
    try:
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


def link_index(ip: IPRoute, name: str) -> int | None:
    """The index of a link, or None if there is none of that name."""
    found = ip.link_lookup(ifname=name)
    return int(found[0]) if found else None


def add_bridge(ip: IPRoute, name: str, mac: str, addresses: tuple[tuple[str, int], ...]) -> None:
    """A bridge with (address, prefix length) pairs, up; without IPv6, which no task has."""
    if link_index(ip, name) is None:
        ip.link("add", ifname=name, kind="bridge", address=mac)
    index = link_index(ip, name)
    without_ipv6 = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    if without_ipv6.exists():
        without_ipv6.write_text("1")
    for address, prefix in addresses:
        with _already_there():
            ip.addr("add", index=index, address=address, prefixlen=prefix)
    ip.link("set", index=index, address=mac, state="up")


def join_bridge(ip: IPRoute, port: str, bridge: str, alias: str) -> None:
    """Make a link a port of a bridge, name its owner, and bring it up.

    Raises `OSError` (EEXIST) if the link belongs to another owner.
    """
    link = next(iter(ip.get_links(ifname=port)), None)
    if link is None:
        raise OSError(errno.ENODEV, f"there is no link {port}")
    owner = link.get_attr("IFLA_IFALIAS")
    if owner not in (None, "", alias):
        raise OSError(errno.EEXIST, f"link {port} belongs to {owner}")
    # The name first: whatever happens next, it is known whose the port is.
    ip.link("set", index=link["index"], ifalias=alias)
    ip.link("set", index=link["index"], master=link_index(ip, bridge), state="up")


def delete_link(ip: IPRoute, name: str) -> None:
    """Remove a link, and with a veth its other end."""
    index = link_index(ip, name)
    if index is None:
        return
    try:
        ip.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


def link_names(ip: IPRoute) -> list[str]:
    """The names of all links."""
    return [str(link.get_attr("IFLA_IFNAME")) for link in ip.get_links()]


def counters(name: str) -> dict[str, int] | None:
    """A link's counters by the kernel's names (`rx_bytes`, `tx_packets`, ...); None if there is no such link."""
    directory = Path("/sys/class/net") / name / "statistics"
    try:
        return {p.name: int(p.read_text()) for p in directory.iterdir()}
    except OSError:
        return None


def networks_in_use(ip: IPRoute) -> list[str]:
    """The IPv4 networks that the host's addresses and routes cover, default routes left out."""
    networks = [f"{a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}" for a in ip.get_addr(family=2)]
    for route in ip.get_routes(family=2):
        if route["dst_len"] and route.get_attr("RTA_DST"):
            networks.append(f"{route.get_attr('RTA_DST')}/{route['dst_len']}")
    return networks


def other_bridges(ip: IPRoute, own: str) -> list[str]:
    """Bridges besides our own: whoever made them may need forwarding too."""
    names = [str(link.get_attr("IFLA_IFNAME")) for link in ip.get_links(kind="bridge")]
    return [n for n in names if n != own]


def namespace_path(name: str) -> str:
    """Where `ip netns` and we keep a named namespace."""
    return f"{_NETNS_DIRECTORY}/{name}"


def namespaces() -> list[str]:
    """The names of all named namespaces, half-made ones included."""
    return sorted(os.listdir(_NETNS_DIRECTORY)) if os.path.isdir(_NETNS_DIRECTORY) else []


def add_namespace(name: str) -> None:
    """A named network namespace with a loopback interface that is up."""
    if not _is_mounted(name):
        delete_namespace(name)
        netns.create(name)
    _inside(name, lambda inside: inside.link("set", index=link_index(inside, "lo"), state="up"))


def delete_namespace(name: str) -> None:
    """Remove a namespace and what is in it; also one whose making was cut off before it was mounted."""
    if _is_mounted(name):
        netns.remove(name)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(namespace_path(name))


def _is_mounted(name: str) -> bool:
    try:
        return os.stat(namespace_path(name)).st_dev != os.stat(_NETNS_DIRECTORY).st_dev
    except FileNotFoundError:
        return False


def add_veth(
    ip: IPRoute, namespace: str, port: str, mac: str, address: str, prefix: int, gateway: str, mtu: int
) -> None:
    """`port` on the host, and as its other end `eth0` in an existing namespace, with address and default route."""
    if _inside(namespace, lambda inside: link_index(inside, "eth0")) is None:
        delete_link(ip, port)
        ip.link("add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": namespace})

    def configure(inside: IPRoute) -> None:
        inside.link("set", index=link_index(inside, "eth0"), address=mac, mtu=mtu)
        _give_address(inside, address, prefix, gateway)

    _inside(namespace, configure)


def address_inside(namespace: str, address: str, prefix: int, gateway: str) -> None:
    """The address and default route of a namespace's `eth0`, if it has lost them. A name, or a path."""
    _inside(namespace, lambda inside: _give_address(inside, address, prefix, gateway))


def _give_address(inside: IPRoute, address: str, prefix: int, gateway: str) -> None:
    index = link_index(inside, "eth0")
    with _already_there():
        inside.addr("add", index=index, address=address, prefixlen=prefix)
    inside.link("set", index=index, state="up")
    with _already_there():
        inside.route("add", dst="default", gateway=gateway)


def _inside(namespace: str, work: Callable[[IPRoute], T]) -> T:
    """What `work` gives for a netlink socket of a namespace; it must use no other socket.

    From a thread of its own, which changes into the namespace and ends there: 1 ms, and nobody has to come back.
    """
    result: Future[T] = Future()

    def call() -> None:
        try:
            netns.setns(namespace)
            with IPRoute() as inside:
                result.set_result(work(inside))
        except Exception as error:  # noqa: BLE001 (raised again by the caller's thread)
            result.set_exception(error)

    threading.Thread(target=call, name=f"netns {namespace}", daemon=True).start()
    return result.result(timeout=_INSIDE_LIMIT_S)


@contextlib.contextmanager
def _already_there() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def read_sysctl(name: str) -> str:
    """A kernel parameter by its dotted name."""
    return _sysctl_path(name).read_text().strip()


def write_sysctl(name: str, value: str) -> None:
    """Set a kernel parameter. Raises `OSError`."""
    _sysctl_path(name).write_text(value)


def _sysctl_path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")
