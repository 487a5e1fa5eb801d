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


def test_a_token_is_used_up(sessions: ExecSessions) -> None:
    opened = sessions.open(OWNER, _task(), "", SPEC)
    with pytest.raises(AccessDenied):
        sessions.claim(opened.session_id, "0" * 64)
    session = sessions.claim(opened.session_id, opened.token)
    session.served = object()
    with pytest.raises(AccessDenied):
        sessions.claim(opened.session_id, opened.token)
    again = sessions.resume(opened.session_id, OWNER)
    assert again and again != opened.token
    assert sessions.claim(opened.session_id, again) is session


def test_a_token_does_not_live_long(sessions: ExecSessions, clock: _Clock) -> None:
    opened = sessions.open(OWNER, _task(), "", SPEC)
    clock.time += TOKEN_LIFE_S + 1
    with pytest.raises(AccessDenied):
        sessions.claim(opened.session_id, opened.token)
    sessions.open(OWNER, _task(), "", SPEC)
    assert sessions.resume(opened.session_id, OWNER) == ""


def test_a_session_exists_for_its_maker_only(sessions: ExecSessions) -> None:
    opened = sessions.open(OWNER, _task(), "", SPEC)
    for work in (sessions.resume, sessions.terminate):
        with pytest.raises(NotFound):
            work(opened.session_id, OTHER)
    sessions.terminate(opened.session_id, OWNER)
    sessions.terminate(opened.session_id, OWNER)
    with pytest.raises(AccessDenied):
        sessions.claim(opened.session_id, opened.token)


def test_a_container_has_a_bounded_number_of_sessions(sessions: ExecSessions, clock: _Clock) -> None:
    for _ in range(MAX_SESSIONS_OF_CONTAINER):
        sessions.open(OWNER, _task(), "", SPEC)
    with pytest.raises(LimitExceeded):
        sessions.open(OWNER, _task(), "", SPEC)
    clock.time += TOKEN_LIFE_S + 1
    sessions.open(OWNER, _task(), "", SPEC)


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
def test_what_can_not_be_entered(
    sessions: ExecSessions, changes: dict[str, Any], container: str, error: type[HutchError]
) -> None:
    with pytest.raises(error):
        sessions.open(OWNER, _task(**changes), container, SPEC)


def test_commands_are_split_as_a_shell_does_and_no_further() -> None:
    assert split_command("sh -c 'echo $HOME; ls'") == ("sh", "-c", "echo $HOME; ls")
    assert split_command("echo * ; rm") == ("echo", "*", ";", "rm")
    for bad in ("", "  ", "'open", "x" * 40_000):
        with pytest.raises(Invalid):
            split_command(bad)
