"""Sessions: who gets a token, what it opens, and what is refused."""

from typing import Any

import pytest

from hutch.base.errors import AccessDenied, HutchError, Invalid, LimitExceeded, NotFound
from hutch.base.ids import SeededIds
from hutch.control.exec_sessions import (
    MAX_SESSIONS_OF_CONTAINER,
    TOKEN_LIFE_S,
    ExecSessions,
    NoHosts,
    TargetNotConnected,
    split_command,
)
from hutch.model.exec import ExecSpec
from hutch.model.task import Container, Task
from hutch.store.memory import MemoryStore

OWNER, OTHER = "arn:aws:iam::0:user/a", "arn:aws:iam::0:user/b"
SPEC = ExecSpec(command=("true",))


class _Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class _Hosts(NoHosts):
    connected_host_ids = ("i-1",)

    def __init__(self, **disk: Any) -> None:
        self.disk = {"task_id": "t" * 32, **disk}

    async def request(self, host_id: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert (host_id, verb, arguments) == ("i-1", "disk.show", {"task_id": "t" * 32})
        return self.disk


def _task(**changes: Any) -> Task:
    containers = (Container(name="a", container_id="1", image="x", last_status="RUNNING"),)
    given: dict[str, Any] = {
        "task_id": "t" * 32,
        "cluster": "default",
        "family": "f",
        "revision": 1,
        "launch_type": "FARGATE",
        "cpu": 256,
        "memory_mib": 512,
        "host_id": "i-1",
        "last_status": "RUNNING",
        "containers": containers,
        "created_at": 1.0,
        **changes,
    }
    return Task(**given)


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def sessions(clock: _Clock) -> ExecSessions:
    return ExecSessions(MemoryStore(), clock, SeededIds(1), _Hosts())  # type: ignore[arg-type]


async def test_a_token_is_used_up(sessions: ExecSessions) -> None:
    opened = await sessions.open(OWNER, _task(), "", SPEC)
    with pytest.raises(AccessDenied):
        sessions.claim(opened.session_id, "0" * 64)
    session = sessions.claim(opened.session_id, opened.token)
    session.served = object()
    with pytest.raises(AccessDenied):
        sessions.claim(opened.session_id, opened.token)
    again = sessions.resume(opened.session_id, OWNER)
    assert again and again != opened.token
    assert sessions.claim(opened.session_id, again) is session


async def test_a_token_does_not_live_long(sessions: ExecSessions, clock: _Clock) -> None:
    opened = await sessions.open(OWNER, _task(), "", SPEC)
    clock.time += TOKEN_LIFE_S + 1
    with pytest.raises(AccessDenied):
        sessions.claim(opened.session_id, opened.token)
    await sessions.open(OWNER, _task(), "", SPEC)
    assert sessions.resume(opened.session_id, OWNER) == ""


async def test_a_session_exists_for_its_maker_only(sessions: ExecSessions) -> None:
    opened = await sessions.open(OWNER, _task(), "", SPEC)
    for work in (sessions.resume, sessions.terminate):
        with pytest.raises(NotFound):
            work(opened.session_id, OTHER)
    sessions.terminate(opened.session_id, OWNER)
    sessions.terminate(opened.session_id, OWNER)
    with pytest.raises(AccessDenied):
        sessions.claim(opened.session_id, opened.token)


async def test_a_container_has_a_bounded_number_of_sessions(sessions: ExecSessions, clock: _Clock) -> None:
    for _ in range(MAX_SESSIONS_OF_CONTAINER):
        await sessions.open(OWNER, _task(), "", SPEC)
    with pytest.raises(LimitExceeded):
        await sessions.open(OWNER, _task(), "", SPEC)
    clock.time += TOKEN_LIFE_S + 1
    await sessions.open(OWNER, _task(), "", SPEC)


@pytest.mark.parametrize(
    ("changes", "container", "error"),
    [
        ({"host_id": "i-2"}, "", TargetNotConnected),
        ({"suspended_at": 5.0}, "", Invalid),
        ({"containers": (Container(name="a", container_id="1", image="x"),)}, "", Invalid),
        ({}, "b", Invalid),
    ],
    ids=["not connected", "suspended", "not running", "no such container"],
)
async def test_what_can_not_be_entered(
    sessions: ExecSessions, changes: dict[str, Any], container: str, error: type[HutchError]
) -> None:
    with pytest.raises(error):
        await sessions.open(OWNER, _task(**changes), container, SPEC)


STOPPED = {
    "last_status": "STOPPED",
    "containers": (Container(name="a", container_id="1", image="x", last_status="STOPPED"),),
}


async def test_a_stopped_task_is_entered_as_long_as_its_disk_is_kept(clock: _Clock) -> None:
    hosts = _Hosts(is_kept=True)
    sessions = ExecSessions(MemoryStore(), clock, SeededIds(1), hosts)  # type: ignore[arg-type]
    opened = await sessions.open(OWNER, _task(**STOPPED), "", SPEC)
    assert sessions.claim(opened.session_id, opened.token).container == "a"
    hosts.disk |= {"is_kept": False, "since": 0.0, "reason": "it made room"}
    with pytest.raises(
        Invalid, match=r"not running.*not kept \(since 1970-01-01 00:00:00 UTC\): it made room"
    ):
        await sessions.open(OWNER, _task(**STOPPED), "", SPEC)
    with pytest.raises(TargetNotConnected, match="i-2, which may have its disk, is not connected"):
        await sessions.open(OWNER, _task(**STOPPED, host_id="i-2"), "", SPEC)
    with pytest.raises(Invalid, match="never came to a host"):
        await sessions.open(OWNER, _task(**STOPPED, host_id=""), "", SPEC)


def test_commands_are_split_as_a_shell_does_and_no_further() -> None:
    assert split_command("sh -c 'echo $HOME; ls'") == ("sh", "-c", "echo $HOME; ls")
    assert split_command("echo * ; rm") == ("echo", "*", ";", "rm")
    for bad in ("", "  ", "'open", "x" * 40_000):
        with pytest.raises(Invalid):
            split_command(bad)
