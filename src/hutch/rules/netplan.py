"""The network of a host as data: ranges, names, rules, and the operations that make and remove it.

`hutch.host.network` carries the operations out. Every name holds the platform's id, so that several platforms on one
machine never touch each other's things, and so that what a killed process left behind can be found again by name.
"""

import ipaddress
import string
from collections.abc import Iterable

import msgspec

from hutch.base.errors import Invalid

SUBNET_PREFIX = 20
ZONES = ("a", "b", "c")
MIN_VPC_PREFIX, MAX_VPC_PREFIX = 8, 26
TASK_ENDPOINT = ("169.254.170.2", 80)
"""Where tasks find what ECS has for them: a link-local address of the bridge, the same for all, each asked for itself."""
TASK_API_PORT = 14566
"""Where tasks find the platform's API, at the same address. Not 4566: whoever listens there on every address of the host,
as the platform itself may, would keep the ingress from listening."""
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_TASK_CHARACTERS = 6


class AddBridge(msgspec.Struct, frozen=True, kw_only=True):
    """A bridge that is up, with a MAC of its own and (address, prefix length) pairs.

    Without a fixed MAC a bridge takes the lowest one of its ports, and every task's ARP entry of the gateway is wrong
    as soon as that port goes.
    """

    name: str
    mac: str
    addresses: tuple[tuple[str, int], ...]


class AddTap(msgspec.Struct, frozen=True, kw_only=True):
    """A persistent tap device for a VM."""

    name: str


class AddNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """A named network namespace whose loopback interface is up."""

    name: str


class AddVeth(msgspec.Struct, frozen=True, kw_only=True):
    """A pair of interfaces: `port` on the host, `eth0` in the namespace with its address and default route."""

    port: str
    namespace: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    mtu: int


class JoinBridge(msgspec.Struct, frozen=True, kw_only=True):
    """A link becomes a port of the bridge and is up; `alias` (the task's id) says whose it is."""

    port: str
    bridge: str
    alias: str


class ApplyRules(msgspec.Struct, frozen=True, kw_only=True):
    """nftables commands, all or none. `may_be_gone`: no error if what they name does not exist."""

    commands: str
    may_be_gone: bool = False


