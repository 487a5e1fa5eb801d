"""STS: who am I, and whom may I become."""

from collections.abc import Sequence
from typing import Any

from hutch.api.gateway.access import nothing
from hutch.api.gateway.operation import Coverage, Operation, Request, Service
from hutch.base.errors import AccessDenied, HutchError, Invalid, Unavailable
from hutch.control.ops.sts import AssumeRoleRequest, StsOps
from hutch.control.sessions import TemporaryCredentials

_NO_MFA = "hutch has no MFA devices"
_TOKEN_SIZE = "session tokens are as large as they are"


class StsHandlers:
    """The STS operations that hutch serves."""

    def __init__(self, ops: StsOps) -> None:
        self._ops = ops

    def operations(self) -> tuple[Operation, ...]:
        mfa = {"SerialNumber": _NO_MFA, "TokenCode": _NO_MFA, "MinimumSessionTokenSize": _TOKEN_SIZE}
        return (
            Operation(name="GetCallerIdentity", handler=self.caller_identity, coverage=Coverage()),
            Operation(
                name="AssumeRole",
                handler=self.assume_role,
                coverage=Coverage(
                    enforced=(
                        *("RoleArn", "RoleSessionName", "PolicyArns", "Policy", "DurationSeconds"),
                        *("Tags", "TransitiveTagKeys", "ExternalId", "SourceIdentity"),
                    ),
                    refused={**mfa, "ProvidedContexts": "hutch knows no context providers"},
                ),
            ),
            Operation(
                name="GetSessionToken",
                handler=self.session_token,
                coverage=Coverage(enforced=("DurationSeconds",), refused=mfa),
            ),
        )

    async def caller_identity(self, request: Request) -> dict[str, Any]:
        """Needs no permission; answers whom the signature belongs to."""
        return {
            "UserId": request.principal.user_id,
            "Account": request.principal.account_id,
            "Arn": request.principal.arn,
        }

    async def assume_role(self, request: Request) -> dict[str, Any]:
        given = request.input
        context: dict[str, Sequence[str]] = {
            "aws:sourceip": (request.source_address,),
            "aws:requestedregion": (request.region,),
            "aws:securetransport": ("false",),
        }
        assumed = self._ops.assume_role(
            request.principal.caller,
            AssumeRoleRequest(
                role_arn=given["RoleArn"],
                session_name=given["RoleSessionName"],
                duration_s=given.get("DurationSeconds", 0),
                policy=given.get("Policy", ""),
                policy_arns=tuple(p.get("arn", "") for p in given.get("PolicyArns", ())),
                external_id=given.get("ExternalId", ""),
                source_identity=given.get("SourceIdentity", ""),
                tags=_tags(given.get("Tags", [])),
                transitive_tags=tuple(given.get("TransitiveTagKeys", ())),
            ),
            context,
        )
        answer: dict[str, Any] = {
            "Credentials": _credentials(assumed.credentials),
            "AssumedRoleUser": {"AssumedRoleId": assumed.role_session_id, "Arn": assumed.arn},
        }
        if assumed.packed_percent is not None:
            answer["PackedPolicySize"] = assumed.packed_percent
        if assumed.source_identity:
            answer["SourceIdentity"] = assumed.source_identity
        return answer

    async def session_token(self, request: Request) -> dict[str, Any]:
        issued = self._ops.session_token(request.principal.caller, request.input.get("DurationSeconds", 0))
        return {"Credentials": _credentials(issued)}


def _credentials(issued: TemporaryCredentials) -> dict[str, Any]:
    return {
        "AccessKeyId": issued.access_key_id,
        "SecretAccessKey": issued.secret_access_key,
        "SessionToken": issued.session_token,
        "Expiration": issued.expires_at,
    }


def _tags(listed: list[dict[str, str]]) -> dict[str, str]:
    tags = {t["Key"]: t["Value"] for t in listed}
    if len({k.lower() for k in tags}) != len(listed):
        raise Invalid(
            "Duplicate tag keys found. Please note that Tag keys are case insensitive.",
            code="InvalidParameterValue",
        )
    return tags


def service(ops: StsOps) -> Service:
    """The STS operations that hutch serves. AssumeRole asks for its permission itself: the role's trust decides, too."""
    return Service(
        name="sts",
        operations=StsHandlers(ops).operations(),
        faults=(
            (AccessDenied, "AccessDenied"),
            (Unavailable, "ServiceUnavailable"),
            (HutchError, "ValidationError"),
        ),
        access=dict.fromkeys(("GetCallerIdentity", "AssumeRole", "GetSessionToken"), nothing),
    )
