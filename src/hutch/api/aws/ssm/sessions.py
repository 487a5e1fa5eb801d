"""ResumeSession and TerminateSession, for sessions that ECS's ExecuteCommand made: what session-manager-plugin asks for."""

from typing import Any

from hutch.api.gateway.operation import Coverage, Operation, Request
from hutch.control.exec_sessions import ExecSessions


class SessionHandlers:
    """A session belongs to who made it: to everybody else it does not exist."""

    def __init__(self, sessions: ExecSessions) -> None:
        self._sessions = sessions

    def operations(self) -> tuple[Operation, ...]:
        coverage = Coverage(enforced=("SessionId",))
        return (
            Operation(name="ResumeSession", handler=self.resume, coverage=coverage),
            Operation(name="TerminateSession", handler=self.terminate, coverage=coverage),
        )

    async def resume(self, request: Request) -> dict[str, Any]:
        """Another token; none, as with AWS, for a session that is over."""
        session_id = request.input["SessionId"]
        token = self._sessions.resume(session_id, request.principal.arn)
        if not token:
            return {"SessionId": session_id}
        url = f"ws{request.endpoint.removeprefix('http')}/v1/data-channel/{session_id}"
        return {"SessionId": session_id, "TokenValue": token, "StreamUrl": f"{url}?role=publish_subscribe"}

    async def terminate(self, request: Request) -> dict[str, Any]:
        session_id = request.input["SessionId"]
        self._sessions.terminate(session_id, request.principal.arn)
        return {"SessionId": session_id}
