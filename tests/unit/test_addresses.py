"""Addresses of a subnet: each to one task at a time, and the same one again as late as can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.clock import SystemClock
from hutch.base.ids import RandomIds
from hutch.control.ops.vpc import RESERVED_FIRST, NetworkExhausted, lease_address, release_address
from hutch.model.network import Subnet
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Tx
from hutch.store.memory import MemoryStore

CAUSE = Cause(id="1", actor="test", action="test")
USABLE = 16 - RESERVED_FIRST - 1


def subnet() -> Subnet:
    return Subnet(
        subnet_id="subnet-1",
        vpc_id="vpc-1",
        cidr="10.0.0.16/28",
        availability_zone="z",
        availability_zone_id="z1",
    )


@given(st.lists(st.integers(0, 30), max_size=80))
async def test_addresses_are_leased_once_and_reused_late(ends: list[int]) -> None:
    """Tasks come one after another; each number ends that one of those that are there, if there is one."""
    store = MemoryStore()
    await store.write(CAUSE, lambda tx: tx.put(tables.SUBNETS, subnet()))
    held: dict[str, str] = {}
    released: list[str] = []

    def come(tx: Tx) -> None:
        task_id = f"{len(held) + len(released):032x}"
        if len(held) == USABLE:
            with pytest.raises(NetworkExhausted):
                lease_address(tx, task_id, "subnet-1", (), RandomIds(), SystemClock())
            return
        address = lease_address(tx, task_id, "subnet-1", (), RandomIds(), SystemClock()).private_ipv4
        assert address not in held.values()
        assert address in {f"10.0.0.{16 + RESERVED_FIRST + n}" for n in range(USABLE)}
        free_longer = [a for a in released if a not in held.values()]
        if address in free_longer and len(set(released) | set(held.values())) < USABLE:
            raise AssertionError("one that was never used is there")
        held[task_id] = address

    def end(tx: Tx, number: int) -> None:
        task_id = sorted(held)[number]
        release_address(tx, "another", held[task_id])
        assert tx.get(tables.ADDRESS_LEASES, held[task_id]) is not None
        release_address(tx, task_id, held[task_id])
        released.append(held.pop(task_id))

    for number in ends:
        await store.write(CAUSE, come)
        if number < len(held):
            await store.write(CAUSE, lambda tx, n=number: end(tx, n))  # type: ignore[misc]
