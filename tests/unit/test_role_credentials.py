"""What a task gets at its endpoint: its own role's credentials, and nothing else; asked for once, renewed in time."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest

from hutch.base.clock import ManualClock
from hutch.host.agent.credentials import KEEP_REFUSAL_S, RENEW_BEFORE_S, RoleCredentials
from hutch.host.agent.endpoint import MAX_CONNECTIONS_OF_ONE, TaskEndpoint
from hutch.host.agent.metadata import TaskView
from hutch.host.drivers.contract import SandboxStats
from hutch.wire.facts import TaskFacts
from hutch.wire.fleet import CredentialsGiven, CredentialsWanted
from hutch.wire.taskspec import TaskSpec

ID = "11111111-2222-3333-4444-555555555555"
LIFE_S = 6 * 3600.0


def task(credentials_id: str = ID) -> TaskSpec:
    return TaskSpec(
        task_id="a" * 32, cluster="c", arn="a", family="f", revision=1, launch_type="FARGATE", cpu_units=256,
        memory_mib=512, ephemeral_gib=1, network_mode="awsvpc", containers=(), credentials_id=credentials_id,
    )  # fmt: skip


def view(spec: TaskSpec) -> TaskView:
    async def stats() -> SandboxStats:
        return SandboxStats(host_cpu_ns=0, host_memory_bytes=0)

    facts = TaskFacts(task_id=spec.task_id, status="RUNNING")
    return TaskView(spec=spec, facts=facts, stops=False, take_stats=stats, take_traffic=lambda: None)


class Room:
    """An endpoint on a loopback port, and a control plane that answers as it is told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.asked: list[CredentialsWanted] = []
        self.connected = True
        self.answering = True
        self.error = ""
        self.tasks: dict[str, TaskSpec] = {"127.0.0.1": task()}
        self.credentials = RoleCredentials(self.clock, self.send)
        self.endpoint = TaskEndpoint(
            lambda at: view(self.tasks[at]) if at in self.tasks else None, self.credentials, self.clock
        )
        self.port = 0

    def send(self, wanted: CredentialsWanted) -> bool:
        if not self.connected:
            return False
        self.asked.append(wanted)
        if self.answering:
            asyncio.get_running_loop().call_soon(self.answer, wanted)
        return True

    def answer(self, wanted: CredentialsWanted) -> None:
        if self.error:
            given = CredentialsGiven(request_id=wanted.request_id, error=self.error)
        else:
            given = CredentialsGiven(
                request_id=wanted.request_id,
                role_arn="arn:role",
                access_key_id=f"ASIA{len(self.asked)}",
                secret_access_key="secret",
                session_token="token",
                expires_at=self.clock.now() + LIFE_S,
            )
        self.credentials.given(given)

    async def get(
        self, path: str = f"/v2/credentials/{ID}", method: str = "GET"
    ) -> tuple[int, dict[str, str]]:
        return await self.send_raw(f"{method} {path} HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n".encode())

    async def send_raw(self, data: bytes) -> tuple[int, dict[str, str]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(10):
                answer = await reader.read()
        except ConnectionResetError:
            return 0, {}
        finally:
            writer.close()
        if not answer:
            return 0, {}
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    made = Room()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    made.port = listening.getsockname()[1]
    await made.endpoint.start(listening)
    yield made
    await made.endpoint.close()


async def test_credentials_as_sdks_read_them(room: Room) -> None:
    status, given = await room.get()
    assert status == 200
    assert given == {
        "RoleArn": "arn:role",
        "AccessKeyId": "ASIA1",
        "SecretAccessKey": "secret",
        "Token": "token",
        "Expiration": given["Expiration"],
    }
    assert given["Expiration"].endswith("Z")


async def test_they_are_asked_for_once_and_renewed_in_time(room: Room) -> None:
    answers = await asyncio.gather(*(room.get() for _ in range(8)))
    assert {a[1]["AccessKeyId"] for a in answers} == {"ASIA1"} and len(room.asked) == 1
    room.clock.advance(LIFE_S - RENEW_BEFORE_S - 1)
    assert (await room.get())[1]["AccessKeyId"] == "ASIA1"
    room.clock.advance(2)
    assert (await room.get())[1]["AccessKeyId"] == "ASIA2"


async def test_without_the_control_plane_what_is_known_serves_until_it_ends(room: Room) -> None:
    assert (await room.get())[0] == 200
    room.connected = False
    room.clock.advance(LIFE_S - 1)
    assert (await room.get())[1]["AccessKeyId"] == "ASIA1"
    room.clock.advance(2)
    assert (await room.get())[0] == 503
    room.connected, room.answering = True, False
    waiting = asyncio.create_task(room.get())
    while len(room.asked) < 2:
        await asyncio.sleep(0)
    room.credentials.disconnected()
    assert (await waiting)[0] == 503


async def test_a_role_that_can_not_be_used_says_why(room: Room) -> None:
    room.error = "the task role arn:x does not exist; make it with CreateRole"
    for _ in range(3):
        assert await room.get() == (403, {"code": "AccessDenied", "message": room.error})
    assert len(room.asked) == 1
    room.error = ""
    room.clock.advance(KEEP_REFUSAL_S)
    assert (await room.get())[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/credentials/",
        f"/v2/credentials/{ID[:-1]}6",
        f"/v2/credentials/{ID}/",
        "/v2/credentials",
        f"/{ID}",
    ],
)
async def test_nothing_else_is_there(room: Room, path: str) -> None:
    assert (await room.get(path))[0] == 404
    assert room.asked == []


async def test_who_is_no_task_or_has_no_role_gets_nothing(room: Room) -> None:
    room.tasks["127.0.0.1"] = task("")
    assert (await room.get("/v2/credentials/"))[0] == 404
    del room.tasks["127.0.0.1"]
    assert (await room.get())[0] == 404
    assert room.asked == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /v2/credentials/" + ID.encode() + b" HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 0),
        (b"\xff\x00" * 10 + b"\r\n\r\n", 400),
    ],
)
async def test_hostile_requests(room: Room, data: bytes, status: int) -> None:
    assert (await room.send_raw(data))[0] == status
    assert (await room.get())[0] == 200


async def test_one_task_can_not_take_all_connections(room: Room) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", room.port) for _ in range(MAX_CONNECTIONS_OF_ONE)]
    assert await room.get() == (0, {})
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()
    while (await room.get())[0] != 200:
        await asyncio.sleep(0)
