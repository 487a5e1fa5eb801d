"""The network's plans: names that never meet, ranges that never overlap, rules that are what was reviewed."""

import ipaddress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.rules import netplan

PLATFORM, TASK = "0a1b2c3d", "5" * 32
hex8 = st.text("0123456789abcdef", min_size=8, max_size=8)
hex32 = st.text("0123456789abcdef", min_size=32, max_size=32)
PORT = netplan.PortPlan(
    task_id=TASK,
    kind="tap",
    mac="02:68:0a:00:00:05",
    address="10.0.0.5",
    prefix_length=20,
    gateway="10.0.0.1",
    mtu=1500,
)


@given(hex8, hex8, hex32)
def test_names_fit_the_kernel_and_tell_platforms_apart(one: str, other: str, task: str) -> None:
    name = netplan.port_name(one, task)
    assert len(name) == 15 and len(netplan.bridge_name(one)) <= 15
    assert netplan.is_port_name(one, name)
    assert netplan.is_port_name(other, name) == (one == other)
    assert not netplan.is_port_name(one, netplan.bridge_name(one))


@given(st.sets(st.integers(0, 2**35), min_size=2, max_size=50))
def test_tasks_have_ports_of_their_own(numbers: set[int]) -> None:
    tasks = [f"{n:09x}" + "0" * 23 for n in numbers]
    assert len({netplan.port_name(PLATFORM, t) for t in tasks}) == len(tasks)


@given(st.integers(netplan.MIN_VPC_PREFIX, netplan.MAX_VPC_PREFIX), st.integers(0, 2**32 - 1))
def test_default_subnets_lie_apart_inside_the_vpc(prefix: int, number: int) -> None:
    vpc = ipaddress.ip_network((number, prefix), strict=False)
    assert netplan.check_vpc_cidr(str(vpc)) == str(vpc)
    subnets = [ipaddress.ip_network(c) for c, _, _ in netplan.default_subnets(str(vpc), "us-east-1")]
    assert len(subnets) == 3 and all(s.subnet_of(vpc) for s in subnets)
    assert not any(a.overlaps(b) for a in subnets for b in subnets if a != b)


def test_default_subnets_of_aws() -> None:
    assert netplan.default_subnets("172.31.0.0/16", "eu-central-1") == [
        ("172.31.0.0/20", "eu-central-1a", "euc1-az1"),
        ("172.31.16.0/20", "eu-central-1b", "euc1-az2"),
        ("172.31.32.0/20", "eu-central-1c", "euc1-az3"),
    ]


@pytest.mark.parametrize("cidr", ["", "here", "10.0.0.1/16", "10.0.0.0/27", "10.0.0.0/7", "fd00::/16"])
def test_a_range_that_can_not_be_a_vpc_is_refused(cidr: str) -> None:
    with pytest.raises(Invalid, match="--vpc-cidr"):
        netplan.check_vpc_cidr(cidr)


@given(
    st.lists(
        st.sampled_from(["172.16.0.0/12", "172.31.5.1/32", "10.0.0.0/8", "10.200.1.0/24", "10.201.0.0/15"])
    )
)
def test_the_picked_range_overlaps_with_nothing(in_use: list[str]) -> None:
    try:
        picked = ipaddress.ip_network(netplan.pick_vpc_cidr(in_use))
    except Invalid:
        assert "10.0.0.0/8" in in_use
        return
    assert not any(picked.overlaps(ipaddress.ip_network(n, strict=False)) for n in in_use)


def test_addresses_have_macs_of_their_own_and_none_is_the_bridge_s() -> None:
    assert netplan.mac_of("172.31.0.10") == "02:68:ac:1f:00:0a"
    assert netplan.bridge_mac(PLATFORM) == "02:69:0a:1b:2c:3d"


