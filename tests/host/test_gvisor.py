"""What is different where gVisor runs the containers: their kernel, their network, and what is refused."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from pyroute2 import IPRoute
from tests.host.test_container_driver import Room, room_under

from hutch.host.drivers.contract import Attachment, ContainerExited, DriverError
from hutch.host.kernel import links
from hutch.wire.taskspec import InterfaceSpec

pytestmark = pytest.mark.needs("root", "runc", "runsc")
LINK = InterfaceSpec(
    eni_id="eni-1", mac="02:00:0a:e7:07:02", address="10.231.7.2", prefix_length=24, gateway="10.231.7.1"
)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with room_under("runsc", tmp_path) as made:
        yield made


@pytest.fixture
def network() -> Iterator[str]:
    """A network namespace with an interface; its path."""
    name = f"t{secrets.token_hex(5)}"
    links.add_namespace(name)
    with IPRoute() as ip:
        try:
            links.add_veth(ip, name, name, LINK.mac, LINK.address, LINK.prefix_length, LINK.gateway, LINK.mtu)
            yield links.namespace_path(name)
        finally:
            links.delete_namespace(name)
            links.delete_link(ip, name)


async def test_the_kernel_is_gvisors_and_shows_nothing_of_the_host(room: Room) -> None:
    _, text = await room.runs_to_its_end("dmesg; ps; cat /proc/sys/kernel/hostname; head -c 1 /dev/vda")
    assert "Starting gVisor" in text and "conmon" not in text and "runsc" not in text
    assert f"{room.task_id[:12]}\n" in text and "No such" in text


async def test_a_container_that_is_started_again_has_its_address_again(room: Room, network: str) -> None:
    container = room.script("a", "ip addr show eth0 | grep 'inet '; ip route")
    spec = room.sandbox(container)
    room.spec = msgspec.structs.replace(
        spec,
        task=msgspec.structs.replace(spec.task, interface=LINK),
        attachment=Attachment(netns_path=network),
    )
    room.handle = await room.driver.create(room.spec)
    room.events = room.driver.events(room.handle)
    for times in (1, 2):
        await room.driver.start_container(room.handle, container)
        assert isinstance(await room.next(), ContainerExited)
        assert room.output("a").count("inet 10.231.7.2/24") == times


async def test_what_gvisor_cannot_do_is_refused_and_leaves_nothing(room: Room) -> None:
    with pytest.raises(DriverError) as caught:
        await room.make(room.runs("a"), pid_mode="task")
    assert caught.value.kind == "NotUnderGvisor"
    assert room.remains() == []
