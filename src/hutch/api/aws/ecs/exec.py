"""ExecuteCommand: shape in, one use case, shape out."""

from typing import Any

from hutch.api.aws.ecs.common import Arns
from hutch.api.gateway.operation import Coverage, Operation, Request
from hutch.control.exec_sessions import ExecSessions, TargetNotConnected


class ExecHandlers:
    """ECS Exec."""

    def __init__(self, sessions: ExecSessions, arns: Arns) -> None:
        self._sessions = sessions
        self._arns = arns

    def operations(self) -> tuple[Operation, ...]:
        members = ("cluster", "command", "container", "interactive", "task")
        return (
            Operation(
                name="ExecuteCommand",
                handler=self.execute_command,
                coverage=Coverage(enforced=members),
                faults=((TargetNotConnected, "TargetNotConnectedException"),),
            ),
        )

    async def execute_command(self, request: Request) -> dict[str, Any]:
        given = request.input
        opened = await self._sessions.execute_command(
            request.principal.arn,
            given.get("cluster", ""),
            given["task"],
            given.get("container", ""),
            given["command"],
            interactive=given["interactive"],
        )
        task, container = opened.task, opened.container
        # http becomes ws, https wss.
        url = f"ws{request.endpoint.removeprefix('http')}/v1/data-channel/{opened.session_id}"
        return {
            "clusterArn": self._arns.of("cluster", task.cluster),
            "taskArn": self._arns.of("task", f"{task.cluster}/{task.task_id}"),
            "containerArn": self._arns.of(
                "container", f"{task.cluster}/{task.task_id}/{container.container_id}"
            ),
            "containerName": container.name,
            "interactive": True,
            "session": {
                "sessionId": opened.session_id,
                "streamUrl": f"{url}?role=publish_subscribe",
                "tokenValue": opened.token,
            },
        }