class DeleteLink(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class DeleteNamespace(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class SetForwarding(msgspec.Struct, frozen=True, kw_only=True):
    """Switch on the host's IPv4 forwarding, remembering what it was; or put it back as it was."""

    on: bool


Operation = (
    AddBridge
    | AddTap
    | AddNamespace
    | AddVeth
    | JoinBridge
    | ApplyRules
    | DeleteLink
    | DeleteNamespace
    | SetForwarding
)


class PortPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a task's port is made of. `kind` is "tap" or "netns"; the rest as in `wire.taskspec.InterfaceSpec`."""

    task_id: str
    kind: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    mtu: int


def set_up_plan(
    platform_id: str, vpc_cidr: str, subnets: Iterable[tuple[str, str]], *, task_api: bool = False
) -> tuple[Operation, ...]:
    """The platform's bridge and rules; `subnets` are (CIDR, gateway address) pairs. The rules come first, so that
    no port is ever without them. `task_api`: tasks may reach the platform's API."""
    bridge = bridge_name(platform_id)
    addresses = (
        *((gateway, ipaddress.ip_network(cidr).prefixlen) for cidr, gateway in subnets),
        (TASK_ENDPOINT[0], 32),
    )
    return (
        ApplyRules(commands=base_rules(platform_id, vpc_cidr, task_api=task_api)),
        AddBridge(name=bridge, mac=bridge_mac(platform_id), addresses=addresses),
        SetForwarding(on=True),
    )


def attach_plan(platform_id: str, port: PortPlan) -> tuple[Operation, ...]:
    """A task's port on the bridge."""
    name, namespace = port_name(platform_id, port.task_id), netns_name(platform_id, port.task_id)
    link: tuple[Operation, ...] = (AddTap(name=name),)
    if port.kind == "netns":
        veth = AddVeth(
            port=name,
            namespace=namespace,
            mac=port.mac,
            address=port.address,
            prefix_length=port.prefix_length,
            gateway=port.gateway,
            mtu=port.mtu,
        )
        link = (AddNamespace(name=namespace), veth)
    return (
        ApplyRules(commands=attach_rules(platform_id, name, port.mac, port.address)),
        *link,
        JoinBridge(port=name, bridge=bridge_name(platform_id), alias=port.task_id),
    )


def detach_plan(platform_id: str, task_id: str, mac: str = "", address: str = "") -> tuple[Operation, ...]:
    """Everything of a task's port, whether or not it was ever made; without `mac` it had no rules."""
    name = port_name(platform_id, task_id)
    plan: tuple[Operation, ...] = (
        DeleteLink(name=name),
        DeleteNamespace(name=netns_name(platform_id, task_id)),
    )
    if mac:
        # What is not there can't be deleted: adding it first makes both cases one.
        commands = attach_rules(platform_id, name, mac, address) + detach_rules(
            platform_id, name, mac, address
        )
        plan += (ApplyRules(commands=commands, may_be_gone=True),)
    return plan


def tear_down_plan(platform_id: str) -> tuple[Operation, ...]:
    """The platform's bridge and rules, its ports being gone already."""
    return (
        DeleteLink(name=bridge_name(platform_id)),
        ApplyRules(commands=tear_down_rules(platform_id)),
        SetForwarding(on=False),
    )


# -- ranges


def check_vpc_cidr(vpc_cidr: str) -> str:
    """The range in its usual form. Raises `Invalid`."""
    try:
        network = ipaddress.IPv4Network(vpc_cidr)
    except ValueError as error:
        raise Invalid(
            f"--vpc-cidr {vpc_cidr!r} is not an IPv4 range such as 172.31.0.0/16: {error}"
        ) from None
    if not MIN_VPC_PREFIX <= network.prefixlen <= MAX_VPC_PREFIX:
        raise Invalid(
            f"--vpc-cidr {vpc_cidr} must be between /{MIN_VPC_PREFIX} and /{MAX_VPC_PREFIX}, "
            f"to hold {len(ZONES)} subnets"
        )
    return str(network)


def default_subnets(vpc_cidr: str, region: str) -> list[tuple[str, str, str]]:
    """(CIDR, zone, zone id) of the default subnets: one /20 (or a quarter of a small range) in each zone."""
    network = ipaddress.ip_network(vpc_cidr)
    prefix = max(SUBNET_PREFIX, network.prefixlen + 2)
    short = region.split("-")[0] + "".join(p[0] for p in region.split("-")[1:-1]) + region.split("-")[-1]
    return [
        (str(subnet), f"{region}{zone}", f"{short}-az{number}")
        for number, (zone, subnet) in enumerate(
            zip(ZONES, network.subnets(new_prefix=prefix), strict=False), start=1
        )
    ]


def mac_of(address: str) -> str:
    """A locally administered MAC that holds the IPv4 address: unique where the address is."""
    return "02:68:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def pick_vpc_cidr(in_use: Iterable[str]) -> str:
    """AWS's default range, or the next one that overlaps with nothing on the host. Raises `Invalid`."""
    taken = [ipaddress.ip_network(n, strict=False) for n in in_use]
    for candidate in ("172.31.0.0/16", *(f"10.{n}.0.0/16" for n in range(200, 255))):
        if not any(ipaddress.ip_network(candidate).overlaps(t) for t in taken if t.version == 4):
            return candidate
    raise Invalid("the host's routes leave no address range free; choose one with --vpc-cidr")


# -- names


def bridge_name(platform_id: str) -> str:
    """15 characters are the kernel's limit for a link's name."""
    return f"hutch-{platform_id[:8]}"


def bridge_mac(platform_id: str) -> str:
    """A locally administered MAC that holds the platform's id."""
    return "02:69:" + ":".join(platform_id[i : i + 2] for i in range(0, 8, 2))


def port_name(platform_id: str, task_id: str) -> str:
    """The host's end of a task's link: `h`, the platform's 8 digits, 36 bits of the task's id in base 62.

    Among 1,000 tasks of a host two have the same name with a chance of 1 in 100,000; `JoinBridge` notices.
    """
    number, name = int(task_id[:9], 16), ""
    for _ in range(_TASK_CHARACTERS):
        number, digit = divmod(number, 62)
        name = _BASE62[digit] + name
    return port_prefix(platform_id) + name


def port_prefix(platform_id: str) -> str:
    """What the names of all of the platform's ports begin with, and nothing else's."""
    return f"h{platform_id[:8]}"


def is_port_name(platform_id: str, name: str) -> bool:
    """Whether a link is a port of this platform."""
    return len(name) == 15 and name.startswith(port_prefix(platform_id))


def netns_name(platform_id: str, task_id: str) -> str:
    """The network namespace of a task of the container driver."""
    return f"{netns_prefix(platform_id)}{task_id[:12]}"


def netns_prefix(platform_id: str) -> str:
    """What the names of all of the platform's namespaces begin with."""
    return f"hutch-{platform_id[:8]}-"


# -- rules


def table_name(platform_id: str) -> str:
    """The platform's nftables tables, in the families `ip` and `bridge`."""
    return f"hutch_{platform_id}"


def base_rules(platform_id: str, vpc_cidr: str, *, task_api: bool = False) -> str:
    """nftables commands for the platform's tables: NAT to the outside, forwarding, and the anti-spoofing base.

    Idempotent: the tables are made if they are missing, and their base chains written anew; the ports' elements are
    left as they are. Closed by default: a frame that enters through a link with a port's name passes only if the set
    `sources` knows that port, MAC and address. So IPv6, VLANs and DHCP servers in tasks come to nothing, and a port whose rules
    are missing is deaf. Security groups will be verdict maps from port to a chain for each task, behind this check.

    Nothing that listens on the host, on whichever of its addresses, is there for tasks, except a name server and, at an
    address of the bridge, the agent's endpoint and (`task_api`) the platform's API.

    Link-local addresses are the host's own cloud metadata service: a task must not get the host's credentials. The
    segment size is clamped because a host's own link may be narrower than the tasks' (VPNs, clouds, nesting).
    """
    table, bridge = table_name(platform_id), bridge_name(platform_id)
    address, port = TASK_ENDPOINT
    ports = f"{port}, {TASK_API_PORT}" if task_api else str(port)
    for_tasks = f"ip daddr {address} tcp dport {{ {ports} }}"
    return f"""
add table ip {table}
add chain ip {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain ip {table} forward {{ type filter hook forward priority filter; policy accept; }}
add chain ip {table} input {{ type filter hook input priority filter; policy accept; }}
flush chain ip {table} postrouting
flush chain ip {table} forward
flush chain ip {table} input
add rule ip {table} input iifname "{bridge}" ct state established,related accept
add rule ip {table} input iifname "{bridge}" icmp type echo-request accept
add rule ip {table} input iifname "{bridge}" meta l4proto {{ tcp, udp }} th dport 53 accept
add rule ip {table} input iifname "{bridge}" {for_tasks} accept
add rule ip {table} input iifname "{bridge}" reject
add rule ip {table} postrouting ip saddr {vpc_cidr} ip daddr != {vpc_cidr} oifname != "{bridge}" masquerade
add rule ip {table} forward iifname "{bridge}" oifname "{bridge}" accept
add rule ip {table} forward iifname "{bridge}" ip daddr 169.254.0.0/16 reject
add rule ip {table} forward iifname "{bridge}" tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu
add rule ip {table} forward oifname "{bridge}" tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu
add rule ip {table} forward iifname "{bridge}" accept
add rule ip {table} forward oifname "{bridge}" ct state established,related accept
add rule ip {table} forward oifname "{bridge}" drop
add table bridge {table}
add set bridge {table} sources {{ type ifname . ether_addr . ipv4_addr; }}
add chain bridge {table} prerouting {{ type filter hook prerouting priority filter; policy accept; }}
flush chain bridge {table} prerouting
add rule bridge {table} prerouting iifname != "{port_prefix(platform_id)}*" accept
add rule bridge {table} prerouting ether type arp iifname . ether saddr . arp saddr ip @sources \
iifname . arp saddr ether . arp saddr ip @sources accept
add rule bridge {table} prerouting ether type ip udp sport 67 counter drop
add rule bridge {table} prerouting ether type ip iifname . ether saddr . ip saddr @sources accept
add rule bridge {table} prerouting counter drop
"""


def attach_rules(platform_id: str, port: str, mac: str, address: str) -> str:
    """nftables commands that let a port send from its own MAC and address, and from no other."""
    table = table_name(platform_id)
    return f'add element bridge {table} sources {{ "{port}" . {mac} . {address} }}\n'


def detach_rules(platform_id: str, port: str, mac: str, address: str) -> str:
    """The reverse; to be run only when the elements are there."""
    table = table_name(platform_id)
    return f'delete element bridge {table} sources {{ "{port}" . {mac} . {address} }}\n'


def tear_down_rules(platform_id: str) -> str:
    """Adding before deleting makes it right whether or not the tables are there."""
    table = table_name(platform_id)
    return (
        f"add table ip {table}\ndelete table ip {table}\n"
        f"add table bridge {table}\ndelete table bridge {table}\n"
    )
