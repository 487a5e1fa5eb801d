"""Who may talk to a process in a container, and how they come to it.

A session is made by ExecuteCommand (or `hutch exec`) and lives in this process only: a token that opens one connection
within a minute, once. The process is started when that connection is there. Whoever resumes a session gets another token.
"""

import hashlib
import hmac
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import AccessDenied, HutchError, Invalid, LimitExceeded, NotFound
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.host_streams import HostStream
from hutch.control.ops.tasks import active_cluster, find_task
from hutch.model.exec import ExecSpec
from hutch.model.task import Container, Task
from hutch.store.contract import Store
from hutch.wire.facts import KeptDiskFact

log = get_logger(__name__)

TOKEN_LIFE_S = 60.0
MAX_SESSIONS = 4096
MAX_SESSIONS_OF_CONTAINER = 1000
"""As on AWS."""
MAX_COMMAND_CHARACTERS = 32 * 1024
RUNNING = "RUNNING"
_NOT_ENABLED = (
    "The execute command failed because execute command was not enabled when the task was run or the execute command "
    "agent isn't running. Wait and try again or run a new task with execute command enabled and try again."
)
_NOT_RUNNING = "The execute command failed because the task is not running. Run a new task and try again."
_NOT_CONNECTED = "The execute command failed due to an internal error. Try again later."


class TargetNotConnected(HutchError):
    """The task's host is not there."""


class ExecHosts(Protocol):
    """What is needed of the fleet."""

    @property
    def connected_host_ids(self) -> tuple[str, ...]: ...

    async def open_stream(self, host_id: str, task_id: str, container: str, spec: ExecSpec) -> HostStream: ...

    async def request(self, host_id: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]: ...


