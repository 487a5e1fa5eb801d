"""`hutch exec`: what ExecuteCommand has no words for. Pipes instead of a terminal, another user, tasks that were not run with
execute command enabled."""

from typing import Any

import msgspec

from hutch.api.gateway.native import NativeRequest, NativeRoute
from hutch.base.errors import Invalid
from hutch.control.authorizer import Authorizer
from hutch.control.exec_sessions import ExecSessions
from hutch.control.ops.tasks import TaskOps
from hutch.model.exec import ExecSpec

MAX_COMMAND_BYTES = 32 * 1024


class _Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    command: tuple[str, ...]
    container: str = ""
    tty: bool = False
    stdin: bool = False
    rows: int = 24
    cols: int = 80
    user: str = ""


class NativeExec:
    """The route of `hutch exec`. Who may not ECS's ExecuteCommand may not this either."""

    def __init__(
        self, tasks: TaskOps, sessions: ExecSessions, authorizer: Authorizer, *, region: str, account_id: str
    ) -> None:
        self._tasks = tasks
        self._sessions = sessions
        self._authorizer = authorizer
        self._prefix = f"arn:aws:ecs:{region}:{account_id}"

    def routes(self) -> tuple[NativeRoute, ...]:
        return (
            NativeRoute(method="POST", template="/hutch/v1/tasks/{task}/exec", handler=self.execute_command),
        )

    async def execute_command(self, request: NativeRequest) -> dict[str, Any]:
        """A session: its path (a WebSocket) and the token that its first message must have."""
        try:
            body = msgspec.convert(request.body, _Body)
        except msgspec.ValidationError as error:
            raise Invalid(f"the request is not what it should be: {error}") from None
        if not body.command or not body.command[0]:
            raise Invalid("the command is empty")
        if sum(len(word.encode()) for word in body.command) > MAX_COMMAND_BYTES:
            raise Invalid(f"the command can have at most {MAX_COMMAND_BYTES} bytes")
        task = self._tasks.find_anywhere(request.params["task"])
        caller = request.principal.caller
        if not caller.is_root:
            cluster = f"{self._prefix}:cluster/{task.cluster}"
            self._authorizer.check(
                caller,
                "ecs:ExecuteCommand",
                f"{self._prefix}:task/{task.cluster}/{task.task_id}",
                lambda: {"ecs:cluster": (cluster,)},
            )
        spec = ExecSpec(
            command=body.command,
            tty=body.tty,
            stdin=body.stdin,
            rows=body.rows,
            cols=body.cols,
            user=body.user,
        )
        opened = await self._sessions.open(request.principal.arn, task, body.container, spec)
        return {
            "session_id": opened.session_id,
            "path": f"/hutch/v1/exec/{opened.session_id}",
            "token": opened.token,
            "task_id": task.task_id,
            "container": opened.container.name,
        }
