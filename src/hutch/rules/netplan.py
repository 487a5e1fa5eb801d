"""The network of a host as data: ranges, names and rules. `hutch.host.network` carries it out.

Every name holds the platform's id, so that several platforms on one machine never touch each other's things, and so
that what a killed process left behind can be found again by name.
"""

import ipaddress
from collections.abc import Iterable

SUBNET_PREFIX = 20
ZONES = ("a", "b", "c")


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
    """AWS's default range, or the next one that overlaps with nothing on the host."""
    taken = [ipaddress.ip_network(n, strict=False) for n in in_use]
    for candidate in ("172.31.0.0/16", *(f"10.{n}.0.0/16" for n in range(200, 255))):
        if not any(ipaddress.ip_network(candidate).overlaps(t) for t in taken if t.version == 4):
            return candidate
    raise ValueError("no free address range; choose one with --vpc-cidr")


def bridge_name(platform_id: str) -> str:
    """15 characters are the kernel's limit for a link's name."""
    return f"hutch-{platform_id[:8]}"


def port_name(platform_id: str, task_id: str) -> str:
    """The host's end of a task's link: 4 digits of the platform, 10 of the task."""
    return f"h{platform_id[:4]}{task_id[:10]}"


def is_port_name(platform_id: str, name: str) -> bool:
    """Whether a link is a port of this platform."""
    return len(name) == 15 and name.startswith(f"h{platform_id[:4]}")


def netns_name(platform_id: str, task_id: str) -> str:
    """The network namespace of a task of the container driver."""
    return f"hutch-{platform_id[:8]}-{task_id[:12]}"


def base_rules(platform_id: str, vpc_cidr: str) -> str:
    """nftables commands for the platform's tables: NAT to the outside, forwarding, and room for anti-spoofing.

    Idempotent: the tables are made if they are missing, and their base chains written anew; the ports' own chains and
    elements are left as they are. Security groups will get a chain for each task below `ports`.
    """
    table, bridge = f"hutch_{platform_id}", bridge_name(platform_id)
    return f"""
add table ip {table}
add chain ip {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain ip {table} forward {{ type filter hook forward priority filter; policy accept; }}
flush chain ip {table} postrouting
flush chain ip {table} forward
add rule ip {table} postrouting ip saddr {vpc_cidr} ip daddr != {vpc_cidr} oifname != "{bridge}" masquerade
add rule ip {table} forward iifname "{bridge}" accept
add rule ip {table} forward oifname "{bridge}" ct state established,related accept
add rule ip {table} forward oifname "{bridge}" iifname != "{bridge}" drop
add table bridge {table}
add set bridge {table} sources {{ type ifname . ether_addr . ipv4_addr; }}
add set bridge {table} ports {{ type ifname; }}
add chain bridge {table} prerouting {{ type filter hook prerouting priority filter; policy accept; }}
flush chain bridge {table} prerouting
add rule bridge {table} prerouting iifname != @ports accept
add rule bridge {table} prerouting ether type arp iifname . ether saddr . arp saddr ip @sources accept
add rule bridge {table} prerouting ether type ip udp sport 67 drop
add rule bridge {table} prerouting ether type ip iifname . ether saddr . ip saddr @sources accept
add rule bridge {table} prerouting drop
"""


def attach_rules(platform_id: str, port: str, mac: str, address: str) -> str:
    """nftables commands that let a port send from its own MAC and address, and from no other."""
    table = f"hutch_{platform_id}"
    return (
        f'add element bridge {table} ports {{ "{port}" }}\n'
        f'add element bridge {table} sources {{ "{port}" . {mac} . {address} }}\n'
    )


def detach_rules(platform_id: str, port: str, mac: str, address: str) -> str:
    """The reverse; to be run only when the elements are there."""
    table = f"hutch_{platform_id}"
    return (
        f'delete element bridge {table} sources {{ "{port}" . {mac} . {address} }}\n'
        f'delete element bridge {table} ports {{ "{port}" }}\n'
    )


def tear_down_rules(platform_id: str) -> str:
    """Adding before deleting makes it right whether or not the tables are there."""
    table = f"hutch_{platform_id}"
    return (
        f"add table ip {table}\ndelete table ip {table}\n"
        f"add table bridge {table}\ndelete table bridge {table}\n"
    )
