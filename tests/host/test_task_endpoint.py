"""The task endpoint on a real bridge: each task gets its own credentials there, and nobody comes in by another way."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.host.test_network import Net

from hutch.base.clock import SystemClock
from hutch.host.agent.credentials import RoleCredentials
from hutch.host.agent.endpoint import TaskEndpoint
from hutch.host.agent.metadata import TaskView
from hutch.host.drivers.contract import ContainerStats, SandboxStats
from hutch.host.network.bridge import BridgeNetwork
from hutch.rules import netplan
from hutch.wire.facts import TaskFacts
from hutch.wire.fleet import CredentialsGiven, CredentialsWanted
from hutch.wire.taskspec import ContainerSpec, TaskSpec

pytestmark = pytest.mark.needs("root", "nft")

FETCH = """
import sys, urllib.request, urllib.error
try:
    method, body = sys.argv[2:] or ("GET", "")
    asked = urllib.request.Request("http://169.254.170.2" + sys.argv[1], body.encode() or None, method=method)
    print(urllib.request.urlopen(asked, timeout=5).read().decode())
except urllib.error.HTTPError as error:
    print('{"status": %d}' % error.code)
except OSError as error:
    print('{"refused": true}')
"""


async def fetch(namespace: str, path: str, *request: str) -> Any:
    """What a program in a namespace gets at the endpoint; `request`: method and body."""
    prefix = ["/sbin/ip", "netns", "exec", namespace] if namespace else []
    argv = [*prefix, sys.executable, "-c", FETCH, path, *request]
    done = await asyncio.to_thread(
        subprocess.run, argv, capture_output=True, text=True, timeout=30, check=True
    )
    return json.loads(done.stdout)


def view(spec: TaskSpec, network: BridgeNetwork) -> TaskView:
    """The task as its runner would show it."""

    async def stats() -> SandboxStats:
        use = ContainerStats(cpu_ns=5, memory_bytes=2**20, pids=3)
        return SandboxStats(
            host_cpu_ns=9, host_memory_bytes=9, containers={c.name: use for c in spec.containers}
        )

    return TaskView(
        spec=spec,
        facts=TaskFacts(task_id=spec.task_id, status="RUNNING"),
        stops=False,
        take_stats=stats,
        take_traffic=lambda: network.traffic(spec),
    )


class Endpoint:
    """A platform's network with its endpoint."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.tasks: dict[str, TaskSpec] = {}
        self.credentials = RoleCredentials(SystemClock(), self.send)
        self.endpoint = TaskEndpoint(self.view, self.credentials, SystemClock())

    def view(self, address: str) -> TaskView | None:
        return view(self.tasks[address], self.net.network) if address in self.tasks else None

    def send(self, wanted: CredentialsWanted) -> bool:
        given = CredentialsGiven(
            request_id=wanted.request_id, role_arn=f"role of {wanted.task_id}", expires_at=4e9
        )
        asyncio.get_running_loop().call_soon(self.credentials.given, given)
        return True

    async def start(self) -> None:
        await self.net.set_up()
        listening = self.net.network.endpoint_socket()
        assert listening is not None
        await self.endpoint.start(listening)

    async def task(self) -> tuple[TaskSpec, str, str]:
        """An attached task, its namespace, and the path that it is told."""
        task, namespace = await self.net.attached()
        main = ContainerSpec(name="main", container_id="c-1", image="i", metadata_id=f"m-{task.task_id}")
        task = replace(task, credentials_id=f"id-{task.task_id}", containers=(main,))
        assert task.interface is not None
        self.tasks[task.interface.address] = task
        return task, namespace, f"/v2/credentials/{task.credentials_id}"


@contextlib.asynccontextmanager
async def endpoint(directory: Path, number: int) -> AsyncIterator[Endpoint]:
    made = Endpoint(Net(directory, number))
    await made.start()
    try:
        yield made
    finally:
        await made.endpoint.close()
        await made.net.network.tear_down()