class NoHosts:
    """A fleet without hosts, for what only needs to know the operations."""

    connected_host_ids: tuple[str, ...] = ()

    async def open_stream(self, host_id: str, task_id: str, container: str, spec: ExecSpec) -> HostStream:
        """There is nobody."""
        raise TargetNotConnected(_NOT_CONNECTED, code="TargetNotConnectedException")

    async def request(self, host_id: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """There is nobody."""
        raise TargetNotConnected(_NOT_CONNECTED, code="TargetNotConnectedException")


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A session as its maker is told of it. The token is secret."""

    session_id: str
    token: str
    task: Task
    container: Container


class ExecSession:
    """One session. `end` is what to call when it is terminated from elsewhere; set by whoever serves it."""

    def __init__(self, session_id: str, owner: str, task: Task, container: str, spec: ExecSpec) -> None:
        self.session_id = session_id
        self.owner = owner
        self.task = task
        self.container = container
        self.spec = spec
        self.served: Any = None
        """What serves it, from its first connection on; for the next ones."""
        self.end: Callable[[], None] | None = None
        self._token_digest = b""
        self.token_expires_at = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether nobody has come for it yet."""
        return self.served is None

    def set_token(self, token: str, expires_at: float) -> None:
        """The token that opens the next connection; an earlier one opens none any more."""
        self._token_digest = hashlib.sha256(token.encode()).digest()
        self.token_expires_at = expires_at

    def use_token(self, token: str, now: float) -> bool:
        """Whether this is the token; it is none from now on."""
        right = bool(self._token_digest) and hmac.compare_digest(
            hashlib.sha256(token.encode()).digest(), self._token_digest
        )
        if not right or now > self.token_expires_at:
            return False
        self._token_digest = b""
        return True


class ExecSessions:
    """All sessions of this control plane."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource, hosts: ExecHosts) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._hosts = hosts
        self._sessions: dict[str, ExecSession] = {}

    async def execute_command(
        self, owner: str, cluster: str, task: str, container: str, command: str, *, interactive: bool
    ) -> Opened:
        """ExecuteCommand. `owner` is the caller's ARN. A stopped task is entered as long as its disk is kept. Raises AWS's
        errors."""
        if not interactive:
            raise Invalid(
                "Interactive is the only mode supported currently.", code="InvalidParameterException"
            )
        with self._store.read() as reader:
            found = find_task(reader, active_cluster(reader, cluster).name, task, member="task")
        if found.is_stopped:
            await self._check_disk(found)
        elif found.desired_status != RUNNING:
            raise Invalid(_NOT_RUNNING, code="InvalidParameterException")
        if not found.enable_execute_command:
            raise Invalid(_NOT_ENABLED, code="InvalidParameterException")
        chosen = choose_container(found, container)
        if chosen.last_status != RUNNING and not found.is_stopped:
            raise Invalid(_NOT_ENABLED, code="InvalidParameterException")
        spec = ExecSpec(command=split_command(command), tty=True)
        return self._make(f"ecs-execute-command-{self._ids.hex(17)}", owner, found, chosen, spec)

    async def open(self, owner: str, task: Task, container: str, spec: ExecSpec) -> Opened:
        """A session for `hutch exec`: of any running container, enabled or not, and of a stopped task's as long as its disk
        is kept. Raises `HutchError`."""
        chosen = choose_container(task, container)
        if task.is_stopped:
            await self._check_disk(task)
        elif chosen.last_status != RUNNING:
            raise Invalid(
                f'container "{chosen.name}" of task {task.task_id} is {chosen.last_status}, not RUNNING'
            )
        return self._make(f"hutch-exec-{self._ids.hex(17)}", owner, task, chosen, spec)

    async def _check_disk(self, task: Task) -> None:
        """Raises AWS's error for a stopped task, with why hutch can't do better, unless its disk is kept."""
        fact = await kept_disk(self._hosts, task)
        if not fact.is_kept:
            since = f" (since {_utc(fact.since)})" if fact.since is not None else ""
            raise Invalid(
                f"{_NOT_RUNNING} The disk of this one is not kept{since}: {fact.reason}.",
                code="InvalidParameterException",
            )

    def _make(self, session_id: str, owner: str, task: Task, container: Container, spec: ExecSpec) -> Opened:
        if task.is_suspended:
            raise Invalid(
                f"Task {task.task_id} is suspended; let it go on first (hutch resume {task.task_id[:12]}).",
                code="InvalidParameterException",
            )
        if task.host_id not in self._hosts.connected_host_ids:
            raise TargetNotConnected(_NOT_CONNECTED, code="TargetNotConnectedException")
        self._drop_expired()
        same = sum(
            1
            for s in self._sessions.values()
            if s.task.task_id == task.task_id and s.container == container.name
        )
        if same >= MAX_SESSIONS_OF_CONTAINER or len(self._sessions) >= MAX_SESSIONS:
            raise LimitExceeded("There are too many exec sessions; end some.", code="ClientException")
        session = ExecSession(session_id, owner, task, container.name, spec)
        self._sessions[session_id] = session
        log.info("exec session", session=session_id, task=task.task_id, container=container.name, by=owner)
        return Opened(session_id=session_id, token=self._token(session), task=task, container=container)

    def _token(self, session: ExecSession) -> str:
        token = self._ids.hex(64)
        session.set_token(token, self._clock.now() + TOKEN_LIFE_S)
        return token

    def _drop_expired(self) -> None:
        now = self._clock.now()
        for session in list(self._sessions.values()):
            if session.is_waiting and session.token_expires_at < now:
                del self._sessions[session.session_id]

    def claim(self, session_id: str, token: str) -> ExecSession:
        """The session that a token opens, which is used up by it. Raises `AccessDenied`."""
        session = self._sessions.get(session_id)
        if session is None or not session.use_token(token, self._clock.now()):
            raise AccessDenied("the session's token is not valid, was used before, or has expired")
        return session

    def resume(self, session_id: str, caller: str) -> str:
        """A token for another connection to a session of the caller's; "" if it is over. Raises `NotFound`."""
        session = self._owned(session_id, caller)
        return self._token(session) if session is not None else ""

    def terminate(self, session_id: str, caller: str) -> None:
        """End a session of the caller's; one that is over is fine."""
        session = self._owned(session_id, caller)
        if session is not None:
            if session.end is not None:
                session.end()
            self.forget(session)

    def _owned(self, session_id: str, caller: str) -> ExecSession | None:
        session = self._sessions.get(session_id)
        if session is not None and session.owner != caller:
            raise NotFound(f"Session {session_id[:100]} does not exist.", code="DoesNotExistException")
        return session

    async def start(self, session: ExecSession, spec: ExecSpec) -> HostStream:
        """Run the session's process. Raises what its host answers, or `Unavailable`."""
        return await self._hosts.open_stream(
            session.task.host_id, session.task.task_id, session.container, spec
        )

    def forget(self, session: ExecSession) -> None:
        """The session is over."""
        self._sessions.pop(session.session_id, None)


async def kept_disk(hosts: ExecHosts, task: Task) -> KeptDiskFact:
    """What the host of a stopped task knows of its disk. Raises `TargetNotConnected` if that host is not there."""
    if not task.host_id:
        return KeptDiskFact(task_id=task.task_id, is_kept=False, reason="it never came to a host")
    if task.host_id not in hosts.connected_host_ids:
        raise TargetNotConnected(
            f"Task {task.task_id} has stopped, and its host {task.host_id}, which may have its disk, is not connected; "
            "`hutch doctor` says why.",
            code="TargetNotConnectedException",
        )
    answer = await hosts.request(task.host_id, "disk.show", {"task_id": task.task_id})
    return msgspec.convert(answer, KeptDiskFact)


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def choose_container(task: Task, name: str) -> Container:
    """The container that is meant: the only one, or the one that is named. Raises `Invalid` in AWS's words."""
    if not name:
        if len(task.containers) == 1:
            return task.containers[0]
        raise Invalid(
            "The container name must be specified for a task with more than one container.",
            code="InvalidParameterException",
        )
    found = next((c for c in task.containers if c.name == name), None)
    if found is None:
        raise Invalid(
            f"The container {name[:100]} doesn't exist in task {task.task_id}.",
            code="InvalidParameterException",
        )
    return found


def split_command(command: str) -> tuple[str, ...]:
    """ExecuteCommand's command as words, with a shell's quoting and nothing else of a shell. Raises `Invalid`."""
    if len(command) > MAX_COMMAND_CHARACTERS:
        raise Invalid(f"command can have at most {MAX_COMMAND_CHARACTERS} characters.")
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise Invalid(
            f"command can't be split into words: {error}.", code="InvalidParameterException"
        ) from None
    if not words or not words[0]:
        raise Invalid("command is empty.", code="InvalidParameterException")
    return words
