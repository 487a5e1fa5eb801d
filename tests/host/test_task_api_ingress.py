"""The platform's API for its tasks, on a real bridge with a real HAProxy: each platform's tasks reach their own, and what
keeps it from being served keeps nothing else."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.host.test_haproxy import Backend
from tests.host.test_network import Net, python_in
from tests.support.claims import free_port

from hutch.host.drivers.contract import HostFault
from hutch.host.kernel.process import find_processes
from hutch.host.lb.haproxy import HaproxyIngress
from hutch.host.network.bridge import BridgeNetwork
from hutch.rules import netplan
from hutch.rules.lbplan import TaskApi
from hutch.wire.taskspec import PublishSpec

pytestmark = pytest.mark.needs("root", "nft", "haproxy")
ADDRESS, PORT = netplan.TASK_ENDPOINT[0], netplan.TASK_API_PORT
ASK = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5); s.sendall(b"who?\\n")
assert s.recv(100).decode() == sys.argv[3] + "\\n"
"""


class Served:
    """A platform whose control plane is a server that says its name."""

    def __init__(self, directory: Path, number: int, *, open_to_tasks: bool = True) -> None:
        self.net = Net(directory, number)
        self.net.network = BridgeNetwork(
            platform_id=self.net.platform_id, state_path=self.net.state_path, task_api=open_to_tasks
        )
        self.control = Backend(f"control {number}")
        self.directory = directory / f"ingress-{number}"

    async def start(self) -> None:
        await self.net.set_up()
        await self.control.start()
        self.ingress = self.made()

    def made(self) -> HaproxyIngress:
        link = netplan.bridge_name(self.net.platform_id)
        api = TaskApi(address=ADDRESS, port=PORT, link=link, server=f"127.0.0.1:{self.control.port}")
        return HaproxyIngress(self.directory, bind_address="127.0.0.1", task_api=api)

    async def ask(self, namespace: str) -> None:
        await asyncio.to_thread(python_in, namespace, ASK, ADDRESS, str(PORT), self.control.name)

    async def stop(self) -> None:
        await self.ingress.stop()
        self.control.stop()
        await self.net.network.tear_down()
        assert find_processes(str(self.directory / "haproxy.cfg")) == ()


@contextlib.asynccontextmanager
async def served(directory: Path, number: int, *, open_to_tasks: bool = True) -> AsyncIterator[Served]:
    made = Served(directory, number, open_to_tasks=open_to_tasks)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def test_tasks_reach_the_api_of_their_own_platform(tmp_path: Path) -> None:
    async with served(tmp_path, 237) as here, served(tmp_path, 238) as there:
        for platform in (here, there):
            await platform.ingress.serve_api()
        for platform in (here, there):
            _, namespace = await platform.net.attached()
            await platform.ask(namespace)
        # The next agent finds it served, and starts nothing.
        before = find_processes(str(here.directory / "haproxy.cfg"))
        await here.ingress.close()
        here.ingress = here.made()
        await here.ingress.serve_api()
        assert find_processes(str(here.directory / "haproxy.cfg")) == before


async def test_it_is_closed_where_it_is_not_to_be_served(tmp_path: Path) -> None:
    async with served(tmp_path, 239, open_to_tasks=False) as here:
        await here.ingress.serve_api()
        _, namespace = await here.net.attached()
        with pytest.raises(Exception, match="non-zero exit status"):
            await here.ask(namespace)


async def test_a_taken_port_spoils_nothing_else(tmp_path: Path) -> None:
    async with served(tmp_path, 240) as here:
        # On the link of these tasks only: another platform of this machine has the same port on its own.
        with socket.socket() as other:
            link = netplan.bridge_name(here.net.platform_id)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
            other.bind(("0.0.0.0", PORT))
            other.listen()
            with pytest.raises(HostFault, match="tasks can't reach the API"):
                await here.ingress.serve_api()
            published = free_port()
            task = replace(
                here.net.task(),
                publish=(PublishSpec(name="web", host_port=published, container_port=here.control.port),),
                network_mode="host",
                interface=None,
            )
            await here.ingress.publish(task)
            socket.create_connection(("127.0.0.1", published), timeout=5).close()
        await here.ingress.serve_api()
        _, namespace = await here.net.attached()
        await here.ask(namespace)
        socket.create_connection(("127.0.0.1", published), timeout=5).close()