def test_set_up_makes_the_rules_before_anything_can_talk() -> None:
    plan = netplan.set_up_plan(
        PLATFORM, "10.0.0.0/16", [("10.0.0.0/20", "10.0.0.1"), ("10.0.16.0/20", "10.0.16.1")]
    )
    assert plan == (
        netplan.ApplyRules(commands=netplan.base_rules(PLATFORM, "10.0.0.0/16")),
        netplan.AddBridge(
            name="hutch-0a1b2c3d",
            mac="02:69:0a:1b:2c:3d",
            addresses=(("10.0.0.1", 20), ("10.0.16.1", 20), ("169.254.170.2", 32)),
        ),
        netplan.SetForwarding(on=True),
    )


def test_attach_of_a_tap_and_of_a_namespace() -> None:
    rules = netplan.ApplyRules(
        commands='add element bridge hutch_0a1b2c3d sources { "h0a1b2c3dP0DJ2L" . 02:68:0a:00:00:05 . 10.0.0.5 }\n'
    )
    join = netplan.JoinBridge(port="h0a1b2c3dP0DJ2L", bridge="hutch-0a1b2c3d", alias=TASK)
    assert netplan.attach_plan(PLATFORM, PORT) == (rules, netplan.AddTap(name="h0a1b2c3dP0DJ2L"), join)
    namespace = "hutch-0a1b2c3d-555555555555"
    kinds = [type(o) for o in netplan.attach_plan(PLATFORM, msgspec.structs.replace(PORT, kind="netns"))]
    assert kinds == [netplan.ApplyRules, netplan.AddNamespace, netplan.AddVeth, netplan.JoinBridge]
    assert netplan.netns_name(PLATFORM, TASK) == namespace


def test_detach_and_tear_down_need_nothing_to_be_there() -> None:
    with_rules = netplan.detach_plan(PLATFORM, TASK, PORT.mac, PORT.address)
    assert with_rules[:2] == netplan.detach_plan(PLATFORM, TASK)
    rules = with_rules[2]
    assert isinstance(rules, netplan.ApplyRules) and rules.may_be_gone
    added, deleted = rules.commands.splitlines()
    assert deleted == added.replace("add ", "delete ", 1)
    assert [type(o) for o in netplan.tear_down_plan(PLATFORM)] == [
        netplan.DeleteLink,
        netplan.ApplyRules,
        netplan.SetForwarding,
    ]


def test_the_rules_are_closed_by_default() -> None:
    lines = netplan.base_rules(PLATFORM, "10.0.0.0/16").strip().splitlines()
    guard = [line.split(" prerouting ", 1)[1] for line in lines if line.startswith("add rule bridge")]
    assert guard[0] == 'iifname != "h0a1b2c3d*" accept', "only frames of others pass unseen"
    assert all("@sources" in rule for rule in guard[1:-1] if rule.endswith("accept"))
    assert guard[-1] == "counter drop"
    forward = [
        line.split(" forward ", 1)[1]
        for line in lines
        if line.startswith("add rule ip") and " forward " in line
    ]
    metadata = forward.index('iifname "hutch-0a1b2c3d" ip daddr 169.254.0.0/16 reject')
    assert metadata < forward.index('iifname "hutch-0a1b2c3d" accept')
    assert forward[-1] == 'oifname "hutch-0a1b2c3d" drop'
    to_host = [line.split(" input ", 1)[1] for line in lines if " input iifname" in line]
    assert to_host[-1] == 'iifname "hutch-0a1b2c3d" reject', "the host's own services are not for tasks"


def test_the_api_is_open_to_tasks_only_if_it_is_to_be() -> None:
    closed, opened = (netplan.base_rules(PLATFORM, "10.0.0.0/16", task_api=on) for on in (False, True))
    assert "14566" not in closed
    (before,), (after,) = (
        set(a.splitlines()) - set(b.splitlines()) for a, b in ((closed, opened), (opened, closed))
    )
    assert before.endswith("ip daddr 169.254.170.2 tcp dport { 80 } accept")
    assert after.endswith("ip daddr 169.254.170.2 tcp dport { 80, 14566 } accept")