async def test_each_task_gets_its_own(tmp_path: Path) -> None:
    async with endpoint(tmp_path, 232) as there:
        one, one_ns, one_path = await there.task()
        two, two_ns, two_path = await there.task()
        assert (await fetch(one_ns, one_path))["RoleArn"] == f"role of {one.task_id}"
        assert (await fetch(two_ns, two_path))["RoleArn"] == f"role of {two.task_id}"
        # Knowing another task's path is of no use; and the host itself is nobody here.
        assert await fetch(two_ns, one_path) == {"status": 404}
        assert await fetch("", one_path) == {"status": 404}


async def test_each_task_sees_itself_only(tmp_path: Path) -> None:
    async with endpoint(tmp_path, 236) as there:
        one, one_ns, _ = await there.task()
        two, two_ns, _ = await there.task()
        assert one.interface is not None
        path = f"/v4/{one.containers[0].metadata_id}"
        seen = await fetch(one_ns, path)
        assert seen["Name"] == "main" and seen["Networks"][0]["IPv4Addresses"] == [one.interface.address]
        stats = await fetch(one_ns, f"{path}/stats")
        assert stats["memory_stats"]["usage"] == 2**20
        # Its own questions have passed its port by now, and no other's.
        assert stats["networks"]["eth0"]["tx_packets"] > 0 and stats["networks"]["eth0"]["rx_packets"] > 0
        for what in ("", "/task", "/stats", "/task/stats", "/taskWithTags"):
            assert await fetch(two_ns, path + what) == {"status": 404}
            assert await fetch("", path + what) == {"status": 404}
        assert (await fetch(two_ns, f"/v3/{two.containers[0].metadata_id}/task"))["KnownStatus"] == "RUNNING"


async def test_a_task_asks_for_its_protection_as_of_the_ecs_agent(tmp_path: Path) -> None:
    async with endpoint(tmp_path, 237) as there:
        one, one_ns, _ = await there.task()
        _, two_ns, _ = await there.task()
        path = f"/api/{one.containers[0].metadata_id}/task-protection/v1/state"
        for request in ((), ("PUT", '{"ProtectionEnabled": true, "ExpiresInMinutes": 60}')):
            told = await fetch(one_ns, path, *request)
            assert told["failure"]["Reason"] == "TASK_NOT_VALID" and told["failure"]["Arn"] == one.arn
            assert await fetch(two_ns, path, *request) == {"status": 404}
        for wrong in ('{"ProtectionEnabled": 1}', "{", '{"ProtectionEnabled": true, "ExpiresInMinutes": 0}'):
            assert await fetch(one_ns, path, "PUT", wrong) == {"status": 400}
        assert await fetch(one_ns, path, "PUT", "x" * 5000) == {"status": 400}
        assert await fetch(one_ns, path, "DELETE", "") == {"status": 404}
        assert await fetch(one_ns, f"/v4/{one.containers[0].metadata_id}", "PUT", "{}") == {"status": 405}
        fault = path.replace("task-protection/v1/state", "fault/v1/network-latency/start")
        assert await fetch(one_ns, fault, "POST", "{}") == {"status": 400}


async def test_two_platforms_serve_the_same_address_apart(tmp_path: Path) -> None:
    async with endpoint(tmp_path, 233) as here, endpoint(tmp_path, 234) as there:
        one, one_ns, one_path = await here.task()
        two, two_ns, two_path = await there.task()
        assert (await fetch(one_ns, one_path))["RoleArn"] == f"role of {one.task_id}"
        assert (await fetch(two_ns, two_path))["RoleArn"] == f"role of {two.task_id}"
        assert await fetch(one_ns, two_path) == {"status": 404}


async def test_the_address_belongs_to_the_bridge_and_goes_with_it(tmp_path: Path) -> None:
    async with endpoint(tmp_path, 235) as there:
        bridge = netplan.bridge_name(there.net.platform_id)
        listed = subprocess.run(
            ["/sbin/ip", "-o", "addr", "show", bridge], capture_output=True, text=True, check=True
        )
        assert "169.254.170.2/32" in listed.stdout
    everything = subprocess.run(["/sbin/ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    assert bridge not in everything
