"""STS: who am I."""

from typing import Any

from hutch.api.gateway.operation import Coverage, Operation, Request, Service


async def get_caller_identity(request: Request) -> dict[str, Any]:
    """Needs no permission; answers whom the signature belongs to."""
    return {
        "UserId": request.principal.user_id,
        "Account": request.principal.account_id,
        "Arn": request.principal.arn,
    }


def service() -> Service:
    """The STS operations that hutch serves."""
    return Service(
        name="sts",
        operations=(Operation(name="GetCallerIdentity", handler=get_caller_identity, coverage=Coverage()),),
        faults=(),
    )
